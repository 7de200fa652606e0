"""Which experiment a run's folder belongs to: made for one, found again by it, and refused to any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orchestrator.run.checkpoint import read_json, write_json
from orchestrator.run.lock import LOCK
from orchestrator.settings.compose import checked
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError

BEGUN = ("checkpoints", "result.json", "trials.jsonl")  # a folder with one of these holds work
# What a start writes before any work: a run that failed at once may be started with other settings.
UNBEGUN = ("experiment.json", "mlflow.json", "mlflow.lock", "system.jsonl", "progress.json", "train", "error.json")


def claim(experiment: Experiment) -> bool:
    """Make the run's folder, or find it; True if the run is finished already.

    UserError if the name belongs to a run with other settings: nothing is overwritten.
    """
    take_folder(experiment, experiment.identity())
    return is_finished(experiment)


def is_finished(experiment: Experiment) -> bool:
    """Whether the run's folder has its result; UserError if the folder belongs to something else."""
    check_folder(experiment, experiment.identity())
    return (experiment.folder / "result.json").exists()


def claim_sweep(experiment: Experiment) -> None:
    """The same for a sweep: its search settings belong to what it is."""
    take_folder(experiment, experiment.identity() | {"sweep": experiment.sweep.search()})


def take_folder(experiment: Experiment, wanted: dict[str, Any]) -> None:
    if check_folder(experiment, wanted) != wanted:
        write_json(experiment.folder / "experiment.json", wanted)


def check_folder(experiment: Experiment, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """What the folder holds: ``wanted``, nothing, or a run that never began; UserError for anything else."""
    refuse_files(experiment)
    found = read_json(experiment.folder / "experiment.json")
    begun = any((experiment.folder / name).exists() for name in BEGUN)
    if found is None or (found != wanted and not begun):
        refuse_strangers(experiment.folder)
    elif found != wanted and (found := as_of_today(experiment, found)) != wanted:
        setting, old, new = difference(found, wanted)
        raise refused(experiment, f"holds a run with {setting}={old}, not {new}")
    return found


def as_of_today(experiment: Experiment, found: Any) -> dict[str, Any]:
    """``found`` with what an earlier version could not write: a setting that is new since then has its default.

    The file stays as it is. UserError where it has a setting, or a value, that is unknown today.
    """
    try:
        today = checked(found | {"name": experiment.name, "storage": str(experiment.storage)})
    except (TypeError, UserError) as error:
        raise refused(experiment, f"has an experiment.json that this version cannot read ({error})") from None
    # A sweep's search settings make no sweep of a run.
    search = {"sweep": today.sweep.search()} if "sweep" in found else {}
    return completed(found, today.identity() | search)


def completed(found: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """``found`` with those of the nested ``defaults`` that it lacks."""
    inner = {key for key, value in found.items() if isinstance(value, dict) and isinstance(defaults.get(key), dict)}
    return defaults | {key: completed(found[key], defaults[key]) if key in inner else found[key] for key in found}


def refused(experiment: Experiment, reason: str) -> UserError:
    return UserError(
        f"name={experiment.name}: {experiment.folder} {reason}; choose another name=… or remove that folder"
    )


def refuse_files(experiment: Experiment) -> None:
    """UserError where a file is in the place of the run's folder, or of one above it."""
    for place in (experiment.folder, *experiment.folder.parents):
        if place.exists() and not place.is_dir():
            raise UserError(f"{experiment.folder}: {place} is a file; choose another name=… or storage=…")


def refuse_strangers(folder: Path) -> None:
    names = [entry.name for entry in folder.iterdir()] if folder.exists() else []
    # What is just being written has a longer name: the record of a trial is made while the trial begins.
    beginnings = (LOCK, *(f"{known}." for known in UNBEGUN))
    if any(name not in UNBEGUN and not name.startswith(beginnings) for name in names):
        raise UserError(f"name={folder.name}: {folder} exists and is no run; choose another name=…")


def difference(left: Any, right: Any, prefix: str = "") -> tuple[str, Any, Any]:
    """A setting in which two nested dictionaries differ, with both values: what a part is before its options."""

    def order(key: str) -> tuple[bool, bool, str]:
        # Two methods have options of their own, and "method.adapter=shared, not None" would not say what was changed.
        return key not in ("name", "kind"), key not in left or key not in right, key

    for key in sorted({*left, *right}, key=order):
        one, other = left.get(key), right.get(key)
        if isinstance(one, dict) and isinstance(other, dict) and one != other:
            return difference(one, other, f"{prefix}{key}.")
        if one != other:
            return prefix + key, one, other
    raise ValueError("no difference")


def error_file(experiment: Experiment) -> Path:
    """Where a worker writes an error that the user must fix."""
    return experiment.folder / "error.json"


def finished(folder: Path) -> dict[str, Any]:
    """The result in ``folder``; UserError with the reason where there is none."""
    result = read_json(folder / "result.json")
    if result is None:
        reason = read_json(folder / "error.json") or f"{folder}: the run ended without a result"
        raise UserError(reason)
    return result
