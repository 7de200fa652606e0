"""Which cluster a command joins: what RAY_ADDRESS may say, and what is answered where nobody is there."""

from __future__ import annotations

import socket

import pytest

from orchestrator.cluster.address import cluster_address
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
