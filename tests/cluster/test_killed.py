"""Sweeps and studies whose driver, cluster and worker are killed, and whose folder is moved, end as undisturbed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.run.checkpoint import read_json
from tests.cluster.test_interrupt import running
from tests.support.experiments import SMALL
from tests.support.record import records

PROJECT = Path(__file__).resolve().parents[2]
WORK = [*SMALL, "tracking.enabled=true", "train.epochs=6"]
SWEEP = ["sweep", *WORK, "name=s", "sweep.trials=8", "sweep.searcher=random", "sweep.confirm=0", "sweep.concurrent=2"]
SWEEP += ["sweep.space.method.rank={int: [2, 5]}", "sweep.space.train.learning_rate={loguniform: [1e-4, 1e-2]}"]
STUDY = ["compare", "methods=[lora,sdlora]", "seeds=[0,1,2]", *[s for s in WORK if "search" not in s]]
PATIENCE = 120  # seconds until something happens that is waited for


class Command:
    """``run.py`` in a process of its own, on a storage that may be moved between two of them."""

    def __init__(self, arguments: list[str], storage: Path) -> None:
        self.storage = storage
        page = [f"--output={storage / 'page.md'}"] if arguments[0] == "compare" else []
        self.log = (storage.parent / "log").open("a+")
        self.process = subprocess.Popen(
            [sys.executable, "run.py", *arguments, *page, f"storage={storage}"],
            cwd=PROJECT,
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )

    def wait_for(self, count: int) -> None:
        """Until that many runs have their result; AssertionError where the command ends before."""
        self.wait_until(lambda: len(results(self.storage)) >= count)

    def wait_until(self, reached: Callable[[], Any]) -> None:
        limit = time.monotonic() + PATIENCE
        while not reached():
            assert self.process.poll() is None and time.monotonic() < limit, Path(self.log.name).read_text()
            time.sleep(0.05)

    def wait_for_worker(self) -> None:
        """Until a process that does trials is there."""
        self.wait_until(lambda: self.named("ray::ImplicitFunc"))

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def named(self, *names: str) -> list[psutil.Process]:
        return [process for process in self.descendants() if process.name().startswith(names)]

    def ended(self) -> int:
        """The exit code, once nothing of the command is left."""
        left = self.descendants() if self.process.poll() is None else []
        code = self.process.wait(PATIENCE)
        limit = time.monotonic() + PATIENCE
        while running(left) and time.monotonic() < limit:
            time.sleep(0.1)
        self.log.close()
        return code


def kill_driver(command: Command) -> None:
    left = command.descendants()
    os.kill(command.process.pid, signal.SIGKILL)
    command.process.wait()
    limit = time.monotonic() + PATIENCE
    while running(left) and time.monotonic() < limit:
        time.sleep(0.1)
    assert not running(left), "what a dead driver leaves behind ends by itself"
    command.log.close()


def kill_cluster(command: Command) -> None:
    for process in command.named("raylet", "gcs_server"):
        process.kill()
    assert command.ended() != 0


def kill_worker(command: Command) -> None:
    """One that trains; its trial is tried again, and the command goes on to its end."""
    command.wait_for_worker()
    command.named("ray::ImplicitFunc")[0].kill()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "total"), [(SWEEP, 8), (STUDY, 6)], ids=["sweep", "study"])
def test_killed_three_times_and_moved_each_run_ends_once_with_the_undisturbed_numbers(
    tmp_path: Path, arguments: list[str], total: int
) -> None:
    whole, moved = tmp_path / "whole" / "runs", tmp_path / "moved" / "runs"
    whole.mkdir(parents=True)
    assert Command(arguments, whole).ended() == 0
    storage, dice = tmp_path / "killed" / "runs", random.Random(total)
    storage.mkdir(parents=True)
    for number, kill in enumerate((kill_driver, kill_cluster, kill_worker)):
        command = Command(arguments, storage)
        command.wait_for(2 * number + dice.randint(0, 1))
        command.wait_for_worker()
        time.sleep(dice.uniform(0, 2))
        kill(command)
        if kill is kill_cluster:
            moved.parent.mkdir()
            shutil.move(storage, moved)
            storage = moved
    assert command.ended() == 0
    assert numbers(moved) == numbers(whole)
    assert children(moved) == children(whole) == total


def results(storage: Path) -> list[Path]:
    """Those of runs; the record has copies of them."""
    return [file for file in storage.rglob("result.json") if "mlflow-artifacts" not in file.parts]


def numbers(storage: Path) -> dict[str, Any]:
    """What each run gave, by its folder: bits, as the same steps are taken in the same kind of process."""
    found = {}
    for file in results(storage):
        result = read_json(file)
        kept = {key: result[key] for key in ("accuracy_matrix", "validation_matrix", "config", "stored_parameters")}
        found[str(file.parent.relative_to(storage))] = kept
    return found


def children(storage: Path) -> int:
    """Runs below one parent in the record, all of which are finished."""
    found = records(f"sqlite:///{storage / 'mlflow.db'}")
    parents = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    below = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]
    assert len(parents) == 1 and len(below) == len(found) - 1
    assert {run.info.status for run in found} == {"FINISHED"}
    return len(below)
