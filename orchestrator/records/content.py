"""What the record of a run or sweep says, read from its folder alone: as far as it has come, and whenever it is asked.

Nothing here talks to MLflow, so that the same content can be sent later, and to another server.
"""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param

from orchestrator.run.checkpoint import read_json
from orchestrator.settings.compose import flattened

PROJECT = Path(__file__).resolve().parents[2]
FILES = ("result.json", "report.html", "experiment.json", "sweep.json", "error.json")
SUMMARY = (
    "final_average_accuracy",
    "average_anytime_accuracy",
    "backward_transfer",
    "forgetting",
    "forward_transfer",
    "peak_memory_bytes",
    "trainable_parameters",
    "stored_parameters",
)
MATRICES = ("accuracy_matrix", "validation_matrix", "unmasked_matrix")
LONGEST_VALUE, LONGEST_KEY = 6000, 250  # MLflow's limits of a param
FORBIDDEN = re.compile(r"[^\w\-. :/]")  # in the names of params and metrics
NOT_REPEATED = ("storage=", "tracking.", "checkpoint.", "name=", "--")

Table = dict[str, list[Any]]


def params(settings: dict[str, str]) -> list[Param]:
    """Settings by dotted name; a value that is too long for MLflow ends with an ellipsis, experiment.json has it."""
    return [Param(FORBIDDEN.sub("_", key)[:LONGEST_KEY], shortened(value)) for key, value in settings.items()]


def as_text(settings: dict[str, Any]) -> dict[str, str]:
    return {key: storable(str(value)) for key, value in flattened(settings).items()}


