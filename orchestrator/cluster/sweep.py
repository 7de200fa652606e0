"""Ray Tune over runs: each trial is a driver that needs no CPU and starts a Train run of its own.

The objective is the mean accuracy over the seen tasks' validation splits; test accuracy is only reported. ASHA
compares trials at the same number of finished tasks. Tune's own state lies in ``<sweep>/tune`` and is unpickled when a
sweep goes on: only resume sweeps that you made.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler
from ray.tune.search import BasicVariantGenerator
from ray.tune.search.optuna import OptunaSearch

from orchestrator.cluster.trial import trial
from orchestrator.cluster.trial_records import TrialRecords
from orchestrator.run.checkpoint import read_json, write_json
from orchestrator.run.folder import claim_sweep
from orchestrator.run.session import read_stream
from orchestrator.settings.config import Experiment
from orchestrator.settings.space import samples, space_of

OBJECTIVE = "validation_accuracy"
# What a trial's driver asks for beside its workers: one byte. Tune refuses a trial without any resource, and a fraction
# of a CPU would leave less than a whole one for a worker.
DRIVER: dict[str, float] = {"memory": 1}


def sweep(experiment: Experiment) -> dict[str, Any]:
    """Run all trials, or go on with those of this name that are unfinished; returns the content of sweep.json."""
    space = space_of(experiment)
    tasks = len(read_stream(experiment).tasks)
    claim_sweep(experiment)
    # Tune logs a failed trial's whole traceback; launch.py prints one line for each.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    results = tuner(experiment, space, tasks).fit()
    summary = summarise(experiment, results)
    write_json(experiment.folder / "sweep.json", summary)
    return summary


def completed(experiment: Experiment) -> dict[str, Any] | None:
    """The content of sweep.json once no trial is left that could go on."""
    summary = read_json(experiment.folder / "sweep.json")
    over = summary and all(trial["status"] != "failed" for trial in summary["trials"])
    return summary if over else None


def tuner(experiment: Experiment, space: dict[str, Any], tasks: int) -> tune.Tuner:
    """A new Tuner, or the stored one with its unfinished trials."""
    workers = experiment.scale.workers
    needs = DRIVER if workers else {"CPU": 1.0}
    trainable = tune.with_resources(trial, needs)
    folder = experiment.folder / "tune"
    # Restored with its searcher and ASHA's rungs: a new Tuner would draw and count all trials anew.
    if tune.Tuner.can_restore(str(folder)):
        return tune.Tuner.restore(str(folder), trainable, resume_unfinished=True, resume_errored=True)
    parameters = {key: domain(value, experiment.sweep.searcher) for key, value in space.items()}
    return tune.Tuner(
        trainable,
        param_space={"settings": parameters, "sweep": experiment.model_dump(mode="json")},
        tune_config=tune.TuneConfig(
            metric=OBJECTIVE,
            mode="max",
            num_samples=samples(experiment, space),
            search_alg=searcher(experiment),
            scheduler=scheduler(experiment, tasks),
            max_concurrent_trials=at_a_time(experiment),
            reuse_actors=True,  # a new process for each trial would import torch and Ray Train anew
            # trial_record reads the id from the folder's name; Tune's own names hold all settings and can be too long.
            trial_dirname_creator=lambda made: made.trial_id,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(experiment.folder),
            verbose=0,
            callbacks=[TrialRecords(experiment)],
        ),
    )


def domain(value: Any, searcher: str) -> Any:
    """Tune's form of one entry; a searcher that learns takes lists as choices, not as a grid."""
    if isinstance(value, list):
        return tune.grid_search(value) if searcher == "random" else tune.choice(value)
    (kind, bounds), *_ = value.items()
    return tune.choice(bounds) if kind == "choice" else getattr(tune, kind)(*bounds)


def searcher(experiment: Experiment) -> Any:
    if experiment.sweep.searcher == "optuna":
        return OptunaSearch(metric=OBJECTIVE, mode="max", seed=experiment.seed)
    # max_concurrent_trials limits only searchers that Tune wraps, not this one: trials would start whose workers wait
    # for each other.
    return BasicVariantGenerator(max_concurrent=at_a_time(experiment), random_state=experiment.seed)


def scheduler(experiment: Experiment, tasks: int) -> AsyncHyperBandScheduler | None:
    """ASHA by finished tasks: its rungs compare trials that have seen the same tasks."""
    if experiment.sweep.scheduler == "none":
        return None
    # At max_t ASHA stops a trial by force: Session reports the last task after its result is written.
    return AsyncHyperBandScheduler(time_attr="task", max_t=tasks, grace_period=1, reduction_factor=2)


def at_a_time(experiment: Experiment) -> int:
    """Trials at the same time: as set, else as many as the CPUs allow with one for each worker."""
    # Drivers reserve no CPU, so that Tune alone would start all trials at once.
    room = int(ray.cluster_resources().get("CPU", 1)) // max(experiment.scale.workers, 1)
    return experiment.sweep.concurrent or max(1, room)


def summarise(experiment: Experiment, results: tune.ResultGrid) -> dict[str, Any]:
    """The content of sweep.json, trials in order of the objective."""
    trials = [trial_record(experiment, results[index]) for index in range(len(results))]
    trials.sort(key=lambda record: -math.inf if record["objective"] is None else record["objective"], reverse=True)
    finished_trials = [record for record in trials if record["status"] == "finished"]
    return {
        "name": experiment.name,
        "objective": OBJECTIVE,
        "protocol": "stream",
        "best": finished_trials[0]["id"] if finished_trials else None,
        "config": experiment.model_dump(mode="json"),
        "trials": trials,
    }


def trial_record(experiment: Experiment, result: tune.Result) -> dict[str, Any]:
    trial_id = Path(result.path).name
    folder = experiment.folder / "trials" / f"{experiment.name}-{trial_id}"
    outcome = read_json(folder / "result.json") or {}
    stopped = "failed" if result.error else "stopped"
    return {
        "id": trial_id,
        "status": "finished" if outcome else stopped,
        "settings": result.config["settings"] if result.config else {},
        "objective": (result.metrics or {}).get(OBJECTIVE),
        "final_average_accuracy": outcome.get("final_average_accuracy"),
        "forgetting": outcome.get("forgetting"),
        "seconds": outcome.get("seconds", {}).get("total"),
        "folder": str(folder),
        "error": str(result.error).splitlines()[-1] if result.error else None,
    }
