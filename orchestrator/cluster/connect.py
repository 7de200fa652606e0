"""Connect to Ray: a cluster by its address, or one on this machine that ends with the command."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray

from orchestrator.cluster.address import cluster_address
from orchestrator.cluster.room import check_room, nodes_of_cluster
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError

SOCKET = "/ray/session_2000-01-01_00-00-00_000000_1000000/sockets/plasma_store"
LONGEST_SOCKET = 107  # bytes of its name, on Linux; elsewhere Ray chooses /tmp by itself


@contextmanager
def connected(experiments: Sequence[Experiment]) -> Iterator[str]:
    """Ray for the time of a command; gives the dashboard's address.

    ``RAY_ADDRESS`` names a cluster to join, and is set inside a job. Otherwise one is started here, with everything
    bound to 127.0.0.1 (see this package's ``__init__``). UserError where it has no room for one of ``experiments``.
    """
    address = cluster_address()
    context = join(address) if address else start()
    try:
        for experiment in experiments:
            check_room(experiment, nodes_of_cluster())
        yield f"http://{context.dashboard_url}"
    finally:
        ray.shutdown()


def start() -> Any:
    """Ray's context of a new cluster on this machine; UserError where its files or sockets have no place."""
    check_sockets()
    try:
        return ray.init(
            address="local",  # not one that somebody else has started on this machine
            # The actor that frees a stopped trial's placement group needs this process; without it the CPUs stay taken.
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except OSError as error:
        # Its files are in the folder for temporary ones, and a token is in the user's own.
        raise UserError(
            f"Ray cannot be started ({error}); set HOME and TMPDIR to folders that can be written to"
        ) from None


def check_sockets() -> None:
    """UserError where the folder for temporary files has a name too long for the sockets that Ray puts there."""
    for variable, folder in (("TMPDIR", tempfile.gettempdir()), ("RAY_TMPDIR", os.environ.get("RAY_TMPDIR", ""))):
        if sys.platform == "linux" and len(os.fsencode(folder)) + len(SOCKET) > LONGEST_SOCKET:
            raise UserError(f"{folder}: too long a name for a folder of sockets of Ray; set {variable}=/tmp")


def join(address: str) -> Any:
    """Ray's context; UserError where what answers is no cluster of this version, or does not let this user in."""
    try:
        return ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"RAY_ADDRESS={address}: the cluster cannot be joined ({reason})") from None


@contextmanager
def joined() -> Iterator[None]:
    """The cluster of ``RAY_ADDRESS``, else the one that runs on this machine; nothing is started."""
    join(cluster_address() or "auto")
    try:
        yield
    finally:
        ray.shutdown()
