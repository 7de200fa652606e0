"""The record of one folder in MLflow: brought up to what the folder says, as often as wanted, each part once.

    <run>/mlflow.json    # which record it is, what belongs into it beside the folder's files, and what was sent

A folder whose record is gone, or lies at another address, gets a new one with everything in it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Metric, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS

from orchestrator.pages.console import say
from orchestrator.records import content
from orchestrator.records.connection import Connection
from orchestrator.records.samples import sample_points, sampled
from orchestrator.run.checkpoint import read_json, write_json

NOTE = "mlflow.json"
PARTS = ("trials", "confirm")  # folders below a sweep's that hold runs
BATCH, PARAMS, TAGS = 1000, 100, 100  # the most metrics, params and tags that MLflow takes in a call
LOCK_SECONDS = 30.0
LONGEST_TAG = 5000


def begin(folder: Path, connection: Connection, name: str, settings: dict[str, Any], parent: Path | None) -> None:
    """Note what the record of ``folder`` is to hold, and where it is to be.

    A record with other settings is that of a run which never began, as the folder of one that did is refused to
    others; MLflow changes no param, so that the new run gets a record of its own.
    """
    with locked(folder):
        old = read_note(folder)
        params = content.as_text(settings)
        goes_on = old.get("place") == connection.place and old.get("params") == params
        note = {
            "place": connection.place,
            "experiment": connection.name,
            "run_id": old["run_id"] if goes_on else None,
            "name": name,
            "parent": os.path.relpath(parent, folder) if parent else None,
            "status": "RUNNING",
            "params": params,
            "tags": old["tags"] if goes_on else content.first_tags(folder, parent, settings),
            "sent": old["sent"] if goes_on else {},
        }
        write_json(folder / NOTE, note)


def finish(folder: Path, status: str) -> None:
    """Note how the run ended, as MLflow names it."""
    with locked(folder):
        if note := read_note(folder):
            write_json(folder / NOTE, note | {"status": status})


def readdress(folder: Path, connection: Connection) -> None:
    """Note another address; what was sent to the former one does not count there."""
    with locked(folder):
        note = read_note(folder)
        if note["place"] != connection.place:
            there = {"place": connection.place, "experiment": connection.name}
            write_json(folder / NOTE, note | there | {"run_id": None, "sent": {}})


def read_note(folder: Path) -> dict[str, Any]:
    """What ``mlflow.json`` says, nothing where there is none or it has another form."""
    note = read_json(folder / NOTE)
    return note if isinstance(note, dict) and "sent" in note else {}


def children(folder: Path) -> list[Path]:
    """Folders of a sweep's trials and of the runs that confirm its choice, or of a study's runs."""
    study = read_json(folder / "study.json") or {"runs": []}
    found = [Path(os.path.normpath(folder / run["folder"])) for run in study["runs"]]
    found += [place for kind in PARTS for place in sorted((folder / kind).glob("*"))]
    return [place for place in found if (place / "experiment.json").exists()]


def parent_of(folder: Path) -> Path | None:
    """The folder of the sweep that ``folder`` is a part of."""
    sweep = folder.parent.parent
    return sweep if folder.parent.name in PARTS and (sweep / "experiment.json").exists() else None


def locked(folder: Path) -> FileLock:
    """One writer of a folder's record at a time, of this process or another: a metric sent twice would stay so."""
    return FileLock(folder / "mlflow.lock", timeout=LOCK_SECONDS)


def push(connection: Connection, folder: Path) -> None:
    """Send what the record of ``folder`` lacks; FAILURES of the connection, after which the next push goes on."""
    connection.ensure()
    with locked(folder):
        Pushed(connection, folder).all()


