"""How runs are executed: what is checked before, where they run, and what Ctrl-C says.

Ray takes seconds to import, so only what needs it imports it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TypeVar

from benchmarks.dataset import BenchmarkError
from benchmarks.models.backbones import check_backbone
from benchmarks.overview import overview, overview_lines
from orchestrator.pages.console import say
from orchestrator.pages.progress import watching
from orchestrator.run.folder import is_finished
from orchestrator.run.session import read_stream
from orchestrator.run.sharding import device_here
from orchestrator.run.trials import Source, run_in_this_process
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError

# Ctrl-C, what schedulers send before they kill, and the end of a terminal.
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Result = TypeVar("Result")
Execute = Callable[[Source, Experiment, Path], None]


def check_run(experiment: Experiment) -> list[str]:
    """All that can be refused before a run starts; a finished one needs neither data nor weights.

    Returns what is to be said of the data.
    """
    return [] if is_finished(experiment) else check(experiment)


def check(experiment: Experiment) -> list[str]:
    """Everything that can be wrong with an experiment on this machine; returns what is to be said of its data."""
    device_here(experiment.device)
    try:
        check_backbone(experiment.backbone, experiment.head)
    except BenchmarkError as error:
        raise UserError(str(error)) from None
    return overview_lines(overview(read_stream(experiment)))


def check_room(experiments: Sequence[Experiment]) -> None:
    """Whether runs that need Ray fit on this machine; another cluster has to answer, and is asked once it is joined."""
    if on_ray(experiments):
        from orchestrator.cluster import room
        from orchestrator.cluster.address import cluster_address
        from orchestrator.cluster.connect import check_sockets

        if cluster_address():
            return
        check_sockets()
        for experiment in experiments:
            room.check_room(experiment, room.this_machine())


def on_ray(experiments: Sequence[Experiment]) -> bool:
    """A single run, or one at a time, in one process and without a cluster, needs none."""
    single = len(experiments) == 1 or all(one.sweep.concurrent == 1 for one in experiments)
    return not single or any(one.scale.workers for one in experiments) or bool(os.environ.get("RAY_ADDRESS"))


@contextmanager
def executor(experiments: Sequence[Experiment], running: dict[str, Path]) -> Iterator[Execute]:
    """What does the runs of a source, given an experiment with their resources and a scratch folder for Ray Tune.

    They run in this process, or as trials of Tune. ``running`` is its caller's to keep: the folders to tell the
    progress of.
    """
    needed = on_ray(experiments)
    with ray_where_needed(experiments, needed), watching(lambda: list(running.values())):
        if needed:
            from orchestrator.cluster.executor import run_on_cluster

            yield lambda source, needs, scratch: in_background(lambda: run_on_cluster(source, needs, scratch))
        else:
            yield lambda source, needs, scratch: run_in_this_process(source)


@contextmanager
def ray_where_needed(experiments: Sequence[Experiment], needed: bool) -> Iterator[None]:
    if not needed:
        yield
        return
    # The trainer too before Ray is joined: nodes that share a disk may remove a job's files when another one is done.
    from orchestrator.cluster import trainer  # noqa: F401
    from orchestrator.cluster.connect import connected

    # Once more: Ray takes the signal for itself that schedulers send.
    with connected(experiments) as dashboard, one_interrupt():
        say(f"Ray dashboard: {dashboard}")
        yield


def in_background(work: Callable[[], Result]) -> Result:
    """Do ``work`` in a thread: in the main one, Ray's own handlers of Ctrl-C would end the process without a word."""
    future: Future[Result] = Future()

    def call() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return future.result()


@contextmanager
def interruptible(standing: Callable[[], str]) -> Iterator[None]:
    """Turn Ctrl-C, and what schedulers send, into one line that says where things are ``standing`` and how to go on."""
    with one_interrupt():
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            say(f"stopped at {standing()}; the same command goes on from its last checkpoint")
            raise


@contextmanager
def one_interrupt() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, others of ENDINGS SystemExit; a second one does not cut the clean-up short."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        for one in ENDINGS:
            signal.signal(one, signal.SIG_IGN)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
        yield
        return
    # What is ignored stays so, as under nohup.
    handled = [one for one in ENDINGS if one == signal.SIGINT or signal.getsignal(one) != signal.SIG_IGN]
    before = {one: signal.signal(one, interrupt) for one in handled}
    try:
        yield
    finally:
        for one, handler in before.items():
            # None: it was not set from Python.
            signal.signal(one, handler or (signal.default_int_handler if one == signal.SIGINT else signal.SIG_DFL))
