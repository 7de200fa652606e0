"""One trial of a sweep, as Tune calls it in a process of its own; that process imports no more than a trial needs."""

from __future__ import annotations

from typing import Any

from ray import tune

from orchestrator.run.folder import claim, finished
from orchestrator.settings.compose import checked, with_settings
from orchestrator.settings.config import Experiment


def trial(parameters: dict[str, Any]) -> None:
    """One trial: a run of its own with its own workers and tree actor."""
    experiment = trial_experiment(
        checked(parameters["sweep"]), parameters["settings"], tune.get_context().get_trial_id()
    )
    # A resumed sweep starts an unfinished trial again, whose run may have been written whole before the stop.
    if claim(experiment):
        return
    if experiment.scale.workers:
        from ray.tune.integration.ray_train import TuneReportCallback

        from orchestrator.cluster.trainer import train_on_workers

        train_on_workers(experiment, [TuneReportCallback()])
    else:
        from orchestrator.run.session import run_here

        run_here(experiment, tune.report)
    # Workers write an error that the user must fix to a file; raised here, it makes the trial a failed one.
    finished(experiment.folder)


def trial_experiment(sweep: Experiment, settings: dict[str, Any], trial_id: str) -> Experiment:
    """The run of one trial, in a folder of its own below the sweep's."""
    place = {"name": f"{sweep.name}-{trial_id}", "storage": str(sweep.folder / "trials")}
    return with_settings(sweep, settings | place)
