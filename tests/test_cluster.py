"""The command line against a cluster of two nodes: a job's workers sit on different nodes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.checkpoint import read_json
from tests.conftest import SMALL
from tests.two_nodes import RAY, two_node_cluster

pytestmark = pytest.mark.ray
PROJECT = Path(__file__).resolve().parent.parent
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Command]]:
    """The dashboard's address, and a way to run a command as one of the cluster's users."""
    with two_node_cluster(tmp_path_factory.mktemp("cluster")) as (address, environment):

        def run(*command: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                command, env={**os.environ, **environment}, cwd=PROJECT, capture_output=True, text=True, check=False
            )

        yield address, run


def test_a_submitted_run_succeeds_with_a_worker_on_each_node(cluster: tuple[str, Command], tmp_path: Path) -> None:
    address, run = cluster
    settings = [*SMALL, "train.epochs=1", "name=job", "scale.workers=2", f"storage={tmp_path}"]
    done = run(sys.executable, "run.py", "submit", "--address", address, "--wait", "--", "train", *settings)
    assert done.returncode == 0, done.stdout + done.stderr
    job = done.stdout.split()[0]
    assert job.startswith("job-")
    result = read_json(tmp_path / "job" / "result.json")
    assert len(result["accuracy_matrix"]) == 3
    assert result["method_report"]["chosen"][1]
    listed = run(str(RAY), "job", "list", "--address", address)
    assert f"submission_id='{job}'" in listed.stdout
    assert "SUCCEEDED" in listed.stdout
    assert f"{job}  SUCCEEDED" in run(sys.executable, "run.py", "jobs", "--address", address).stdout


def test_stop_ends_a_running_job(cluster: tuple[str, Command], tmp_path: Path) -> None:
    address, run = cluster
    settings = ["train.epochs=500", "name=long", "tracking.enabled=false", f"storage={tmp_path}"]
    job = run(sys.executable, "run.py", "submit", "--address", address, "--", "train", *settings).stdout.strip()
    stopped = run(sys.executable, "run.py", "stop", job, "--address", address)
    assert stopped.stdout == f"{job}: STOPPED\n", stopped.stderr


def test_a_slip_is_told_before_anything_is_sent(cluster: tuple[str, Command]) -> None:
    address, run = cluster
    refused = run(sys.executable, "run.py", "submit", "--address", address, "--", "train", "method.rnak=3")
    assert refused.returncode == 2
    assert refused.stderr == "error: method.rnak: no such setting; did you mean method.rank?\n"
