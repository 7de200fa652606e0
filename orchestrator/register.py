"""``run.py register``: the trained model of a run, or of a sweep's winner, as a registered model of MLflow.

Registered is the folder that ``orchestrator/run/trained.py`` writes; beside it goes the adapter of ``run.py export``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from orchestrator import export
from orchestrator.pages.console import say
from orchestrator.run.checkpoint import read_json
from orchestrator.run.service import make_service
from orchestrator.run.session import Session, stream_without_rows
from orchestrator.run.sharding import Place
from orchestrator.run.trained import Trained, example, write_model
from orchestrator.settings.compose import load_experiment
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError


@dataclass(frozen=True)
class Registered:
    """Which run's model was registered under which name and version, and at which address."""

    run: str
    name: str
    version: str
    address: str


def register(run: str, settings: list[str]) -> Registered:
    """Register the model of ``run``, a name or a folder below storage; of a sweep, that of its winner.

    Its record is brought up to date first. UserError where there is no such run, checkpoint or server, and while a
    sweep has no finished trial.
    """
    experiment = export.run_with_checkpoint(best_of(run, settings), settings)
    from orchestrator.records.registry import register_model  # MLflow takes seconds to import
    from orchestrator.records.sync import sync_record

    synced = sync_record(run, settings)
    name = Path(run).name
    with TemporaryDirectory() as scratch:
        trained = prepare(experiment, Path(scratch))
        version = register_model(synced.connection, experiment.folder, name, trained)
    return Registered(experiment.name, name, version, synced.address)


def register_winner(experiment: Experiment, summary: dict[str, Any]) -> None:
    """The same at the end of a sweep, told in one line; what goes wrong does not undo the sweep."""
    tracking = experiment.tracking
    if not tracking.enabled or summary["best"] is None:
        return
    named = {"storage": str(experiment.storage), "tracking.experiment": tracking.experiment}
    named |= {"tracking.uri": tracking.uri} if tracking.uri else {}
    try:
        done = register(experiment.name, [f"{key}={json.dumps(value)}" for key, value in named.items()])
    except UserError as error:
        say(f"model: {error}; run.py register {experiment.name} tries it again")
    else:
        say(f"model: models:/{done.name}/{done.version} is that of {done.run}")


def best_of(run: str, settings: list[str]) -> str:
    """``run`` itself, or the folder below storage of a sweep's winner.

    That is its best trial; where trials learn other tasks than what the choice is for, the first run that confirmed it.
    """
    folder = load_experiment([*settings, f"name={Path(run).name}"]).storage / run
    if not (folder / "trials").is_dir():
        return run
    sweep = read_json(folder / "sweep.json") or {"best": None, "trials": []}
    best = next((trial for trial in sweep["trials"] if trial["id"] == sweep["best"]), None)
    if best is None:
        raise UserError(f"{run}: no trial of the sweep has finished yet; try again later, or name a trial")
    confirmed = sweep["confirmed"]
    return f"{run}/{confirmed['folders'][0] if confirmed and sweep['protocol'] != 'stream' else best['folder']}"


def prepare(experiment: Experiment, scratch: Path) -> Trained:
    """Write model and adapter of the newest checkpoint below ``scratch``."""
    stream = stream_without_rows(experiment)
    session = Session(experiment, Place(), make_service(experiment), lambda metrics: None, stream)
    session.resume()
    if session.position.task == 0:
        raise UserError(f"{experiment.name}: the run has not learned a task yet; try again later")
    adapter = write_adapter(session, scratch / "adapter")  # before the model, which is folded as it is written
    write_model(session, scratch / "model")
    return Trained(scratch / "model", adapter, example(session), session.position.task)


def write_adapter(session: Session, folder: Path) -> Path | None:
    """The adapter as ``run.py export`` writes it; None, and a line, where no low-rank update holds what was learned."""
    try:
        pairs = session.learner.method.pairs()
    except ValueError as error:
        say(f"model: no adapter goes with it ({error})")
        return None
    export.write_adapter(session, folder, pairs)
    return folder
