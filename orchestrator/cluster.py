"""Connect to Ray: a cluster by its address, or one on this machine that ends with the command."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

# Before Ray and MLflow are imported: neither may report home, and the dashboard's Train tab needs the tracking.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# A server that does not answer is said within seconds, not minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")

import ray  # noqa: E402

from orchestrator.config import Experiment  # noqa: E402
from orchestrator.errors import UserError  # noqa: E402


@contextmanager
def connected(experiment: Experiment) -> Iterator[str]:
    """Ray for the time of a command; gives the dashboard's address.

    ``RAY_ADDRESS`` names a cluster to join, and is set inside a job. Otherwise one is started here, with everything
    bound to 127.0.0.1. The dashboard process stays on: Ray's cleaner of stopped trials needs it.
    """
    address = os.environ.get("RAY_ADDRESS")
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if address:
        context = ray.init(address=address, **quiet)
    else:
        context = ray.init(
            include_dashboard=True, dashboard_host="127.0.0.1", _node_ip_address="127.0.0.1", **quiet
        )
    try:
        check_workers(experiment, int(ray.cluster_resources().get("CPU", 0)))
        yield f"http://{context.dashboard_url}"
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
        raise UserError(f"scale.workers={workers}: there are {cpus} CPUs, one for each worker; set scale.workers={cpus}")
