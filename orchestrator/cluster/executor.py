"""Many runs over a cluster: each is a trial of Ray Tune, proposed, watched and stopped by a ``Source`` in the driver.

A run in one process takes ``sweep.cpus`` and ``sweep.gpus``, and processes are used again by the runs after it. A run
with workers is a driver that asks for nothing; its workers are the resources of its own Train run.

Tune keeps no state that counts: what a source needs to go on lies in JSON beside the runs, so that nothing of Tune's
is ever unpickled, and its folder is removed.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from orchestrator.cluster.room import nodes_of_cluster, room
from orchestrator.cluster.trial import trial
from orchestrator.run.trials import Source
from orchestrator.settings.config import Experiment

# What the driver of a run with workers asks for: one byte. Tune refuses a trial without any resource, and a fraction
# of a CPU would leave less than a whole one for a worker.
DRIVER: dict[str, float] = {"memory": 1}
ENDLESS = 10**9  # Tune wants a number of trials; the source says when there is no more


def run_on_cluster(source: Source, experiment: Experiment, scratch: Path) -> None:
    """Do all runs of ``source``, with the resources that ``experiment`` says; ``scratch`` is Tune's, and is removed."""
    # Tune logs a failed trial's whole traceback; the source says it in one line.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    # Its own tables of results would be written beside each trial.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    shutil.rmtree(scratch, ignore_errors=True)
    tuner = tune.Tuner(
        tune.with_resources(trial, needs(experiment)),
        tune_config=tune.TuneConfig(
            num_samples=ENDLESS,
            search_alg=Proposals(source, experiment),
            scheduler=Verdicts(source),
            reuse_actors=True,  # a new process for each trial would import torch and Ray Train anew
            trial_dirname_creator=lambda made: made.trial_id,  # Tune's own names hold all settings
        ),
        run_config=tune.RunConfig(
            name=scratch.name,
            storage_path=str(scratch.parent),
            verbose=0,
            callbacks=[Endings(source)],
            failure_config=tune.FailureConfig(max_failures=experiment.sweep.retries),
        ),
    )
    try:
        tuner.fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def needs(experiment: Experiment) -> dict[str, float]:
    sweep = experiment.sweep
    if experiment.scale.workers:
        return DRIVER
    return {"CPU": sweep.cpus} | ({"GPU": sweep.gpus} if sweep.gpus else {})


class Stateless:
    """Tune pickles what it is given into snapshots that nobody reads; a source with its open files stays out."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Proposals(Stateless, Searcher):
    """The source's runs, as many at a time as there is room for."""

    def __init__(self, source: Source, experiment: Experiment) -> None:
        super().__init__()
        self.source, self.experiment = source, experiment
        self.running: set[str] = set()

    def set_search_properties(self, *given: Any, **more: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        # Tune would ask for all at once, also where drivers reserve nothing: workers would wait for each other, and a
        # searcher that learns would have nothing to learn from.
        if len(self.running) >= (self.experiment.sweep.concurrent or max(1, room(self.experiment, nodes_of_cluster()))):
            return None
        work = self.source.next()
        if work is None:
            return Searcher.FINISHED
        self.running.add(trial_id)
        # As text: Tune takes a mapping apart and writes every setting into the trial's name.
        return {"key": work.key, "experiment": json.dumps(work.experiment.model_dump(mode="json"))}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self.running.discard(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: what was proposed is the source's to remember."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a search goes on from its own files")


class Verdicts(Stateless, FIFOScheduler):
    """Hands a trial's reports to the source, and stops it where the source says so."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source = source

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        if "node" in result:
            self.source.started(trial.config["key"], result["node"])
        elif "error" not in result and self.source.reported(trial.config["key"], result) is not None:
            return TrialScheduler.STOP
        return TrialScheduler.CONTINUE


class Endings(Stateless, TrialProgressCallback):
    """Tells the source which trials are over; in the place of Tune's own, which prints a line for each."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source = source

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: Any, **info: Any) -> None:
        """Verdicts has seen it."""

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.source.ended(trial.config["key"], (trial.last_result or {}).get("error"))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Called when the retries are used up."""
        said = Path(trial.error_file).read_text().strip() if trial.error_file else "no reason is known"
        self.source.ended(trial.config["key"], f"its process or node was lost: {said.splitlines()[-1]}")
