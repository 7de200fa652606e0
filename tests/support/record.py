"""Records of runs, read back through MLflow's own client, and a real MLflow server that can be stopped and started."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run


def records(uri: str, experiment: str = "evergreen") -> list[Run]:
    """All records of an MLflow experiment that were not deleted, the oldest first."""
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return list(client.search_runs([found.experiment_id], order_by=["attributes.start_time"]))


def steps(uri: str, run: Run, metric: str) -> list[int]:
    return [point.step for point in MlflowClient(uri).get_metric_history(run.info.run_id, metric)]


def artifacts(uri: str, run: Run) -> set[str]:
    return {artifact.path for artifact in MlflowClient(uri).list_artifacts(run.info.run_id)}


def table(uri: str, run: Run, name: str) -> Any:
    """A table as MLflow's page and load_table read it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MLFLOW_TRACKING_URI", uri)  # of the client's own, load_table makes no use
        return MlflowClient().load_table(run.info.experiment_id, name, run_ids=[run.info.run_id])


class Server:
    """``mlflow server`` on 127.0.0.1 with one worker and a database in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}", "--workers", "1"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "log.txt").open("a") as log:
            # A group of its own: the server's workers are its children and have to end with it.
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        while not self.answers():
            assert self.process.poll() is None, (self.folder / "log.txt").read_text()
            time.sleep(0.2)

    def answers(self) -> bool:
        with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
            return bool(answer.status == 200)
        return False

    def signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def stop(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.wait()
