"""MLflow records of a sweep's trials, written from Tune's callbacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from orchestrator.records.keep import close_run
from orchestrator.records.tracking import Tracker
from orchestrator.settings.config import Experiment


class TrialRecords(tune.Callback):
    """A child record for each trial, written by Tune's driver; the id of each record is in the trial's folder."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.tracker: Tracker | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks into its snapshots; where a sweep goes on, setup makes a new client.
        return {"experiment": self.experiment, "tracker": None}

    def setup(self, *stop: Any, **info: Any) -> None:
        if self.experiment.tracking.enabled:
            self.tracker = Tracker(self.experiment)

    def folder(self, trial: Trial) -> Path:
        return self.experiment.folder / "trials" / f"{self.experiment.name}-{trial.trial_id}"

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        if self.tracker:
            settings = self.experiment.identity() | {"trial": trial.config["settings"]}
            self.tracker.begin(self.folder(trial), trial.trial_id, settings, parent=self.experiment.folder)

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        if self.tracker:
            # From the file and not from ``result``: it has the whole history, also what no report has brought here.
            self.tracker.sync(self.folder(trial))

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        close_run(self.folder(trial), self.tracker)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        if self.tracker:
            self.tracker.end(self.folder(trial), "FAILED")
