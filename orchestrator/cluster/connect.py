"""Connect to Ray: a cluster by its address, or one on this machine that ends with the command."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError


@contextmanager
def connected(experiment: Experiment) -> Iterator[str]:
    """Ray for the time of a command; gives the dashboard's address.

    ``RAY_ADDRESS`` names a cluster to join, and is set inside a job. Otherwise one is started here, with everything
    bound to 127.0.0.1 (see this package's ``__init__``).
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
        # Ray would not refuse but queue them, as further nodes may join.
        check_workers(experiment, int(ray.cluster_resources().get("CPU", 0)))
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


def check_workers_here(experiment: Experiment) -> None:
    """Before anything starts: a cluster of this machine alone has this machine's CPUs."""
    if not os.environ.get("RAY_ADDRESS"):
        check_workers(experiment, os.cpu_count() or 1)


def check_workers(experiment: Experiment, cpus: int) -> None:
    """Workers that could never start would be waited for without end."""
    workers = experiment.scale.workers
    if workers > cpus:
        raise UserError(
            f"scale.workers={workers}: there are {cpus} CPUs, one for each worker; set scale.workers={cpus}"
        )
