"""MLflow beside a run: a sweep is a parent run, a trial its child, a single run stands alone. Only the driver writes.

What is to be recorded lies in the runs' folders. A thread sends it from there, so that a server that is slow or down
holds up neither training nor search; what it lacks at the end, ``run.py sync`` sends.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from orchestrator.pages.console import say
from orchestrator.records import record
from orchestrator.records.connection import Connection, reason
from orchestrator.records.samples import Sampler
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError

RETRY_SECONDS = 10.0  # between two tries while the record cannot be written
END_SECONDS = 30.0  # the longest that the end of a run waits for its record


class Tracker:
    """Records the folders of one run, or of a sweep and its trials."""

    def __init__(self, experiment: Experiment) -> None:
        self.connection = Connection(experiment)
        self.sampler = Sampler()
        self.changed = threading.Condition()
        self.waiting: dict[Path, None] = {}  # folders to look at, in order
        self.sending: Path | None = None
        self.trouble: dict[Path, str] = {}  # why what a folder has could not be sent
        self.next_try = 0.0
        self.thread: threading.Thread | None = None

    def begin(self, folder: Path, name: str, settings: dict[str, Any], parent: Path | None = None) -> None:
        """Create the record of ``folder``, or go on with it. UserError where a single run's or a sweep's cannot be.

        That of a trial, which has a ``parent``, follows in its own time.
        """
        try:
            record.begin(folder, self.connection, name, settings, parent)
            trouble = self.sent_now(folder) if parent is None else None
        except (OSError, UserError) as error:
            trouble = reason(error)
        if parent is not None:
            self.look_at(folder)
            if trouble:
                say(f"record: {trouble}; run.py sync {parent.name} makes that of {name}")
        elif trouble:
            raise UserError(f"the record cannot be begun: {trouble}; correct it, or set tracking.enabled=false")

    def sync(self, folder: Path) -> None:
        """Have the tasks that ``folder`` has learned since sent; returns at once."""
        self.keep_up(folder)

    def keep_up(self, folder: Path) -> str | None:
        """``sync`` for a run under way; why its record could not be brought up to date, where it could not."""
        try:
            if record.read_note(folder).get("parent") is None:
                self.sampler.sample(folder)
            self.look_at(folder)
        except (OSError, UserError) as error:
            return reason(error)
        with self.changed:
            return self.trouble.get(folder)

    def end(self, folder: Path, status: str = "FINISHED") -> None:
        """Close the record with summary and files, ``status`` as MLflow names it; never raises, says what is missing.

        A trial's end is sent in its own time, a single run's or a sweep's before this returns, with its trials' ends.
        """
        try:
            record.finish(folder, status)
            for one in (folder, *record.children(folder)):
                if status != "FINISHED" and record.read_note(one).get("status") == "RUNNING":
                    record.finish(one, "KILLED")  # a trial that a sweep which ends before its time leaves behind
                self.look_at(one)
            trouble = None if record.read_note(folder).get("parent") else self.drained()
        except (OSError, UserError) as error:
            trouble = reason(error)
        if trouble:
            say(f"record: {trouble}; run.py sync {folder.name} sends what is missing")

    def sent_now(self, folder: Path) -> str | None:
        """Send in this thread; the reason where that fails."""
        try:
            record.push(self.connection, folder)
        except Exception as error:  # a record must never end a run, whatever a server answers
            return reason(error)
        return None

    def look_at(self, folder: Path) -> None:
        with self.changed:
            self.waiting[folder] = None
            self.changed.notify_all()
            if self.thread is None:
                self.thread = threading.Thread(target=self.work, daemon=True, name="record")
                self.thread.start()

    def work(self) -> None:
        """Send folder by folder; after a failure all of them wait, since the next would fail alike."""
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting)
                while (left := self.next_try - time.monotonic()) > 0:
                    self.changed.wait(left)
                self.sending = next(iter(self.waiting))
                del self.waiting[self.sending]
            self.note(self.sending, self.sent_now(self.sending))

    def note(self, folder: Path, trouble: str | None) -> None:
        with self.changed:
            self.sending = None
            self.trouble.pop(folder, None)
            if trouble:
                self.trouble[folder] = trouble
                self.waiting[folder] = None
                self.next_try = time.monotonic() + RETRY_SECONDS
            self.changed.notify_all()

    def drained(self) -> str | None:
        """Wait until all is sent, a try from now on fails, or time is up; the reason of what is left."""
        with self.changed:
            self.trouble.clear()
            self.next_try = 0.0
            self.changed.notify_all()
            over = self.changed.wait_for(lambda: self.trouble or not (self.waiting or self.sending), END_SECONDS)
            if self.trouble:
                return next(iter(self.trouble.values()))
            return None if over else "the server is slow"
