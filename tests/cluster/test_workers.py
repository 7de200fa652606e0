"""Runs on real Ray Train workers of two nodes against the same runs in this process."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.util.state import list_actors

from orchestrator.cluster.connect import joined
from orchestrator.launch import train
from orchestrator.run.checkpoint import read_json
from tests.orchestrator.test_cli import call
from tests.support.cluster_runs import same_search, train_on_cluster
from tests.support.experiments import SMALL, small_experiment
from tests.support.two_nodes import Cluster, dashboard_says

pytestmark = pytest.mark.ray
SETTINGS = ["train.epochs=1", "method.search.every=1", "checkpoint.every=2"]
FSDP2 = ["scale.workers=2", "scale.sharding=fsdp2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds all runs of this file."""
    return tmp_path_factory.mktemp("workers")


@pytest.fixture(scope="module")
def job(cluster: Cluster, user: ProcessPoolExecutor, folder: Path) -> tuple[str, int]:
    """A job of two workers, submitted from the command line and followed to its end, and its worker that was killed."""
    run = [*SMALL, *SETTINGS, *FSDP2, "name=two", f"storage={folder / 'runs'}"]
    command = ["submit", "--address", cluster.dashboard, "--wait", "--", "train", *run]
    submitted = user.submit(printed_by, *command)
    with cluster.user() as other:
        killed = other.submit(kill_one_worker, folder / "runs" / "two").result()
    return str(submitted.result()).split()[0], killed


@pytest.fixture(scope="module")
def two_shards(job: tuple[str, int], folder: Path) -> dict[str, Any]:
    result = read_json(folder / "runs" / "two" / "result.json")
    assert result is not None
    return result


@pytest.fixture(scope="module")
def in_process(folder: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    return train(small_experiment(folder, *SETTINGS, "name=here"))


def printed_by(*command: str) -> str:
    """What a command prints, as from a shell."""
    with redirect_stdout(StringIO()) as printed:
        code = call(*command)
    assert code == 0, printed.getvalue()
    return printed.getvalue()


def test_a_submitted_run_that_loses_a_worker_succeeds_with_one_on_each_node(
    cluster: Cluster, user: ProcessPoolExecutor, job: tuple[str, int], two_shards: dict[str, Any]
) -> None:
    name, killed = job
    assert name.startswith("two-")
    assert f"{name}  SUCCEEDED" in user.submit(printed_by, "jobs", "--address", cluster.dashboard).result()
    assert len(two_shards["accuracy_matrix"]) == 3
    assert two_shards["method_report"]["chosen"][1]
    shown = dashboard_says(f"{cluster.dashboard}/api/train/v2/runs/v1", cluster.token)["train_runs"]
    run = next(run for run in shown if run["name"] == "two")
    assert run["status"] == "FINISHED"
    lost, last = [attempt["workers"] for attempt in run["attempts"]]
    assert killed in [worker["pid"] for worker in lost]
    assert len(last) == len({worker["node_id"] for worker in last}) == 2


def test_two_shards_give_the_tree_and_the_choices_of_one_process(
    two_shards: dict[str, Any], in_process: dict[str, Any]
) -> None:
    same_search(two_shards, in_process)


OTHERS = {"one": ["scale.workers=1"], "replicas": ["scale.workers=2", "scale.sharding=ddp"]}


@pytest.mark.slow  # what replicas learn and send is always tested on the pair of processes
@pytest.mark.parametrize("name", OTHERS)
def test_so_do_one_worker_and_replicas(
    user: ProcessPoolExecutor, folder: Path, in_process: dict[str, Any], name: str
) -> None:
    experiment = small_experiment(folder, *SETTINGS, f"name={name}", *OTHERS[name])
    same_search(user.submit(train_on_cluster, experiment).result(), in_process)


@pytest.mark.slow
def test_workers_with_compiled_blocks_end_as_one_process(user: ProcessPoolExecutor, folder: Path) -> None:
    """FSDP2 gathers around the compiled blocks; accuracies may differ by an example or two."""
    few = ["method=lora", "benchmark.tasks=2", "train.epochs=2"]
    whole = train(small_experiment(folder, *few, "name=eager"))
    experiment = small_experiment(folder, *few, "name=compiled", "train.compile=true", "scale.workers=2")
    compiled = user.submit(train_on_cluster, experiment).result()
    for row, expected in zip(compiled["accuracy_matrix"], whole["accuracy_matrix"], strict=True):
        assert row == pytest.approx(expected, abs=0.05)


@pytest.mark.slow  # always tested: a stopped run in one process, and the state of two ranks
def test_a_run_that_lost_a_worker_ends_like_an_undisturbed_one(
    user: ProcessPoolExecutor, folder: Path, two_shards: dict[str, Any]
) -> None:
    experiment = small_experiment(folder, *SETTINGS, "name=undisturbed", *FSDP2)
    undisturbed = user.submit(train_on_cluster, experiment).result()
    for key in ("accuracy_matrix", "validation_matrix", "method_report"):
        assert two_shards[key] == undisturbed[key]


def kill_one_worker(folder: Path) -> int:
    """Wait until the run's third task is under way, then end one of its workers the hard way; gives its process."""
    with joined():
        wait_for_task(folder, 0)
        workers = [a for a in list_actors(filters=[("state", "=", "ALIVE")]) if "TrainWorker" in a.class_name]
        doomed = max(a.pid for a in workers)
        wait_for_task(folder, 2)
        os.kill(doomed, signal.SIGKILL)
        return doomed


def wait_for_task(folder: Path, task: int) -> None:
    patience = time.monotonic() + 300  # a job that failed would be waited for without end
    while (read_json(folder / "progress.json") or {"task": -1})["task"] < task:
        assert time.monotonic() < patience, f"task {task} was never reached"
        time.sleep(0.02)
