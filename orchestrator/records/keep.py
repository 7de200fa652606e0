"""What is kept of a run or sweep besides its result: the report and the MLflow record."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.run.checkpoint import read_json
from orchestrator.settings.config import Experiment

if TYPE_CHECKING:
    from orchestrator.records.tracking import Tracker


def open_record(experiment: Experiment) -> Tracker | None:
    """Begin the MLflow record of a single run, or of a sweep; None where tracking is off."""
    tracker = open_tracker(experiment)
    if tracker:
        tracker.begin(experiment.folder, experiment.name, experiment.identity())
    return tracker


def open_tracker(experiment: Experiment) -> Tracker | None:
    """What writes the records of the experiment's runs; None where tracking is off."""
    if not experiment.tracking.enabled:
        return None
    from orchestrator.records.tracking import Tracker  # MLflow takes a second to import

    return Tracker(experiment)


def close_run(folder: Path, tracker: Tracker | None, status: str = "FINISHED") -> None:
    """Write the report of a run that has a result, and end its record."""
    if result := read_json(folder / "result.json"):
        from orchestrator.pages import report  # matplotlib takes a second to import

        report.write_run(folder, result)
    if tracker:
        tracker.end(folder, status)


def close_sweep(folder: Path, tracker: Tracker | None, summary: dict[str, Any]) -> None:
    """Write the sweep's report with its best trial's, and end its record."""
    from orchestrator.pages import report

    report.write_sweep(folder, summary)
    if tracker:
        tracker.end(folder)
