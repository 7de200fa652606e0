"""What is kept of a run or sweep besides its result: the report and the MLflow record."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.run.checkpoint import read_json
from orchestrator.settings.config import Experiment

if TYPE_CHECKING:
    from orchestrator.records.tracking import Tracker


@contextmanager
def recorded(experiment: Experiment, folder: Path, settings: dict[str, Any]) -> Iterator[Tracker | None]:
    """The MLflow record of the run, sweep or study in ``folder``; None where the experiment's tracking is off.

    Where the block ends with an error the record is closed as FAILED, or as KILLED by Ctrl-C and other signals.
    """
    if not experiment.tracking.enabled:
        yield None
        return
    from orchestrator.records.tracking import Tracker  # MLflow takes a second to import

    tracker = Tracker(experiment)
    tracker.begin(folder, folder.name, settings)
    try:
        yield tracker
    except BaseException as error:
        tracker.end(folder, "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED")
        raise


def is_closed(experiment: Experiment, folder: Path) -> bool:
    """Whether the record of ``folder`` says that it is finished, or there is none to say so.

    A driver may be killed between a result and the end of its record.
    """
    note = read_json(folder / "mlflow.json") if experiment.tracking.enabled else None
    return note is None or note["status"] == "FINISHED"


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