def storable(text: str) -> str:
    """With a stand-in for each byte of a path that is no UTF-8, which no database takes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def shortened(value: str) -> str:
    return value if len(value) <= LONGEST_VALUE else f"{value[: LONGEST_VALUE - 1]}…"


def task_points(rows: list[dict[str, Any]]) -> list[Metric]:
    """Metrics of finished tasks, as progress.json has them; the step is the number of tasks seen."""
    now = milliseconds()
    return [
        Metric(key, float(value), now, row["task"])
        for row in rows
        for key, value in row.items()
        if key != "task" and value is not None
    ]


def summary_points(folder: Path) -> list[Metric]:
    """The numbers of a finished run, or of the best trial of a sweep and of its confirmation."""
    now, found, step = milliseconds(), {}, 0
    if result := read_json(folder / "result.json"):
        step = len(result["accuracy_matrix"])
        found = {key: result.get(key) for key in SUMMARY}
        found |= {f"seconds_{kind}": value for kind, value in result["seconds"].items()}
    if sweep := read_json(folder / "sweep.json"):
        best = best_trial(sweep)
        found |= {f"best_{key}": value for key, value in objectives(sweep, best).items()}
        confirmed = sweep.get("confirmed") or {}
        found |= {f"confirmed_{key}": confirmed.get(key) for key in ("mean", "standard_error")}
    return [Metric(FORBIDDEN.sub("_", k), float(v), now, step) for k, v in found.items() if v is not None]


def objectives(sweep: dict[str, Any], trial: dict[str, Any] | None) -> dict[str, Any]:
    return {sweep["objective"]: trial["objective"]} | trial.get("values", {}) if trial else {}


def best_trial(sweep: dict[str, Any]) -> dict[str, Any] | None:
    return next((trial for trial in sweep["trials"] if trial["id"] == sweep["best"]), None)


def first_tags(folder: Path, parent: Path | None, settings: dict[str, Any]) -> dict[str, str]:
    """Where the run is made, from which code, by which command, and under which protocol."""
    identity = read_json((parent or folder) / "experiment.json") or {}
    protocol = (identity.get("sweep") or {}).get("protocol")
    found = {"host": socket.gethostname(), "command": command(settings.get("trial")), **revision()}
    found |= {"protocol": protocol} if protocol else {}
    return {key: storable(value) for key, value in found.items() if value}


def command(trial: dict[str, Any] | None) -> str:
    """What was typed, without places of storage and records; for a trial, what runs it alone. Else nothing."""
    if Path(sys.argv[0]).stem not in ("run", "evergreen") or len(sys.argv) < 2:
        return ""
    name, *words = [word for word in sys.argv[1:] if not word.startswith(NOT_REPEATED)]
    if trial is not None:
        words = [word for word in words if not word.startswith(("sweep.", "sweep="))]
        words += [f"{key}={json.dumps(value)}" for key, value in flattened(trial).items()]
        name = "train"
    return shlex.join(["run.py", name, *words])


@cache
def revision() -> dict[str, str]:
    """The commit of the code and whether it was changed since, where it lies in a git checkout."""
    if not (PROJECT / ".git").exists():
        return {}
    try:
        commit, changes = (git(*words) for words in (("rev-parse", "HEAD"), ("status", "--porcelain")))
    except (OSError, subprocess.SubprocessError):
        return {}  # no git here, or a checkout that it does not trust
    return {"mlflow.source.git.commit": commit, "git.dirty": str(bool(changes)).lower()}


def git(*words: str) -> str:
    called = ["git", "-C", str(PROJECT), *words]
    return subprocess.run(called, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def last_tags(folder: Path) -> dict[str, str]:
    """What is known at the end: method and benchmark of a run; best trial, its settings and protocol of a sweep."""
    result, sweep = read_json(folder / "result.json"), read_json(folder / "sweep.json")
    found = {key: result[key] for key in ("method", "benchmark")} if result else {}
    if sweep:
        found |= {key: sweep[key] for key in ("protocol", "protocol_text") if sweep.get(key)}
        if best := best_trial(sweep):
            found |= {"best_trial": best["id"]} | {f"best.{k}": v for k, v in best["settings"].items()}
    if isinstance(error := read_json(folder / "error.json"), str):
        found["error"] = error
    return {key: str(value) for key, value in found.items()}


def datasets(folder: Path) -> list[DatasetInput]:
    """The data that a run used, by their fingerprint; nothing before its result."""
    result = read_json(folder / "result.json") or {}
    data = result.get("data")
    if not data:
        return []
    benchmark = result["config"]["benchmark"]
    source = {key: benchmark.get(key) for key in ("source", "path")}
    dataset = Dataset(
        name=benchmark["name"],
        digest=data["sha256"][:36],  # as long as MLflow takes; the profile has all of it
        source_type="local",
        source=json.dumps(source),
        profile=json.dumps(data),
    )
    return [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])]


def tables(folder: Path) -> dict[str, Table]:
    """Matrices and tree of a run, trials of a sweep, runs of a study, by the name of their table."""
    found: dict[str, Table] = {}
    if result := read_json(folder / "result.json"):
        names = [f"{number}. {name}" for number, name in enumerate(result["task_names"], 1)]
        for key in MATRICES:
            if result[key]:
                found[key] = matrix_table(names, result[key])
        if nodes := ((result["method_report"] or {}).get("tree") or {}).get("nodes"):
            found["tree"] = rows_table(nodes)
    if sweep := read_json(folder / "sweep.json"):
        found["trials"] = rows_table([flattened_trial(trial) for trial in sweep["trials"]])
    if study := read_json(folder / "study.json"):
        found["runs"] = rows_table([run | scores(folder / run["folder"]) for run in study["runs"]])
    return found


def matrix_table(names: list[str], matrix: list[list[float]]) -> Table:
    """A row after each task, a column for each task."""
    columns = {name: [row[index] for row in matrix] for index, name in enumerate(names)}
    return {"after": names[: len(matrix)], **columns}


def rows_table(rows: list[dict[str, Any]]) -> Table:
    """Columns by all keys of the rows; lists and groups as text, and nothing where a row has no such key."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    plain = [{k: json.dumps(v) if isinstance(v, dict | list) else v for k, v in row.items()} for row in rows]
    return {key: [row.get(key) for row in plain] for key in keys}


def scores(folder: Path) -> dict[str, Any]:
    """The summary of a run of a study, none where it has no result."""
    result = read_json(folder / "result.json") or {}
    return {key: result[key] for key in SUMMARY if key in result}


def as_split(table: Table) -> dict[str, list[Any]]:
    """The form in which MLflow keeps tables, pandas' ``split``."""
    return {"columns": list(table), "data": [list(row) for row in zip(*table.values(), strict=True)]}


def flattened_trial(trial: dict[str, Any]) -> dict[str, Any]:
    """Without its history, which the trial's own record has."""
    kept = {key: value for key, value in trial.items() if key not in ("settings", "values", "history")}
    return kept | trial["settings"] | {f"value.{key}": value for key, value in trial.get("values", {}).items()}


def milliseconds() -> int:
    return int(time.time() * 1000)
