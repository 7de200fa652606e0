"""The address of the record of runs, and MLflow's own page on it; MLflow itself is not imported here."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote, unquote

from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError

CREDENTIALS = re.compile(r"(?<=://)[^/@]*@")


def tracking_uri(experiment: Experiment) -> str:
    """``tracking.uri``, else ``MLFLOW_TRACKING_URI``, else a database beside the runs; always absolute."""
    named = experiment.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    return named or database_uri(own_database(experiment))


def own_database(experiment: Experiment) -> Path:
    """The database beside the runs, which moves with them."""
    return experiment.storage / "mlflow.db"


def database_uri(file: Path) -> str:
    """The address of a SQLite database in an absolute ``file``."""
    if not {"%", "?"} & set(str(file)):
        return f"sqlite:///{file}"
    # SQLAlchemy takes what follows % and ? for itself; MLflow would also make the folder of the quoted name, as it
    # stands behind sqlite:///, so that the driver is named.
    return f"sqlite+pysqlite:///{quote(str(file))}"


def database_file(uri: str) -> Path | None:
    """The file of a SQLite address; None for a server or another database."""
    if not uri.startswith("sqlite"):
        return None
    return Path(unquote(uri.partition(":///")[2].partition("?")[0])).absolute()


def without_credentials(text: str) -> str:
    """Addresses in ``text`` as they may be shown and written down."""
    return CREDENTIALS.sub("", text)


def serve_record(experiment: Experiment, port: int) -> None:
    """MLflow's own page, on this machine only, until Ctrl-C ends it; UserError where it cannot be shown."""
    uri = tracking_uri(experiment)
    file = database_file(uri)
    if file and not file.exists():
        raise UserError(f"tracking.uri={uri}: there is no record yet; train a run first")
    if uri.startswith("http"):
        print(f"the record is served at {without_credentials(uri)}", file=sys.stderr)
        return
    check_port(port)
    print(f"MLflow: http://127.0.0.1:{port} (Ctrl-C ends it)", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", "127.0.0.1"]
    ended = subprocess.run([*command, "--port", str(port)], check=False)
    if ended.returncode > 0:
        raise UserError(f"MLflow's server ended by itself (exit code {ended.returncode}); what it said stands above")


def check_port(port: int) -> None:
    """UserError where something listens there already; with a free one near it."""
    for candidate in range(port, min(port + 100, 2**16)):
        with socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was just left is free
            try:
                tried.bind(("127.0.0.1", candidate))
            except OSError:
                continue
        if candidate == port:
            return
        raise UserError(f"--port {port}: it is taken, or not for this user; --port {candidate} is free")
    raise UserError(f"--port {port}: it is taken, and so are the next ones; choose another")
