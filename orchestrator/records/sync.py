"""Bring the whole record of a run or sweep up to date from its folder, at the address that the settings name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.records import record
from orchestrator.records.address import database_uri, own_database, tracking_uri, without_credentials
from orchestrator.records.connection import FAILURES, OWN, Connection, reason
from orchestrator.run.checkpoint import read_json
from orchestrator.settings.compose import load_experiment
from orchestrator.settings.config import Experiment, TrackingConfig
from orchestrator.settings.errors import UserError


@dataclass(frozen=True)
class Synced:
    """How many records are complete, and the connection to where they are."""

    records: int
    connection: Connection

    @property
    def address(self) -> str:
        return without_credentials(self.connection.uri)


def sync_record(run: str, settings: list[str]) -> Synced:
    """Send what the record of ``run``, a name or a folder below storage, lacks, and those of a sweep's trials.

    They stay where they are, unless ``tracking.uri=…`` names a new server: it gets everything. UserError where there is
    no such run or server.
    """
    composed = load_experiment([*settings, f"name={Path(run).name}"])
    folder = composed.storage / run
    if not any((folder / name).exists() for name in ("experiment.json", "study.json")):
        raise UserError(f"{run}: no such run in {composed.storage}; name another, or set storage=…")
    connection = Connection(composed.model_copy(update={"tracking": tracking_of(composed, folder)}))
    folders = [folder, *record.children(folder)]
    for one in folders:
        prepare(connection, one, record.parent_of(folder) if one == folder else folder)
        try:
            record.push(connection, one)
        except FAILURES as error:
            raise UserError(f"{one.name}: {reason(error)}; the same command goes on from there") from None
    return Synced(len(folders), connection)


def tracking_of(composed: Experiment, folder: Path) -> TrackingConfig:
    """Address and MLflow experiment: the settings' own, where they name them, else those that the folder has noted."""
    note, tracking = record.read_note(folder), composed.tracking
    if not note:
        return tracking
    noted: dict[str, str] = {}
    if tracking.uri is None and note["place"] == OWN:
        noted["uri"] = database_uri(own_database(composed))
    elif tracking.uri is None and note["place"] != without_credentials(tracking_uri(composed)):
        noted["uri"] = note["place"]
    if tracking.experiment == TrackingConfig().experiment:
        noted["experiment"] = note["experiment"]
    return tracking.model_copy(update=noted)


def prepare(connection: Connection, folder: Path, parent: Path | None) -> None:
    """Note the record of a folder that has none, or one elsewhere, and how a run ended whose driver did not say so."""
    trial = trial_of(folder, parent)
    if record.read_note(folder):
        record.readdress(folder, connection)
    else:
        settings = (read_json(folder / "experiment.json") or {}) | ({"trial": trial["settings"]} if trial else {})
        record.begin(folder, connection, folder.name, settings, parent)
        record.finish(folder, "KILLED")  # unless the folder says otherwise
    if status := status_of(folder, trial):
        record.finish(folder, status)


def trial_of(folder: Path, parent: Path | None) -> dict[str, Any] | None:
    """What the sweep says of the trial in ``folder``."""
    sweep = read_json(parent / "sweep.json") if parent else None
    trials = sweep["trials"] if sweep else []
    return next((trial for trial in trials if Path(trial["folder"]).name == folder.name), None)


def status_of(folder: Path, trial: dict[str, Any] | None) -> str | None:
    """How the run, sweep or study in ``folder`` ended, as MLflow names it; None where its files do not tell."""
    sweep = read_json(folder / "sweep.json")
    over = sweep and all(trial["status"] not in ("running", "waiting") for trial in sweep["trials"])
    study = [(one / "result.json").exists() for one in record.children(folder)] if not sweep else []
    if (folder / "result.json").exists() or over or (study and all(study)) or (trial and trial["status"] == "stopped"):
        return "FINISHED"
    failed = (folder / "error.json").exists() or (trial and trial["status"] == "failed")
    return "FAILED" if failed else None
