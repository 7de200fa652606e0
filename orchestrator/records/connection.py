"""A connection to MLflow: opened once at a time, refused in one line, and mended where the runs' folder was moved."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.entities import Experiment as MlflowExperiment
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.pages.console import say
from orchestrator.records.address import (
    database_file,
    database_uri,
    own_database,
    tracking_uri,
    without_credentials,
)
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError

# What a record that cannot be read or written raises: MLflow's own errors, those of a database that it lets through,
# and those of the file system below both.
FAILURES = (MlflowException, SQLAlchemyError, sqlite3.Error, OSError, Timeout)
OWN = "default"  # in mlflow.json, the database beside the runs: it is found again wherever they are moved
ARTIFACTS = "mlflow-artifacts"
MIGRATION_SECONDS = 120  # the longest that a start waits for others that make the database's tables
# Columns of MLflow's tables that hold places of files.
PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


class Connection:
    """A client of the record of ``experiment``, and the id of the MLflow experiment that its runs belong to."""

    def __init__(self, experiment: Experiment) -> None:
        self.name = experiment.tracking.experiment
        self.uri = tracking_uri(experiment)
        self.file = database_file(self.uri)
        own = database_uri(own_database(experiment))
        self.place = OWN if self.uri == own else without_credentials(self.uri)
        self.openings = count()
        with refused(f"tracking.uri={without_credentials(self.uri)}"):
            self.open()

    def open(self) -> None:
        """Connect, or connect anew; FAILURES where that is not possible."""
        quiet()
        address = self.uri
        if self.file and (number := next(self.openings)):
            # MLflow keeps what it opened by address, here a file that is gone: an address that differs is opened anew.
            address += f"{'&' if '?' in address else '?'}timeout={20 + number}"
        if self.file:
            self.file.parent.mkdir(parents=True, exist_ok=True)
        with alone(self.file):
            if self.file:
                check_database(self.file)
            self.client = MlflowClient(address)
            self.experiment_id = self.find_experiment()
            if self.file:
                follow_move(self.file, self.experiment_id)
                self.inode = self.file.stat().st_ino

    def ensure(self) -> None:
        """Connect anew where the database's file was removed or replaced, which SQLite would go on writing to."""
        if self.file and (not self.file.exists() or self.file.stat().st_ino != self.inode):
            say(f"record: {self.file} was removed; a new one is made")
            self.open()

    def live_experiment(self) -> str:
        """The id of the MLflow experiment for a new record; another one where it was deleted since the start."""
        try:
            found = self.client.get_experiment(self.experiment_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            found = None
        if found is None or found.lifecycle_stage != "active":
            self.experiment_id = self.find_experiment()
        return self.experiment_id

    def find_experiment(self) -> str:
        """The id of the MLflow experiment, which is made where there is none; of one that was deleted, a new one."""
        for number in count(1):
            name = self.name if number == 1 else f"{self.name}-{number}"
            found = self.client.get_experiment_by_name(name) or self.make_experiment(name)
            if found.lifecycle_stage == "active":
                if number > 1:
                    say(f"record: the MLflow experiment {self.name} was deleted; {name} is used")
                return str(found.experiment_id)
        raise AssertionError("count has no end")

    def make_experiment(self, name: str) -> MlflowExperiment:
        # MLflow's default for a database is ./mlruns, wherever the command happens to be started.
        location = (self.file.parent / ARTIFACTS).as_uri() if self.file else None
        try:
            return self.client.get_experiment(self.client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            found = self.client.get_experiment_by_name(name)
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or found is None:
                raise
            return found  # another start made it meanwhile


def quiet() -> None:
    """A failure becomes one line of ours; the libraries would print pages about it first."""
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


@contextmanager
def refused(what: str) -> Iterator[None]:
    """Turn a failure into one line that a user can act on."""
    try:
        yield
    except FAILURES as error:
        raise UserError(
            f"{what}: {reason(error)}; correct it, or go without a record: tracking.enabled=false"
        ) from None


def reason(error: Exception) -> str:
    """The error in one line, without credentials."""
    text = str(error).strip() or type(error).__name__
    # requests names the class, the pool and the address of a server that cannot be reached before the cause.
    if "Max retries exceeded" in text or "ConnectionError" in text or "timed out" in text:
        return "the server does not answer"
    return without_credentials(text.splitlines()[0])


@contextmanager
def alone(file: Path | None) -> Iterator[None]:
    """Only one process at a time: MLflow's migrations of a new database fail where two run side by side."""
    if file is None:
        yield
        return
    with FileLock(f"{file}.lock", timeout=MIGRATION_SECONDS):
        yield


def check_database(file: Path) -> None:
    """sqlite3.Error for a file that is no database or cannot be opened: MLflow would try for minutes."""
    with closing(sqlite3.connect(file)) as database:
        database.execute("PRAGMA schema_version")


def follow_move(file: Path, experiment_id: str) -> None:
    """Let the record of a folder that was moved point to where its artifacts lie now.

    MLflow stores absolute places and has no call that changes them. Only those below the experiment's own folder
    ``mlflow-artifacts`` change, which lies beside the database, and only where it came along.
    """
    with closing(sqlite3.connect(file, timeout=20)) as database, database:
        query = "SELECT artifact_location FROM experiments WHERE experiment_id = ?"
        (old,) = database.execute(query, (int(experiment_id),)).fetchone()
        new = (file.parent / ARTIFACTS).as_uri()
        if old == new or not old.endswith(f"/{ARTIFACTS}") or not (file.parent / ARTIFACTS).is_dir():
            return
        for table, column in PLACES:
            place = f"substr({column}, 1, ?)"
            database.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {column} = ? OR {place} = ?",
                (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
            )
    say(f"record: {file.parent} was moved; its record points to the new place now")
