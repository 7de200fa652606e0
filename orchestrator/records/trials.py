"""The records of many runs, written by a thread of their own while the runs go on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.records.keep import close_run
from orchestrator.run.trials import Source, Work

if TYPE_CHECKING:
    from orchestrator.records.tracking import Tracker


class Recorded:
    """A source whose runs are recorded; ``running`` gets the folders of those under way, by key.

    The driver has to answer trials that wait for their next settings, so that it does not wait for a server.
    """

    def __init__(self, source: Source, tracker: Tracker | None, parent: Path | None, running: dict[str, Path]) -> None:
        self.source, self.tracker, self.parent, self.running = source, tracker, parent, running
        self.works: dict[str, Work] = {}
        self.failures: list[str] = []
        self.thread = ThreadPoolExecutor(max_workers=1)  # one: a record is begun before it is brought up to date

    def next(self) -> Work | None:
        work = self.source.next()
        if work:
            self.works[work.key] = work
        return work

    def started(self, key: str, node: str) -> None:
        self.source.started(key, node)
        work = self.works[key]
        experiment = work.experiment
        settings = experiment.identity() | ({"trial": work.chosen} if work.chosen else {})
        self.running[key] = experiment.folder
        self.later(lambda tracker: tracker.begin(experiment.folder, key, settings, parent=self.parent))

    def reported(self, key: str, metrics: dict[str, Any]) -> object | None:
        verdict = self.source.reported(key, metrics)
        folder = self.works[key].experiment.folder
        self.later(lambda tracker: tracker.keep_up(folder))
        return verdict

    def ended(self, key: str, error: str | None) -> None:
        self.source.ended(key, error)
        work = self.works[key]
        folder, status = work.experiment.folder, "FAILED" if error else "FINISHED"
        self.running.pop(key, None)
        if work.chosen:
            # No page of its own, which takes longer to draw than a short trial to run: ``run.py report`` writes it.
            self.later(lambda tracker: tracker.end(folder, status))
        else:
            self.thread.submit(self.tried, lambda: close_run(folder, self.tracker, status))

    def later(self, write: Callable[[Tracker], Any]) -> None:
        tracker = self.tracker
        if tracker:
            self.thread.submit(self.tried, lambda: write(tracker))

    def tried(self, write: Callable[[], Any]) -> None:
        """A record that cannot be written must not end the runs; what went wrong is told at the end."""
        try:
            write()
        except Exception as error:
            self.failures.append(f"{type(error).__name__}: {error}".splitlines()[0])

    def finish(self) -> list[str]:
        """Wait for what is still to be written; what could not be, in lines."""
        self.thread.shutdown(wait=True)
        return self.failures
