"""A real Ray cluster of two nodes on this machine for all tests that need one, and processes of its users.

Ray takes 127.0.0.1 for the dashboard only: on Linux it swaps a loopback node address for the
machine's own. The token keeps others out meanwhile.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

RAY = Path(sys.executable).parent / "ray"
Node = subprocess.Popen[bytes]
START_SECONDS = 120
END_SECONDS = 3  # then its whole group is killed


@dataclass(frozen=True)
class Cluster:
    """Where a cluster answers, and the variables that its users have to set."""

    dashboard: str
    address: str  # of the cluster itself, for RAY_ADDRESS
    token: str
    environment: dict[str, str]

    def user(self) -> ProcessPoolExecutor:
        """A process whose commands join the cluster; Ray and the project read that while they are imported."""
        return as_user(self.environment | {"RAY_ADDRESS": self.address})


@contextmanager
def two_node_cluster(tmp_path: Path, cpus: int = 1) -> Iterator[Cluster]:
    """A cluster that ends with the block; its nodes say that they have so many ``cpus`` each."""
    token = secrets.token_hex(32)
    token_file = tmp_path / "token"
    token_file.touch(mode=0o600)
    token_file.write_text(token)
    environment = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    gcs, dashboard, client = free_ports(3)
    url = f"http://127.0.0.1:{dashboard}"
    size = f"--num-cpus={cpus}"
    head = [size, f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    with ExitStack() as stack:
        # Sockets live below this folder, and their paths may not exceed 107 letters.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp"))
        log = stack.enter_context((tmp_path / "ray.log").open("w"))
        nodes: list[Node] = []
        stack.callback(end, nodes)
        local = ["--head", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}"]
        nodes.append(start_node([*local, *head], environment, log.fileno()))
        wait_until(lambda: listens(gcs), nodes, log.name)
        nodes.append(start_node([size, f"--address=127.0.0.1:{gcs}"], environment, log.fileno()))
        wait_until(lambda: alive_nodes(url, token) == 2, nodes, log.name)
        yield Cluster(url, f"127.0.0.1:{gcs}", token, environment)


def enter(environment: dict[str, str]) -> None:
    """Make a process one of a given user: its own variables for Ray and no others."""
    for name in [name for name in os.environ if name.startswith(("RAY_", "MLFLOW_"))]:
        del os.environ[name]
    os.environ.update(environment)


def as_user(environment: dict[str, str]) -> ProcessPoolExecutor:
    """A process of its own, because Ray keeps the first token that it reads."""
    return ProcessPoolExecutor(1, get_context("spawn"), enter, (environment,))


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def start_node(options: list[str], environment: dict[str, str], log: int) -> Node:
    """One ``ray start`` in a process group of its own."""
    names = ["dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port"]
    ports = [f"--{name}={port}" for name, port in zip(names, free_ports(3), strict=True)]
    size = ["--object-store-memory=100000000", "--node-ip-address=127.0.0.1"]
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    # A job's `python` is the first on the path of the node that runs it.
    path = {"PATH": f"{RAY.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    return subprocess.Popen(
        [RAY, "start", "--block", "--log-style=record", *size, *ports, *options],
        env={**inherited, **environment, **path},
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def dashboard_says(url: str, token: str) -> Any:
    """The answer of a dashboard's page."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def alive_nodes(dashboard: str, token: str) -> int:
    """How many nodes the dashboard counts as alive."""
    try:
        summary = dashboard_says(f"{dashboard}/nodes?view=summary", token)["data"]["summary"]
    except OSError:
        return 0
    return sum(node.get("raylet", {}).get("state") == "ALIVE" for node in summary)


def wait_until(ready: Callable[[], bool], nodes: list[Node], log: str) -> None:
    """Wait for a condition while all nodes keep running."""
    limit = time.monotonic() + START_SECONDS
    while not ready():
        if time.monotonic() > limit or any(node.poll() is not None for node in nodes):
            raise RuntimeError(f"the cluster did not start:\n{Path(log).read_text()}")
        time.sleep(0.2)


def end(nodes: list[Node]) -> None:
    """Ask each ``ray start`` to end its node, the head last, then end what is left of its group."""
    for node in reversed(nodes):
        node.terminate()
        with suppress(subprocess.TimeoutExpired):
            node.wait(END_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(node.pid, signal.SIGKILL)
        node.wait()
