"""``run.py report``: the page, or the table, of a run or sweep, made again from its folder."""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from orchestrator.pages.progress import state_line
from orchestrator.run.checkpoint import read_json
from orchestrator.settings.compose import checked, load_experiment
from orchestrator.settings.errors import UserError
from orchestrator.settings.words import sweep_words_of, words_of

# Of a trial in sweep.json, in this order, before and after its settings and objectives.
BEFORE = ("id", "status")
AFTER = (
    "final_average_accuracy",
    "forgetting",
    "seconds",
    "stored_parameters",
    "peak_memory_bytes",
    "tasks",
    "attempts",
    "node",
    "started",
    "ended",
    "stopped",
    "error",
    "folder",
)


def write_report(run: str, settings: list[str]) -> Path:
    """Write the page of ``run``, a name or a folder below storage, again; returns its place.

    A sweep may be under way; UserError for a run without a result, which says how far it is.
    """
    folder = folder_of(run, settings)
    from orchestrator.pages import report  # matplotlib takes a second to import

    try:
        if is_sweep(folder):
            return report.write_sweep(folder, summary_of(run, folder))
        return report.write_run(folder, result_of(run, folder))
    except OSError as error:
        raise UserError(f"{folder}: the page cannot be written ({error.strerror})") from None


def write_markdown(run: str, file: Path, settings: list[str]) -> Path:
    """Write the page of a sweep as Markdown in ``file``, and its picture beside it; returns ``file``."""
    from orchestrator.pages import sweep_page

    folder = folder_of(run, settings)
    if not is_sweep(folder):
        raise UserError(f"{run}: it is a run; --markdown writes the page of a sweep")
    if file.suffix != ".md":
        raise UserError(f"--markdown {file}: name a file that ends in .md; its picture goes beside it")
    summary = summary_of(run, folder)
    experiment = checked(summary["config"] | {"storage": str(folder.parent)})
    words = [*sweep_words_of(experiment), *words_of(experiment), f"name={experiment.name}"]
    try:
        sweep_page.write_page(file, summary, shlex.join(["run.py", "sweep", *words]))
    except OSError as error:
        raise UserError(f"--markdown {file}: cannot be written ({error.strerror}); name another file") from None
    return file


def table(run: str, settings: list[str]) -> str:
    """CSV of ``run``: one row for each trial of a sweep, or for each task that a run has learned."""
    folder = folder_of(run, settings)
    return as_csv(trial_rows(summary_of(run, folder)) if is_sweep(folder) else task_rows(run, folder))


def folder_of(run: str, settings: list[str]) -> Path:
    """The folder of a run or sweep; UserError where there is none."""
    storage = load_experiment(settings).storage
    folder = storage / run
    if not (folder / "experiment.json").is_file():
        raise UserError(f"{run}: no such run or sweep in {storage}; name another, or set storage=…")
    return folder


def is_sweep(folder: Path) -> bool:
    return "sweep" in read_json(folder / "experiment.json")


def summary_of(run: str, folder: Path) -> dict[str, Any]:
    summary = read_json(folder / "sweep.json")
    if summary is None:
        raise UserError(f"{run}: no trial of this sweep has ended yet, so there is nothing to report; try again later")
    return summary


def result_of(run: str, folder: Path) -> dict[str, Any]:
    result = read_json(folder / "result.json")
    if result is None:
        raise UserError(f"{run}: no result yet ({how_far(folder)}); its train command goes on from there")
    return result


def how_far(folder: Path) -> str:
    now, reason = read_json(folder / "progress.json"), read_json(folder / "error.json")
    place = state_line(now) if now else "nothing learned"
    return f"{place}; it ended with: {reason}" if reason else place


def trial_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each trial, best first; settings are ``config/…``, as in Tune's ``ResultGrid.get_dataframe``."""
    rows = []
    for trial in summary["trials"]:
        row = {key: trial.get(key) for key in BEFORE}
        row |= {f"config/{key}": value for key, value in trial["settings"].items()}
        row |= trial.get("values") or {summary["objective"]: trial["objective"]}
        known = dict(trial) | {"tasks": len(trial.get("history", []))}
        known["stopped"] = (trial.get("stopped") or {}).get("text")
        rows.append(row | {key: known.get(key) for key in AFTER if key not in row})
    return rows


def task_rows(run: str, folder: Path) -> list[dict[str, Any]]:
    """A row for each task that a run has learned: means over the tasks seen by then."""
    now = read_json(folder / "progress.json")
    if not now or not now["history"]:
        raise UserError(f"{run}: no task learned yet ({how_far(folder)}); try again later")
    return now["history"]


def as_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """All columns of any row; unknown values are empty, lists and truth values are JSON."""
    found = list(rows)
    columns = list(dict.fromkeys(key for key in BEFORE if found and key in found[0]))
    columns += sorted({key for row in found for key in row if key.startswith("config/")})
    columns += list(dict.fromkeys(key for row in found for key in row if key not in columns))
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: cell(value) for key, value in row.items()} for row in found)
    return file.getvalue()


def cell(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
