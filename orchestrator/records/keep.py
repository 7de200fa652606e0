"""What is kept of a run or sweep besides its result: the report and the MLflow record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from orchestrator.pages import report
from orchestrator.records.tracking import Tracker
from orchestrator.run.checkpoint import read_json
from orchestrator.settings.config import Experiment


def open_record(experiment: Experiment) -> Tracker | None:
    """Begin the MLflow record of a single run, or of a sweep; None where tracking is off."""
    if not experiment.tracking.enabled:
        return None
    tracker = Tracker(experiment)
    tracker.begin(experiment.folder, experiment.name, experiment.identity())
    return tracker


def close_run(folder: Path, tracker: Tracker | None, status: str = "FINISHED") -> None:
    """Write the report of a run that has a result, and end its record."""
    if result := read_json(folder / "result.json"):
        report.write(folder / "report.html", report.run_report(result))
    if tracker:
        tracker.end(folder, status)


def close_sweep(folder: Path, tracker: Tracker | None, summary: dict[str, Any]) -> None:
    """Write the sweep's report with its best trial's, and end its record."""
    best = next((t for t in summary["trials"] if t["id"] == summary["best"]), None)
    result = read_json(Path(best["folder"]) / "result.json") if best else None
    report.write(folder / "report.html", report.sweep_report(summary, result))
    if tracker:
        if best:
            tracker.log_best(folder, best)
        tracker.end(folder)


class TrialRecords(tune.Callback):
    """Keeps a child record for each trial, in Tune's driver. Which record is whose is kept in the trials' folders."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.tracker: Tracker | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {
            "experiment": self.experiment,
            "tracker": None,
        }  # Tune stores its callbacks; a client is no data

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
            self.tracker.sync(self.folder(trial))

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        close_run(self.folder(trial), self.tracker)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        if self.tracker:
            self.tracker.end(self.folder(trial), "FAILED")
