"""Many runs as one piece of work: what proposes them, what is told about them, and how they run in this process.

A row of a study, a trial of a sweep and a run that confirms its choice are the same thing here. Ray Tune runs them in
``cluster/executor.py``; both ways hand a source the same calls in the same order.
"""

from __future__ import annotations

import socket
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from orchestrator.run.folder import claim, finished
from orchestrator.run.session import run_here
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError

# What a trial tells after each task: nothing that a test split had a part in can reach a searcher or a scheduler.
TOLD = ("task", "validation_accuracy", "anytime_validation_accuracy")


@dataclass(frozen=True)
class Work:
    """One run to do; ``key`` names it in its source, ``chosen`` are the settings it was proposed with."""

    key: str
    experiment: Experiment
    chosen: dict[str, Any] = field(default_factory=dict)


class Source(Protocol):
    """Proposes runs and is told what happens to them, by one thread."""

    def next(self) -> Work | None:
        """The next run, None where no more will come."""

    def started(self, key: str, node: str) -> None:
        """A run begins on ``node``; again where it is tried once more."""

    def reported(self, key: str, metrics: dict[str, Any]) -> object | None:
        """The numbers of ``TOLD`` after a task; anything but None ends the run there."""

    def ended(self, key: str, error: str | None) -> None:
        """A run is over: its folder has a result, or was stopped, or ``error`` says in one line what failed."""


class Rows:
    """A source that is a list of runs, all of which go to their end; ``errors`` says which failed, and why."""

    def __init__(self, works: Sequence[Work], changed: Callable[[], None] = lambda: None) -> None:
        self.waiting, self.changed = list(works), changed
        self.errors: dict[str, str] = {}

    def next(self) -> Work | None:
        return self.waiting.pop(0) if self.waiting else None

    def started(self, key: str, node: str) -> None:
        self.errors.pop(key, None)

    def reported(self, key: str, metrics: dict[str, Any]) -> None:
        return None

    def ended(self, key: str, error: str | None) -> None:
        if error:
            self.errors[key] = error
        self.changed()


class Stopped(Exception):
    """Ends a run in this process after a task, where its source says so."""


def run_in_this_process(source: Source) -> None:
    """One run after the other, without a cluster; Ctrl-C ends all."""
    while work := source.next():
        source.started(work.key, socket.gethostname())

        def report(metrics: dict[str, Any], key: str = work.key) -> None:
            if source.reported(key, told(metrics)) is not None:
                raise Stopped

        source.ended(work.key, attempt(work.experiment, report))


def attempt(experiment: Experiment, report: Callable[[dict[str, Any]], None]) -> str | None:
    """Do a run in this process, or go on with it; what failed in one line, or None."""
    return outcome(experiment, lambda: run_here(experiment, report))


def outcome(experiment: Experiment, run: Callable[[], None]) -> str | None:
    """``run``'s failure in one line, with all of it in error.log; a run that is finished is not run again."""
    try:
        if not claim(experiment):
            run()
            finished(experiment.folder)  # workers write an error that the user can mend to a file
    except Stopped:
        return None
    except UserError as error:
        return str(error)
    except Exception as error:  # one trial's failure is not the others'
        log = experiment.folder / "error.log"
        log.write_text(traceback.format_exc())
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]} (all of it in its error.log)"
    return None


def told(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: metrics[name] for name in TOLD}
