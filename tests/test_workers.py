"""Runs on real Ray Train workers against the same runs in this process."""

from __future__ import annotations

import functools
import json
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.util.state import list_actors

from orchestrator.checkpoint import read_json
from orchestrator.cluster import connected
from orchestrator.config import Experiment
from orchestrator.trainer import train
from tests.conftest import small_experiment

pytestmark = pytest.mark.ray
FSDP2 = ["scale.workers=2", "scale.sharding=fsdp2"]
Make = Callable[..., Experiment]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Small experiments in one folder."""
    return functools.partial(small_experiment, tmp_path_factory.mktemp("workers"), "checkpoint.every=2")


@pytest.fixture(scope="module", autouse=True)
def dashboard(make: Make) -> Iterator[str]:
    """A cluster of this machine for all tests of this file."""
    with connected(make("scale.workers=2")) as address:
        yield address


@pytest.fixture(scope="module")
def two_shards(make: Make) -> dict[str, Any]:
    return train(make("name=two", *FSDP2))


@pytest.fixture(scope="module")
def in_process(make: Make) -> dict[str, Any]:
    torch.set_num_threads(1)
    return train(make("name=here"))


def test_two_shards_give_the_tree_and_the_choices_of_one_process(
    two_shards: dict[str, Any], in_process: dict[str, Any]
) -> None:
    same_search(two_shards, in_process)


@pytest.mark.parametrize("settings", [["scale.workers=1"], ["scale.workers=2", "scale.sharding=ddp"]])
def test_so_do_one_worker_and_replicas(make: Make, in_process: dict[str, Any], settings: list[str]) -> None:
    same_search(train(make(f"name=other{len(settings)}", *settings)), in_process)


def test_the_dashboard_shows_the_run_and_its_workers(make: Make, two_shards: dict[str, Any], dashboard: str) -> None:
    token = (Path.home() / ".ray" / "auth_token").read_text().strip()
    url = f"{dashboard}/api/train/v2/runs/v1"
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})) as answer:
        runs = {run["name"]: run for run in json.load(answer)["train_runs"]}
    assert runs["two"]["status"] == "FINISHED"
    assert len(runs["two"]["attempts"][-1]["workers"]) == 2


def same_search(left: dict[str, Any], right: dict[str, Any]) -> None:
    """Equal decisions; accuracies may differ by an example or two, since sums are formed in another order."""
    one, other = left["method_report"], right["method_report"]
    assert one["chosen"] == other["chosen"]
    assert one["pulls"] == other["pulls"]
    assert [(n["parent"], n["task"]) for n in one["tree"]["nodes"]] == [
        (n["parent"], n["task"]) for n in other["tree"]["nodes"]
    ]
    for row, expected in zip(left["accuracy_matrix"], right["accuracy_matrix"], strict=True):
        assert row == pytest.approx(expected, abs=0.05)


def test_a_run_that_lost_a_worker_ends_like_an_undisturbed_one(make: Make, two_shards: dict[str, Any]) -> None:
    killed: list[int] = []
    experiment = make("name=lost", *FSDP2)
    thread = threading.Thread(target=kill_one_worker, args=(experiment.folder, killed), daemon=True)
    thread.start()
    result = train(experiment)
    thread.join(timeout=60)
    assert killed, "the run was over before a worker could be killed"
    assert result["accuracy_matrix"] == two_shards["accuracy_matrix"]
    assert result["validation_matrix"] == two_shards["validation_matrix"]
    assert result["method_report"] == two_shards["method_report"]


def kill_one_worker(folder: Path, killed: list[int]) -> None:
    """Wait until the run's third task is under way, then end one of its workers the hard way."""
    while (read_json(folder / "progress.json") or {"task": 0})["task"] < 2:
        time.sleep(0.02)
    workers = [a for a in list_actors(filters=[("state", "=", "ALIVE")]) if "TrainWorker" in a.class_name]
    killed.append(max(a.pid for a in workers))
    os.kill(killed[0], signal.SIGKILL)
