"""Connect to Ray: a cluster by its address, or one on this machine that ends with the command."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import ray

from orchestrator.cluster.room import check_room, nodes_of_cluster
from orchestrator.settings.config import Experiment


@contextmanager
def connected(experiments: Sequence[Experiment]) -> Iterator[str]:
    """Ray for the time of a command; gives the dashboard's address.

    ``RAY_ADDRESS`` names a cluster to join, and is set inside a job. Otherwise one is started here, with everything
    bound to 127.0.0.1 (see this package's ``__init__``). UserError where it has no room for one of ``experiments``.
    """
    address = os.environ.get("RAY_ADDRESS")
    if address:
        context = ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    else:
        context = ray.init(
            # The actor that frees a stopped trial's placement group needs this process; without it the CPUs stay taken.
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    try:
        for experiment in experiments:
            check_room(experiment, nodes_of_cluster())
        yield f"http://{context.dashboard_url}"
    finally:
        ray.shutdown()


@contextmanager
def joined() -> Iterator[None]:
    """The cluster of ``RAY_ADDRESS``, else the one that runs on this machine; nothing is started."""
    address = os.environ.get("RAY_ADDRESS") or "auto"
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()
