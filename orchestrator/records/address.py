"""The address of the record of runs, and MLflow's own page on it; MLflow itself is not imported here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError


def tracking_uri(experiment: Experiment) -> str:
    """``tracking.uri``, else ``MLFLOW_TRACKING_URI``, else a database beside the runs; always absolute."""
    named = experiment.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    return named or f"sqlite:///{experiment.storage / 'mlflow.db'}"


def serve_record(experiment: Experiment, port: int) -> None:
    """MLflow's own page, on this machine only, until Ctrl-C ends it."""
    uri = tracking_uri(experiment)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise UserError(f"tracking.uri={uri}: there is no record yet; train a run first")
    if uri.startswith("http"):
        print(f"the record is served at {uri}", file=sys.stderr)
        return
    print(f"MLflow: http://127.0.0.1:{port} (Ctrl-C ends it)", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", "127.0.0.1"]
    subprocess.run([*command, "--port", str(port)], check=False)
