"""From a checked experiment to a finished run or sweep, with everything that a person at a terminal expects.

Bad input is found before a cluster, a record or a folder is made. Ctrl-C ends what was started and says how to go on.
Ray and MLflow take seconds to import, so only what needs them imports them.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.dataset import BenchmarkError
from benchmarks.models.backbones import check_backbone
from orchestrator.pages.console import say, where_stopped
from orchestrator.pages.progress import watching
from orchestrator.records.keep import close_run, close_sweep, open_record
from orchestrator.run.folder import claim, claim_sweep, finished, is_finished
from orchestrator.run.lock import held
from orchestrator.run.session import read_stream, run_here
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError
from orchestrator.settings.space import corners_of, samples, space_of

if TYPE_CHECKING:
    from orchestrator.records.tracking import Tracker


def launch_run(experiment: Experiment) -> dict[str, Any]:
    """Train one run with progress, record and report; returns result.json's content."""
    check_run(experiment)
    folder = experiment.folder
    if is_finished(experiment):
        say(f"{experiment.name} is finished; its result is shown. name=… starts another run")
        return finished(folder)
    with held(folder, "a run"), interruptible(experiment):
        claim(experiment)
        tracker = open_record(experiment)
        on_workers = experiment.scale.workers > 0
        with ray_where_needed(experiment, on_workers), watching(lambda: [folder], keeping_up(folder, tracker)):
            result = in_background(lambda: train(experiment)) if on_workers else train(experiment)
        close_run(folder, tracker)
    if result["skipped"]:
        say(f"{len(result['skipped'])} left out as unreadable, the first: {result['skipped'][0]}")
    return result


def train(experiment: Experiment) -> dict[str, Any]:
    """Run to the end, or go on with a run of this name, and return result.json's content.

    With workers, Ray has to be connected. UserError for anything that the user can mend.
    """
    if not claim(experiment):
        if experiment.scale.workers == 0:
            run_here(experiment)
        else:
            from orchestrator.cluster.trainer import train_on_workers

            train_on_workers(experiment)
    return finished(experiment.folder)


def launch_sweep(experiment: Experiment) -> dict[str, Any]:
    """Run a sweep with progress, records and reports; returns sweep.json's content."""
    check_sweep(experiment)
    from orchestrator.cluster.sweep import completed, sweep

    claim_sweep(experiment)
    if summary := completed(experiment):
        say(f"{experiment.name} is finished; its result is shown. name=… starts another sweep")
        return summary
    with interruptible(experiment):
        tracker = open_record(experiment)
        with ray_where_needed(experiment, True), watching(lambda: trial_folders(experiment)):
            summary = in_background(lambda: sweep(experiment))
        close_sweep(experiment.folder, tracker, summary)
    for trial in summary["trials"]:
        if trial["status"] == "failed":
            say(f"trial {trial['id']} failed: {trial['error']}; the same command tries it again")
    return summary


def check_run(experiment: Experiment) -> None:
    """All that can be refused before a run starts; a finished one needs neither data nor weights."""
    if not is_finished(experiment):
        check(experiment)


def check_sweep(experiment: Experiment) -> None:
    """The same for a sweep: every corner of its space has to be an experiment that can start here."""
    space = space_of(experiment)
    for corner in corners_of(experiment, space):
        check_workers(corner)
    samples(experiment, space)  # the number of trials has to fit the grid
    check(experiment)


def check(experiment: Experiment) -> None:
    """Everything that can be wrong with an experiment on this machine."""
    try:
        check_backbone(experiment.backbone, experiment.head)
    except BenchmarkError as error:
        raise UserError(str(error)) from None
    check_workers(experiment)
    read_stream(experiment)


def check_workers(experiment: Experiment) -> None:
    if experiment.scale.workers:
        from orchestrator.cluster.connect import check_workers_here

        check_workers_here(experiment)


def trial_folders(experiment: Experiment) -> list[Path]:
    return sorted((experiment.folder / "trials").glob(f"{experiment.name}-*"))


def keeping_up(folder: Path, tracker: Tracker | None) -> Callable[[], None]:
    """Brings the record up to date at each call; why it could not be written is said once, not twice a second."""
    said: set[str] = set()

    def keep_up() -> None:
        reason = tracker.keep_up(folder) if tracker else None
        if reason and reason not in said:
            said.add(reason)
            say(f"record: {reason}; it is brought up to date when it can be written again")

    return keep_up


@contextmanager
def ray_where_needed(experiment: Experiment, needed: bool) -> Iterator[None]:
    if not needed:
        yield
        return
    # The trainer too before Ray is joined: nodes that share a disk may remove a job's files when another one is done.
    from orchestrator.cluster import trainer  # noqa: F401
    from orchestrator.cluster.connect import connected

    with connected(experiment) as dashboard:
        say(f"Ray dashboard: {dashboard}")
        yield


def in_background(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Do ``work`` in a thread: in the main one, Ray's own handlers of Ctrl-C would end the process without a word."""
    future: Future[dict[str, Any]] = Future()

    def call() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return future.result()


@contextmanager
def interruptible(experiment: Experiment) -> Iterator[None]:
    """Turn Ctrl-C into one line that says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not cut the clean-up short
        say(f"stopped at {where_stopped(experiment.folder)}; the same command goes on from its last checkpoint")
        raise
