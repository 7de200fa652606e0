"""Bring the whole record of a run or sweep up to date from its folder, at the address that the settings name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.records import record
from orchestrator.records.address import without_credentials
from orchestrator.records.connection import FAILURES, Connection, reason
from orchestrator.run.checkpoint import read_json
from orchestrator.settings.compose import load_experiment
from orchestrator.settings.errors import UserError


@dataclass(frozen=True)
class Synced:
    """How many records are complete at which address."""

    records: int
    address: str


def sync_record(run: str, settings: list[str]) -> Synced:
    """Send what the record of ``run``, a name or a folder below storage, lacks, and those of a sweep's trials.

    ``tracking.uri=…`` may name a new server: it gets everything. UserError where there is no such run or server.
    """
    composed = load_experiment([*settings, f"name={Path(run).name}"])
    folder = composed.storage / run
    if not (folder / "experiment.json").exists():
        raise UserError(f"{run}: no such run in {composed.storage}; name another, or set storage=…")
    connection = Connection(composed)
    folders = [folder, *record.children(folder)]
    for one in folders:
        prepare(connection, one, parent=None if one == folder else folder)
        try:
            record.push(connection, one)
        except FAILURES as error:
            raise UserError(f"{one.name}: {reason(error)}; the same command goes on from there") from None
    return Synced(len(folders), without_credentials(connection.uri))


def prepare(connection: Connection, folder: Path, parent: Path | None) -> None:
    """Note the record of a folder that has none, or one elsewhere, and how a run ended whose driver did not say so."""
    trial = trial_of(folder, parent)
    if record.read_note(folder):
        record.readdress(folder, connection.place)
    else:
        settings = read_json(folder / "experiment.json") | ({"trial": trial["settings"]} if trial else {})
        record.begin(folder, connection.place, folder.name, settings, parent)
        record.finish(folder, "KILLED")  # unless the folder says otherwise
    if status := status_of(folder, trial):
        record.finish(folder, status)


def trial_of(folder: Path, parent: Path | None) -> dict[str, Any] | None:
    """What the sweep says of the trial in ``folder``."""
    sweep = read_json(parent / "sweep.json") if parent else None
    trials = sweep["trials"] if sweep else []
    return next((trial for trial in trials if Path(trial["folder"]).name == folder.name), None)


def status_of(folder: Path, trial: dict[str, Any] | None) -> str | None:
    """How the run or sweep in ``folder`` ended, as MLflow names it; None where its files do not tell."""
    sweep = read_json(folder / "sweep.json")
    over = sweep and all(trial["status"] not in ("running", "waiting") for trial in sweep["trials"])
    if (folder / "result.json").exists() or over or (trial and trial["status"] == "stopped"):
        return "FINISHED"
    failed = (folder / "error.json").exists() or (trial and trial["status"] == "failed")
    return "FAILED" if failed else None
