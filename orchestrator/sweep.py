"""A sweep from its checks to its page: the search, the runs that confirm its choice, records and reports."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.execute import Execute, check, check_room, executor, interruptible
from orchestrator.pages.console import say
from orchestrator.records.keep import close_sweep, is_closed, recorded
from orchestrator.records.trials import Recorded
from orchestrator.register import register_winner
from orchestrator.run.checkpoint import write_json
from orchestrator.run.folder import claim_sweep
from orchestrator.run.lock import held
from orchestrator.run.session import read_stream
from orchestrator.run.trials import Rows, Source, Work
from orchestrator.search.ledger import Trial
from orchestrator.search.protocol import confirmations, trial_experiment
from orchestrator.search.search import Search
from orchestrator.search.searchers import number_of_trials
from orchestrator.search.space import check_space, space_of
from orchestrator.search.summary import completed, summarise
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import IncompleteError

if TYPE_CHECKING:
    from orchestrator.records.tracking import Tracker

SNAPSHOT_SECONDS = 1.0
SNAPSHOT_SHARE = 0.05  # of the driver's time at most, as a snapshot reads every trial's result
AS_MANY = 2  # a search has more than one trial to run, however many it may be


def launch_sweep(experiment: Experiment) -> dict[str, Any]:
    """Run a sweep with progress, records and reports, or go on with one; returns sweep.json's content."""
    length, about_data = check_sweep(experiment)
    claim_sweep(experiment)
    if (summary := completed(experiment)) and is_closed(experiment, experiment.folder):
        say(f"{experiment.name} is finished; its result is shown. name=… starts another sweep")
        return summary
    with held(experiment.folder, "a sweep"):
        for line in about_data:
            say(line)
        sweep = Sweep(experiment, length)
        with interruptible(sweep.standing):
            summary = sweep.run()
            register_winner(experiment, summary)
    return summary


def check_complete(summary: dict[str, Any]) -> None:
    """IncompleteError where a trial has failed, or the choice is not confirmed though that was asked for."""
    failed = sum(trial["status"] == "failed" for trial in summary["trials"])
    if failed:
        name, total = summary["name"], len(summary["trials"])
        raise IncompleteError(f"{name}: {failed} of {total} trials failed; the same command tries them again")
    if not summary["complete"]:
        raise IncompleteError(f"{summary['name']}: the choice is not confirmed; the same command goes on")


def check_sweep(experiment: Experiment) -> tuple[int, list[str]]:
    """All that can be refused before a sweep starts; returns how many tasks a trial learns, and what its data are.

    Every end of its space, and every run that confirms its choice, has to be an experiment that can start here.
    """
    entries = space_of(experiment)
    check_space(experiment, entries)
    number_of_trials(experiment, entries)
    check_room(AS_MANY * [experiment])
    about_data = check(experiment)
    for run in confirmations(experiment, {})[:1]:
        check(run)
    return len(read_stream(trial_experiment(experiment, {}, "check")).tasks), about_data


class Sweep:
    """One sweep under way."""

    def __init__(self, experiment: Experiment, length: int) -> None:
        self.experiment = experiment
        self.search = Search(experiment, length, self.changed)
        self.running: dict[str, Path] = {}
        self.next_snapshot = 0.0

    def run(self) -> dict[str, Any]:
        """All trials, then the chosen settings with fresh seeds, and the page; returns sweep.json's content."""
        experiment = self.experiment
        # Recorded once Ray has said whether there is room: what is refused leaves no record.
        with (
            executor(AS_MANY * [experiment], self.running) as execute,
            recorded(experiment, experiment.folder, experiment.identity()) as tracker,
        ):
            self.do(execute, tracker, self.search)
            best = summarise(self.search)["best"]
            if best is not None:
                self.confirm(execute, tracker, self.search.trials[int(best)].settings)
            summary = self.write()
            close_sweep(experiment.folder, tracker, summary)
        return summary

    def confirm(self, execute: Execute, tracker: Tracker | None, settings: dict[str, Any]) -> None:
        runs = Rows([Work(run.name, run) for run in confirmations(self.experiment, settings)])
        self.do(execute, tracker, runs)
        for name, error in runs.errors.items():
            say(f"{name} failed: {error}; the same command tries it again")

    def do(self, execute: Execute, tracker: Tracker | None, source: Source) -> None:
        runs = Recorded(source, tracker, self.experiment.folder, self.running)
        try:
            execute(runs, self.experiment, self.experiment.folder / "tune")
        finally:
            for failure in runs.finish():
                say(f"record: {failure}")

    def standing(self) -> str:
        over = sum(trial.over for trial in self.search.trials)
        return f"{over} of {self.search.total} trials"

    def changed(self, trial: Trial) -> None:
        """A trial was started, stopped, or has ended."""
        if trial.status == "running" and trial.stopped:
            say(f"trial {trial.id}: {trial.stopped['text']}")
        if trial.status == "finished":
            wanted = self.experiment.sweep.objectives
            values = ", ".join(
                f"{name.replace('_', ' ')} {value:.4g}" for name, value in trial.values.items() if name in wanted
            )
            say(f"trial {trial.id}: finished, {values} ({self.standing()})")
        if trial.status == "failed":
            say(f"trial {trial.id}: failed: {trial.error} ({self.standing()})")
        if time.monotonic() > self.next_snapshot:
            self.write()

    def write(self) -> dict[str, Any]:
        """sweep.json as things stand."""
        began = time.monotonic()
        summary = summarise(self.search)
        write_json(self.experiment.folder / "sweep.json", summary)
        now = time.monotonic()
        self.next_snapshot = now + max(SNAPSHOT_SECONDS, (now - began) / SNAPSHOT_SHARE)
        return summary
