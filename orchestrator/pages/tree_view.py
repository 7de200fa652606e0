"""A method's report of its task tree, shaped for people: in words and tables for the terminal, in rows for the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

Record = Mapping[str, Any]
MOST_ENTRIES = 20  # whose distances are shown as a whole matrix


def tree_parts(report: Record, names: Sequence[str]) -> list[RenderableType]:
    """What the terminal shows: the tree, distances between its entries, and the search in it."""
    parts: list[RenderableType] = [drawn_tree(report, names)]
    labels = entry_names(report, names)
    if len(labels) > MOST_ENTRIES:
        parts.append(neighbour_table(labels, report["distances"]))
    elif len(labels) > 1:
        parts.append(distance_table(labels, report["distances"]))
    if report.get("search"):
        parts.append(search_table(report, names))
    return parts


def drawn_tree(report: Record, names: Sequence[str]) -> Tree:
    """All nodes, with pulls, mean and bound of the last search."""
    nodes = report["tree"]["nodes"]
    below, known = tasks_below(nodes), search_by_tasks(report)
    branches: dict[int | None, Tree] = {}
    for node in nodes:  # parents come before their children
        label = node_label(node, names)
        if seen := known.get(below[node["id"]]):
            pulls, mean, bound = cells(seen)
            label += f" (pulls {pulls}, mean {mean}, bound {bound})"
        above, text = branches.get(node["parent"]), Text(label)
        branches[node["id"]] = above.add(text) if above else Tree(text)
    return branches[nodes[0]["id"]]


def node_label(node: Record, names: Sequence[str]) -> str:
    """The tasks of a leaf and, where it holds more than one, the diameter."""
    tasks = leaf_tasks(node) or []
    diameter = [f"diameter {number(node['diameter'])}"] if len(tasks) != 1 else []
    return ", ".join([*([task_label(names, tasks)] if tasks else []), *diameter])


def distance_table(labels: Sequence[str], distances: Sequence[Sequence[float]]) -> Table:
    table = Table("", title="Leaf distances", box=SIMPLE)
    for entry in range(len(labels)):
        table.add_column(str(entry + 1), justify="right")
    for entry, (label, row) in enumerate(zip(labels, distances, strict=True)):
        cells = ["–" if other == entry else number(value) for other, value in enumerate(row)]
        table.add_row(Text(f"{entry + 1} {label}"), *cells)
    return in_full(table)


def neighbour_table(labels: Sequence[str], distances: Sequence[Sequence[float]]) -> Table:
    table = Table("leaf", "nearest leaf", title="Nearest leaves", box=SIMPLE)
    table.add_column("distance", justify="right")
    for entry, row in enumerate(distances):
        nearest = min((other for other in range(len(row)) if other != entry), key=lambda other: row[other])
        table.add_row(Text(labels[entry]), Text(labels[nearest]), number(row[nearest]))
    return in_full(table)


def search_table(report: Record, names: Sequence[str]) -> Table:
    table = Table("leaf", title=Text(f"Search while learning {search_task(report, names)}"), box=SIMPLE)
    for heading in ("pulls", "mean distance", "bound"):
        table.add_column(heading, justify="right")
    for label, *cells in search_rows(report, names):
        table.add_row(Text(label), *cells)
    return in_full(table)


def search_rows(report: Record, names: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """The last search's entries: tasks, pulls, mean, bound."""
    entries = (report.get("search") or {}).get("entries", [])
    return [(task_label(names, entry["tasks"]), *cells(entry)) for entry in entries]


def search_task(report: Record, names: Sequence[str]) -> str:
    """The task that the last search served; "" where there was none."""
    return names[report["search"]["task"]] if report.get("search") else ""


def entry_names(report: Record, names: Sequence[str]) -> list[str]:
    """What each stored entry holds."""
    return [task_label(names, tasks) for tasks in report.get("entries", [])]


def task_label(names: Sequence[str], tasks: Sequence[int]) -> str:
    return " + ".join(names[task] for task in tasks)


def leaf_tasks(node: Record) -> list[int] | None:
    """The tasks of a leaf, None of an inner node; older results have one task a leaf."""
    if "tasks" in node:
        return node["tasks"]
    return None if node["task"] is None else [node["task"]]


def tasks_below(nodes: Sequence[Record]) -> dict[int, frozenset[int]]:
    """The tasks in each node's leaves; the search's tree may have other numbers than the stored one."""
    below = {node["id"]: frozenset(leaf_tasks(node) or ()) for node in nodes}
    for node in reversed(nodes):  # children come after their parents
        if node["parent"] is not None:
            below[node["parent"]] |= below[node["id"]]
    return below


def search_by_tasks(report: Record) -> dict[frozenset[int], Record]:
    """The last search's statistics of the entry or node that holds exactly these tasks."""
    search = report.get("search") or {}
    nodes = search.get("nodes", [])
    below = tasks_below(nodes)
    known: dict[frozenset[int], Record] = {frozenset(entry["tasks"]): entry for entry in search.get("entries", [])}
    return known | {below[node["id"]]: node for node in nodes}


def cells(seen: Record) -> tuple[str, str, str]:
    return f"{seen['pulls']:,.0f}", number(seen["mean"]), number(seen["bound"])


def number(value: float | None) -> str:
    return f"{value:.3f}" if value is not None and math.isfinite(value) else "–"


def in_full(table: Table) -> Table:
    """As wide as its content: a number that a narrow terminal cut short would be another number."""
    table.title_justify = "left"
    table.width = Console(width=10_000).measure(table).maximum
    return table
