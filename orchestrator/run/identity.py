"""What makes a run's numbers beside its settings: its data, the backbone's weights, and code. They stay what they are
while the run is stopped, and on all of its workers; a change is refused, or accepted and written down.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import benchmarks
import methods
import orchestrator.run
from benchmarks.fingerprint import SPLITS
from benchmarks.models.weight_files import weight_files
from benchmarks.stream import TaskStream
from orchestrator.run.sharding import Place
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError

PARTS = ("data", "weights", "code", "versions")
COMPUTING = ("torch", "timm", "transformers", "peft", "numpy", "scikit-learn")
PACKAGES = (*COMPUTING, "ray", "mlflow")  # another version of the last two changes no number
WAY_OUT = "put that back, go on with it by --accept-change, or begin another run with name=…"
NOT_RUN = {"speed", "gpu_check.py", "model_card.py", "pretrain.py"}  # code of benchmarks/ that no run calls
Identity = dict[str, Any]


def identity_of(experiment: Experiment, stream: TaskStream, device: torch.device) -> Identity:
    """Fingerprints as plain values: of the stream's ``data``, and by name of ``weights``, ``code`` and ``versions``.

    The kind of ``device`` is one of the latter: on a GPU a run may compute in bf16.
    """
    files = weight_files(experiment.backbone)
    weights = {file.name: digest(file, file.stat().st_size, file.stat().st_mtime_ns) for file in files}
    return {
        "data": stream.fingerprint,
        "weights": weights,
        "code": code(),
        "versions": versions() | {"device": device.type},
    }


def check_identity(begun: Identity | None, found: Identity, place: Place, accepted: bool = False) -> list[str]:
    """What of ``found`` is another than what the run has ``begun`` with, in words.

    UserError on every worker where a change of one of them is not ``accepted``, or tasks are others. A run that begins
    takes what the first worker has; so does a checkpoint of an earlier version for the parts that it lacks.
    """
    begun = found | (begun or {})  # a checkpoint of an earlier version lacks some
    changes = list(changed_parts(begun, found))
    others = task_names(begun["data"]) != task_names(found["data"])
    mine = list(hashlib.sha256(json.dumps({part: found[part] for part in PARTS}, sort_keys=True).encode()).digest())
    first = place.from_first([float(byte) for byte in mine])
    # Results on other tasks have no place in the matrices.
    refused = (bool(changes) and not accepted) or others
    # Asked together: a worker that ended alone would leave the others waiting without end.
    anywhere = place.total(torch.tensor([float(refused), float(mine != first)], device=place.device))
    if refused:
        way_out = "put that back, or begin another run with name=…" if others else WAY_OUT
        raise UserError(f"{'; '.join(changes)} since this run began: {way_out}")
    if anywhere.any():
        raise UserError(
            "the workers have different data, weights or code; give every node the same, or read from a shared disk"
        )
    return changes


def changed_parts(begun: Identity, found: Identity) -> Iterator[str]:
    for part in PARTS:
        old, new = begun[part], found[part]
        if old != new:
            yield from [data_change(old, new)] if part == "data" else named_changes(part, old, new)


def named_changes(part: str, old: dict[str, str], new: dict[str, str]) -> Iterator[str]:
    """Which packages are others; which of the files is the first other one, and of how many."""
    names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    if part == "versions":
        yield from (f"{n} changed from {old.get(n)} to {new.get(n)}" for n in names if n in (*COMPUTING, "device"))
    else:
        yield f"the {part} in {names[0]}{f' and {len(names) - 1} more' if names[1:] else ''} changed"


def data_change(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The first split that is another one, and of how many."""
    pairs = list(zip(old["tasks"], new["tasks"], strict=False))
    splits = [(number, was, now, s) for number, (was, now) in enumerate(pairs) for s in SPLITS if was[s] != now[s]]
    if not splits or task_names(old) != task_names(new):
        return f"the data's tasks changed from {task_names(old)} to {task_names(new)}"
    number, was, now, split = splits[0]
    before, after = was[split]["rows"], now[split]["rows"]
    rows = f" from {before} rows to {after}" if before != after else ""
    more = f" (and {len(splits) - 1} more)" if splits[1:] else ""
    return f"the {split} split of task {number} ({was['name']}){more} changed{rows}"


def task_names(data: dict[str, Any]) -> str:
    return "; ".join(task["name"] for task in data["tasks"])


@cache
def code() -> dict[str, str]:
    """The beginning of the SHA-256 of each file of code that a run's numbers come from, by path."""
    here = Path(methods.__file__).parents[1]
    folders = (Path(package.__file__ or "").parent for package in (methods, benchmarks, orchestrator.run))
    files = sorted(file for folder in folders for file in folder.rglob("*.py") if NOT_RUN.isdisjoint(file.parts))
    return {str(file.relative_to(here)): hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in files}


def code_digest() -> str:
    """One value for all of it."""
    return hashlib.sha256(json.dumps(code()).encode()).hexdigest()


@cache
def versions() -> dict[str, str]:
    return {name: version(name) for name in PACKAGES}


@cache
def digest(file: Path, size: int, changed_at: int) -> str:
    """SHA-256 of a file of weights, read once in a process while it has this ``size`` and time of change."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
