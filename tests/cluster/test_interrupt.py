"""Ctrl-C, as a terminal sends it, and what schedulers send: all ends that was started, and the run goes on later."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import psutil
import pytest

from orchestrator.run.checkpoint import read_json
from tests.support.experiments import SMALL
from tests.support.two_nodes import dashboard_says

PROJECT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("command", "workers", "number"),
    [
        ("train", 0, signal.SIGINT),
        ("train", 0, signal.SIGHUP),
        pytest.param("train", 2, signal.SIGINT, marks=[pytest.mark.ray, pytest.mark.slow]),
        pytest.param("train", 2, signal.SIGTERM, marks=[pytest.mark.ray, pytest.mark.slow]),
        pytest.param("sweep", 2, signal.SIGTERM, marks=pytest.mark.ray),
    ],
)
def test_a_signal_ends_everything_and_says_how_to_go_on(
    tmp_path: Path, command: str, workers: int, number: signal.Signals
) -> None:
    storage, progress = tmp_path / "runs", "stopped/progress.json"
    settings = [*SMALL, "train.epochs=200", "name=stopped", f"scale.workers={workers}", f"storage={storage}"]
    if command == "sweep":
        settings += ["sweep.space.method.rank=[2]"]
        progress = "stopped/trials/*/progress.json"
    process = subprocess.Popen(
        [sys.executable, "run.py", command, *settings],
        cwd=PROJECT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background job ignores the signal, and so would everything that it starts.
        preexec_fn=reset,
    )
    while not any((read_json(file) or {"step": 0})["step"] for file in storage.glob(progress)):
        assert process.poll() is None, process.stderr
        time.sleep(0.1)
    if workers:
        assert process.stderr is not None
        check_dashboard(process.stderr, workers)
    started = psutil.Process(process.pid).children(recursive=True)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, said = process.communicate()
    assert process.returncode == 128 + number
    assert "the same command goes on from its last checkpoint" in " ".join(said.split())
    assert "Traceback" not in said
    patience = time.monotonic() + 60  # Ray's workers end by themselves, a moment after their node
    while running(started) and time.monotonic() < patience:
        time.sleep(0.2)
    assert not running(started)


def reset() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def running(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended, whether or not somebody has asked for their exit status."""
    return [process for process in processes if process.is_running() and not ended(process)]


def ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def check_dashboard(said: IO[str], workers: int) -> None:
    """The page that the command named shows the run and its workers to the owner of this machine's token."""
    address = next(line.split()[-1] for line in said if "Ray dashboard: " in line)
    token = (Path.home() / ".ray" / "auth_token").read_text().strip()
    (run,) = dashboard_says(f"{address}/api/train/v2/runs/v1", token)["train_runs"]
    assert run["status"] == "RUNNING"
    assert len(run["attempts"][-1]["workers"]) == workers
