"""How many runs fit on a cluster at the same time; what could never start is refused before anything does."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

import ray

from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError

Node = Mapping[str, float]  # resource -> how much of it there is


def nodes_of_cluster() -> list[Node]:
    """The nodes of the cluster that this process has joined."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def this_machine() -> list[Node]:
    """What a cluster of this machine alone would have."""
    import torch

    return [{"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count()}]


def room(experiment: Experiment, nodes: Sequence[Node]) -> int:
    """Runs that fit at a time. The workers of one run may lie on several nodes; a run in one process needs one."""
    scale, sweep = experiment.scale, experiment.sweep
    if not scale.workers:
        return sum(fitting(node, sweep.cpus, sweep.gpus) for node in nodes)
    gpus = gpus_of_worker(experiment, nodes)
    return sum(fitting(node, 1, gpus) for node in nodes) // scale.workers


def gpus_of_worker(experiment: Experiment, nodes: Sequence[Node]) -> float:
    """What each worker of a run asks for: as set, else one where all of them get one."""
    scale = experiment.scale
    if scale.gpus_per_worker != "auto":
        return scale.gpus_per_worker
    enough = sum(fitting(node, 1, 1) for node in nodes) >= scale.workers
    return 1.0 if enough and experiment.device != "cpu" else 0.0


def fitting(node: Node, cpus: float, gpus: float) -> int:
    by_cpus = node.get("CPU", 0) / cpus
    return math.floor(min(by_cpus, node.get("GPU", 0) / gpus) if gpus else by_cpus)


def check_room(experiment: Experiment, nodes: Sequence[Node]) -> None:
    """UserError for runs that Ray would not refuse but queue without end, as further nodes may join."""
    scale, sweep = experiment.scale, experiment.sweep
    gpus = gpus_of_worker(experiment, nodes)
    found, places = room(experiment, nodes), sum(fitting(node, 1, gpus) for node in nodes)
    if not found and scale.workers:
        have = f"{total(nodes, 'CPU')} CPUs" + (f" and {total(nodes, 'GPU')} GPUs" if gpus else "")
        each = "one" + (f" and {gpus:g} GPUs" if gpus else "")
        way = f"set scale.workers={places}" if places else "set scale.gpus_per_worker=0"
        raise UserError(f"scale.workers={scale.workers}: there are {have}, {each} for each worker; {way}")
    if not found:
        field = "sweep.gpus" if sweep.gpus and any(fitting(node, sweep.cpus, 0) for node in nodes) else "sweep.cpus"
        largest = max(node.get(field[-4:-1].upper(), 0) for node in nodes)
        raise UserError(f"{field}={getattr(sweep, field[6:]):g}: no node has room for one trial; at most {largest:g}")
    if sweep.concurrent and sweep.concurrent > found:
        raise UserError(
            f"sweep.concurrent={sweep.concurrent}: there is room for {found} at a time; set it to that or leave it out"
        )


def total(nodes: Sequence[Node], resource: str) -> int:
    return int(sum(node.get(resource, 0) for node in nodes))
