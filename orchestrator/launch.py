"""From a checked experiment to a finished run or sweep, with everything that a person at a terminal expects.

Bad input is found before a cluster, a record or a folder is made. Ctrl-C ends what was started and says how to go on.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.dataset import BenchmarkError
from benchmarks.models.backbones import check_backbone
from orchestrator.cluster.connect import check_workers_here, connected
from orchestrator.cluster.sweep import check_space, completed, samples, space_of, sweep
from orchestrator.cluster.trainer import finished, train
from orchestrator.pages.console import messages, watching, where_stopped
from orchestrator.records.keep import close_run, close_sweep, open_record
from orchestrator.records.tracking import tracking_uri
from orchestrator.run.session import claim, claim_sweep, is_finished, read_stream
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError


def launch_run(experiment: Experiment) -> dict[str, Any]:
    """Train one run with progress, record and report; returns result.json's content."""
    check_run(experiment)
    folder = experiment.folder
    if claim(experiment):
        messages.print(f"{experiment.name} is finished; its result is shown. name=… starts another run")
        return finished(folder)
    with interruptible(experiment):
        tracker = open_record(experiment)
        looking = watching(lambda: [folder], lambda: tracker.sync(folder) if tracker else None)
        on_workers = experiment.scale.workers > 0
        with ray_where_needed(experiment, on_workers), looking:
            result = in_background(lambda: train(experiment)) if on_workers else train(experiment)
        close_run(folder, tracker)
    if result["skipped"]:
        messages.print(f"{len(result['skipped'])} left out as unreadable, the first: {result['skipped'][0]}")
    return result


def launch_sweep(experiment: Experiment) -> dict[str, Any]:
    """Run a sweep with progress, records and reports; returns sweep.json's content."""
    check(experiment)
    space = space_of(experiment)
    check_space(experiment, space)
    samples(experiment, space)  # the number of trials has to fit the grid
    claim_sweep(experiment)
    if summary := completed(experiment):
        messages.print(f"{experiment.name} is finished; its result is shown. name=… starts another sweep")
        return summary
    with interruptible(experiment):
        tracker = open_record(experiment)
        with ray_where_needed(experiment, True), watching(lambda: trial_folders(experiment)):
            summary = in_background(lambda: sweep(experiment))
        close_sweep(experiment.folder, tracker, summary)
    for trial in summary["trials"]:
        if trial["status"] == "failed":
            messages.print(f"trial {trial['id']} failed: {trial['error']}; the same command tries it again")
    return summary


def check_run(experiment: Experiment) -> None:
    """All that can be refused before a run starts; a finished one needs neither data nor weights."""
    if not is_finished(experiment):
        check(experiment)


def check(experiment: Experiment) -> None:
    """Everything that can be wrong with an experiment on this machine."""
    try:
        check_backbone(experiment.backbone, experiment.head)
    except BenchmarkError as error:
        raise UserError(str(error)) from None
    check_workers_here(experiment)
    read_stream(experiment)


def trial_folders(experiment: Experiment) -> list[Path]:
    return sorted((experiment.folder / "trials").glob(f"{experiment.name}-*"))


@contextmanager
def ray_where_needed(experiment: Experiment, needed: bool) -> Iterator[None]:
    if not needed:
        yield
        return
    with connected(experiment) as dashboard:
        messages.print(f"Ray dashboard: {dashboard}")
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
        messages.print(
            f"stopped at {where_stopped(experiment.folder)}; the same command goes on from its last checkpoint"
        )
        raise


def serve_record(experiment: Experiment, port: int) -> None:
    """MLflow's own page, on this machine only."""
    uri = tracking_uri(experiment)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise UserError(f"tracking.uri={uri}: there is no record yet; train a run first")
    if uri.startswith("http"):
        messages.print(f"the record is served at {uri}")
        return
    messages.print(f"MLflow: http://127.0.0.1:{port} (Ctrl-C ends it)")
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", "127.0.0.1"]
    subprocess.run([*command, "--port", str(port)], check=False)
