"""Which cluster a command joins: what RAY_ADDRESS may say, and what is answered where nobody is there."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from orchestrator.cluster.address import cluster_address
from orchestrator.cluster.connect import LONGEST_SOCKET, SOCKET, check_sockets
from orchestrator.settings.errors import UserError
from tests.support.two_nodes import free_ports


def test_without_the_variable_there_is_no_cluster_to_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert cluster_address() is None


@pytest.mark.parametrize("address", ["auto", "local", "ray://head:10001"])
def test_what_only_ray_understands_is_left_to_it(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert cluster_address() == address


def test_an_address_where_something_listens_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert cluster_address() == address


def test_an_address_where_nobody_listens_is_one_line_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError) as refused:
        cluster_address()
    assert str(refused.value) == (
        f"RAY_ADDRESS={address}: no cluster answers there (Connection refused); start one with ray start --head, or "
        "unset RAY_ADDRESS for one of the command's own"
    )


def test_the_address_of_a_dashboard_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(UserError, match="that is the address of a dashboard; name the cluster's own, as in HOST:6379"):
        cluster_address()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere Ray chooses /tmp by itself")
def test_a_folder_for_sockets_with_too_long_a_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    longest = "/" + "t" * (LONGEST_SOCKET - len(SOCKET) - 1)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", longest)
    check_sockets()
    monkeypatch.setattr(tempfile, "tempdir", longest + "t")
    with pytest.raises(UserError, match=rf"^{longest}t: too long a name .*; set TMPDIR=/tmp$"):
        check_sockets()
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    monkeypatch.setenv("RAY_TMPDIR", longest + "t")
    with pytest.raises(UserError, match=r"; set RAY_TMPDIR=/tmp$"):
        check_sockets()


def test_a_page_is_not_told_to_be_where_something_else_is(tmp_path: Path) -> None:
    """The port of another server is refused before anything starts; the one that is named in its place is free."""
    (tmp_path / "mlflow.db").touch()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "run.py", "watch", f"storage={tmp_path}", "--port", str(port)]
        ended = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
        assert (ended.returncode, ended.stdout) == (2, "")
        [line] = ended.stderr.splitlines()
        assert line.startswith(f"error: --port {port}: it is taken, or not for this user; --port ")
        free = int(line.split()[-3])
        with socket.socket() as other:
            other.bind(("127.0.0.1", free))
