"""Where the task tree of a run is read from: its result, its live actor, or its newest checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.run import checkpoint
from orchestrator.run.checkpoint import read_json
from orchestrator.run.learner import part
from orchestrator.run.service import make_service
from orchestrator.run.session import stream_without_rows
from orchestrator.settings.compose import checked, load_experiment
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError


@dataclass(frozen=True)
class FoundTree:
    """A run's tree: its ``report`` as in result.json's ``method_report``, task names, and as of when it is."""

    run: str
    report: dict[str, Any]
    names: list[str]
    when: str


def find_tree(run: str, settings: list[str]) -> FoundTree:
    """The tree of ``run``, a name or a folder below storage; UserError where there is none."""
    experiment = experiment_of(run, settings)
    if make_service(experiment) is None:
        raise UserError(f"{run}: method {experiment.method.name} has no tree; name a run of one that has, as treelora")
    # The actor before the checkpoint, which lacks what was observed since.
    found = of_result(experiment) or of_actor(experiment) or of_checkpoint(experiment)
    if found is None and not experiment.folder.is_dir():
        raise UserError(f"{run}: no such run in {experiment.storage}; name another, or set storage=…")
    if found is None or not (found.report.get("tree") or {}).get("nodes"):
        raise UserError(f"{run}: the run has not learned a task yet, so it has no tree; try again later")
    return found


def experiment_of(run: str, settings: list[str]) -> Experiment:
    """The experiment as the run's folder has it; without a folder, as the settings have it."""
    composed = load_experiment([*settings, f"name={Path(run).name}"])
    folder = composed.storage / run
    if (folder / "trials").is_dir():
        raise UserError(f"{run}: a sweep; name one of its trials, as in {run}/trials/…")
    identity = read_json(folder / "experiment.json")
    if identity is None:
        return composed.model_copy(update={"storage": folder.parent})  # not another run that has the same last name
    return checked(identity | {"name": folder.name, "storage": str(folder.parent)})


def of_result(experiment: Experiment) -> FoundTree | None:
    """A finished run's tree."""
    result = read_json(experiment.folder / "result.json")
    if result is None:
        return None
    return FoundTree(experiment.name, result["method_report"] or {}, result["task_names"], "the finished run")


def of_actor(experiment: Experiment) -> FoundTree | None:
    """The tree of a run that is under way on a cluster; a run without workers has no actor."""
    if experiment.scale.workers == 0:
        return None
    from orchestrator.cluster.tree_actor import live_report  # Ray takes a second to import

    report = live_report(experiment)
    return None if report is None else FoundTree(experiment.name, report, task_names(experiment), "the run under way")


def of_checkpoint(experiment: Experiment) -> FoundTree | None:
    """The tree that a run which is stopped, or out of reach, last wrote down."""
    found = checkpoint.load(experiment.folder)
    if found is None:
        return None
    tensors, values = found
    service = make_service(experiment)
    assert service is not None  # find_tree has refused methods without one
    service.load_state_dict(part(tensors, "search."))
    position = values["position"]
    when = f"as of its last checkpoint (tasks learned: {position['task']}, steps of the next: {position['step']})"
    return FoundTree(experiment.name, service.report(), task_names(experiment), when)


def task_names(experiment: Experiment) -> list[str]:
    return [task.name for task in stream_without_rows(experiment).tasks]
