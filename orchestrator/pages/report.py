"""Turns the result of a run, or of a sweep, into one self-contained HTML page.

The page needs no network and no JavaScript: its pictures are inline SVG, and whatever a user may have typed (names,
settings) is escaped. Equal input gives equal bytes, so pages can be compared. Words and tables live in
``report.html.j2`` and the templates that it includes, the drawing in ``pictures.py`` and its neighbours; this file
shapes the data of a run, ``sweep_view.py`` that of a sweep.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from benchmarks.overview import overview_lines
from orchestrator.pages.pictures import (
    Matrix,
    Record,
    accuracy_picture,
    distances_picture,
    progress_picture,
    pulls_picture,
    tree_picture,
)
from orchestrator.pages.scales import setting_text
from orchestrator.pages.sweep_view import known, sweep_view
from orchestrator.pages.tree_view import entry_names, leaf_tasks, search_rows, search_task, task_label
from orchestrator.run.checkpoint import read_json, writable
from orchestrator.settings.compose import flattened


def run_report(result: dict[str, Any]) -> str:
    """The page of one run."""
    return page(run=run_view(result), sweep=None)


def sweep_report(sweep: dict[str, Any], best: dict[str, Any] | None) -> str:
    """The page of a sweep: its trials, then the run report of the best one where there is one."""
    return page(run=run_view(best) if best else None, sweep=sweep_view(sweep))


def write_run(folder: Path, result: dict[str, Any]) -> Path:
    """Write the page of the run in ``folder``; returns its place."""
    return write(folder / "report.html", run_report(result))


def write_sweep(folder: Path, summary: dict[str, Any]) -> Path:
    """Write the page of the sweep in ``folder``, with that of its best trial where this one has a result."""
    best = next((trial for trial in summary["trials"] if trial["id"] == summary["best"]), None)
    result = read_json(folder / best["folder"] / "result.json") if best else None
    return write(folder / "report.html", sweep_report(summary, result))


def write(file: Path, html: str) -> Path:
    """Write beside and rename, so that no reader sees half a page."""
    with writable(file.parent):
        beside = file.with_name(f"{file.name}.{os.getpid()}.new")
        beside.write_text(html, encoding="utf-8", errors="replace")  # paths may have bytes that are no UTF-8
        os.replace(beside, file)
    return file


def page(run: Record | None, sweep: Record | None) -> str:
    """Fill the template."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,  # by default a misspelt name in the template is an empty cell
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(show=show, setting=setting_text)
    html = environment.get_template("report.html.j2").render(run=run, sweep=sweep)
    return html.strip() + "\n"


def run_view(result: Record) -> dict[str, Any]:
    """What the template shows of a run."""
    report = result["method_report"] or {}
    names, accuracy = result["task_names"], as_matrix(result["accuracy_matrix"])
    pulls, distances = as_matrix(report.get("pulls", [])), as_matrix(report.get("distances", []))
    entries = entry_names(report, names)
    return {
        "result": result,
        "settings": flattened(result["config"]),
        "data": overview_lines(result["overview"]) if "overview" in result else [],
        "changes": result.get("changes", []),
        "accuracy": accuracy_picture(names, accuracy),
        "progress": progress_picture(names, accuracy),
        "tree": placed_tree(names, (report.get("tree") or {}).get("nodes", [])),
        "distances": distances_picture(entries, distances) if len(entries) > 1 else None,
        "searched": search_task(report, names),
        "search": search_rows(report, names),
        "pulls": pulls_picture(names, pulls) if pulls.any() else None,
        "favourites": favourites(names, report.get("chosen", [])),
    }


def favourites(names: Sequence[str], chosen: Sequence[Sequence[int]]) -> list[tuple[str, str, int, int]]:
    """Per task with searches: its name, the leaf chosen most often, how often, of how many."""
    counted = [(name, Counter(leaves)) for name, leaves in zip(names, chosen, strict=False)]
    tops = [(name, *counts.most_common(1)[0], counts.total()) for name, counts in counted if counts]
    return [(name, names[leaf], times, total) for name, leaf, times, total in tops]


def placed_tree(names: Sequence[str], nodes: Sequence[Record]) -> Markup | None:
    """The tree's picture with its nodes placed by diameter, or else by depth; None where it has no leaf."""
    held = {node["id"]: leaf_tasks(node) for node in nodes}
    leaves = {node: task_label(names, tasks) for node, tasks in held.items() if tasks is not None}
    if not leaves:
        return None
    diameters = node_diameters(nodes)
    across, measure = (node_depths(nodes), "depth") if diameters is None else (diameters, "diameter")
    return tree_picture(nodes, leaves, node_rows(nodes), across, measure)


def node_rows(nodes: Sequence[Record]) -> dict[int, float]:
    """Leaves on successive rows, each inner node midway between its children."""
    children: dict[int | None, list[int]] = defaultdict(list)
    for node in nodes:
        children[node["parent"]].append(node["id"])
    rows: dict[int, float] = {}
    free = itertools.count()

    def place(node: int) -> float:
        below = [place(child) for child in children.get(node, [])]
        rows[node] = fmean(below) if below else next(free)
        return rows[node]

    for root in children[None]:
        place(root)
    return rows


def node_diameters(nodes: Sequence[Record]) -> dict[int, float] | None:
    """The nodes' diameters, or None where they would not show a parent left of its children."""
    found = {node["id"]: node["diameter"] for node in nodes if known(node["diameter"])}
    if len(found) < len(nodes) or not any(found.values()):
        return None
    inner = [node for node in nodes if node["parent"] is not None]
    return found if all(found[node["parent"]] >= found[node["id"]] for node in inner) else None


def node_depths(nodes: Sequence[Record]) -> dict[int, float]:
    """How many nodes lie above each."""
    parents = {node["id"]: node["parent"] for node in nodes}

    def depth(node: int) -> int:
        return 0 if parents[node] is None else 1 + depth(parents[node])

    return {node: depth(node) for node in parents}


def show(value: float | None, form: str, scale: float = 1) -> str:
    return form.format(value * scale) if value is not None and known(value) else "–"


def as_matrix(rows: Sequence[Sequence[float | None]]) -> Matrix:
    return np.array(rows, dtype=np.float64)  # null becomes nan