class Pushed:
    """One push of one folder; what was sent is noted after each call to MLflow."""

    def __init__(self, connection: Connection, folder: Path) -> None:
        self.connection, self.folder = connection, folder
        self.note = read_note(folder)
        progress = read_json(folder / "progress.json") or {"history": []}
        self.rows = {"tasks": progress["history"], "samples": sampled(folder)}

    @property
    def client(self) -> MlflowClient:
        return self.connection.client

    @property
    def run_id(self) -> str:
        return str(self.note["run_id"])

    def all(self) -> None:
        if not self.note or self.note["place"] != self.connection.place:
            return  # not recorded, or elsewhere
        if self.is_complete():
            return
        if self.note["run_id"] and self.is_gone():
            say(f"record: that of {self.note['name']} was deleted; a new one is made")
            self.note |= {"run_id": None, "sent": {}}
        if not self.note["run_id"]:
            self.create()
        self.send_params()
        self.send_history()
        self.send_status()

    def is_complete(self) -> bool:
        """Whether there is nothing to send, which is so at nearly every look at a run."""
        sent = self.note["sent"]
        counts = {kind: len(rows) for kind, rows in self.rows.items()}
        wanted = {"params": len(self.note["params"]), "status": self.note["status"]} | counts
        return bool(self.note["run_id"]) and wanted == {"status": "RUNNING", "tasks": 0, "samples": 0} | sent

    def is_gone(self) -> bool:
        """Whether the record, or the MLflow experiment around it, was deleted."""
        try:
            return bool(self.client.get_run(self.run_id).info.lifecycle_stage != "active")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return True
            raise

    def create(self) -> None:
        tags = self.note["tags"] | self.parent_tag()
        run = self.client.create_run(self.connection.live_experiment(), run_name=self.note["name"], tags=tags)
        self.keep(run_id=run.info.run_id)

    def parent_tag(self) -> dict[str, str]:
        """The sweep's record, which is brought to this address first."""
        if not self.note["parent"]:
            return {}
        parent = self.folder / self.note["parent"]
        if read_note(parent).get("place") == self.connection.place:
            push(self.connection, parent)
        found = read_note(parent).get("run_id")
        return {"mlflow.parentRunId": found} if found else {}

    def keep(self, **changes: Any) -> None:
        self.note |= changes
        write_json(self.folder / NOTE, self.note)

    def mark(self, **sent: Any) -> None:
        self.keep(sent=self.note["sent"] | sent)

    def send_params(self) -> None:
        params = content.params(self.note["params"])
        first = self.note["sent"].get("params", 0)
        for start in range(first, len(params), PARAMS):
            self.client.log_batch(self.run_id, params=params[start : start + PARAMS])
            self.mark(params=min(start + PARAMS, len(params)))

    def send_history(self) -> None:
        """Metrics of the tasks and samples that came since."""
        self.send_rows("tasks", lambda rows, first: content.task_points(rows))
        self.send_rows("samples", sample_points)

    def send_rows(self, kind: str, points: Callable[[list[dict[str, Any]], int], list[Metric]]) -> None:
        """As many rows in a call as MLflow takes; none is divided, or what was sent of it could not be counted."""
        rows = self.rows[kind]
        size = max(1, BATCH // max((len(row) for row in rows), default=1))
        for start in range(self.note["sent"].get(kind, 0), len(rows), size):
            part = rows[start : start + size]
            self.client.log_batch(self.run_id, metrics=points(part, start))
            self.mark(**{kind: start + len(part)})

    def send_status(self) -> None:
        """The last of it: who sees a record as finished finds all there."""
        status = self.note["status"]
        if status == self.note["sent"].get("status", "RUNNING"):
            return
        if status == "RUNNING":
            self.client.update_run(self.run_id, status="RUNNING")
        else:
            self.send_end()
            self.client.set_terminated(self.run_id, status)
        self.mark(status=status)

    def send_end(self) -> None:
        """Summary, data, tables and files: all of them are set and none is added to, so that twice does no harm."""
        self.send_summary(content.summary_points(self.folder))
        tables = content.tables(self.folder)
        known = content.last_tags(self.folder) | listed_tables(tables)
        tags = [RunTag(key, value[:LONGEST_TAG]) for key, value in known.items()]
        for start in range(0, len(tags), TAGS):
            self.client.log_batch(self.run_id, tags=tags[start : start + TAGS])
        if inputs := content.datasets(self.folder):
            self.client.log_inputs(self.run_id, datasets=inputs)
        for name, table in tables.items():
            self.client.log_dict(self.run_id, content.as_split(table), f"{name}.json")
        for file in content.FILES:
            if (self.folder / file).exists():
                self.client.log_artifact(self.run_id, str(self.folder / file))

    def send_summary(self, points: list[Metric]) -> None:
        known = self.client.get_run(self.run_id).data.metrics
        fresh = [point for point in points if known.get(point.key) != point.value]
        for start in range(0, len(fresh), BATCH):
            self.client.log_batch(self.run_id, metrics=fresh[start : start + BATCH])


def listed_tables(tables: dict[str, content.Table]) -> dict[str, str]:
    """The tag by which MLflow's page knows which artifacts are tables.

    ``log_table`` would set it, but adds rows to those that are there, and asks for each table five times as long.
    """
    listed = [{"path": f"{name}.json", "type": "table"} for name in tables]
    return {MLFLOW_LOGGED_ARTIFACTS: json.dumps(listed)} if listed else {}
