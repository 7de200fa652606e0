"""A search and a tree as plain values, for reports."""

from __future__ import annotations

import math
from typing import Any

from methods.treelora.search.search import Searches
from methods.treelora.tree.metric import Metric
from methods.treelora.tree.stored import StoredTasks


def tree_record(stored: StoredTasks, metric: Metric) -> dict[str, Any]:
    """Nodes, tasks of each entry and the distances between entries."""
    signatures = stored.tree.signatures
    distances = [metric.distance(signatures, one).tolist() for one in signatures]
    return {"tree": {"nodes": nodes(stored)}, "entries": list(stored.tasks), "distances": distances}


def nodes(stored: StoredTasks) -> list[dict[str, Any]]:
    """The nodes of the tree; a leaf has the tasks of its entries."""
    result = []
    for node in stored.tree.nodes():
        entries = node.pop("entries")
        tasks = None if entries is None else sorted(task for entry in entries for task in stored.tasks[entry])
        result.append(node | {"tasks": tasks})
    return result


def search_record(
    task: int, search: Searches, stored: StoredTasks, answers: list[list[int]], path: bool
) -> dict[str, Any]:
    """Pulls, mean losses and bounds of every entry (None for what was never pulled), and the tasks chosen over time.

    An entry of several tasks is chosen as its first; where all levels share a ``path``, its choice counts once.
    """
    found = search.statistics()
    rows = zip(found["pulls"], found["mean"], found["bound"], strict=True)
    entries = [
        {"tasks": tasks, "pulls": float(pulls), "mean": finite(mean), "bound": finite(bound)}
        for tasks, (pulls, mean, bound) in zip(stored.tasks, rows, strict=True)
    ]
    chosen = [stored.tasks[entry][0] for answer in answers for entry in (answer[:1] if path else answer)]
    return {"task": task, "entries": entries, "chosen": chosen}


def pulls_of(record: dict[str, Any], tasks: int) -> list[float]:
    """Pulls of each task's entry in one search; an entry of several tasks counts at its first."""
    row = [0.0] * tasks
    for entry in record["entries"]:
        row[entry["tasks"][0]] = entry["pulls"]
    return row


def finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
