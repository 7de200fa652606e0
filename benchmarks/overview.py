"""A stream in numbers, for people who want to see that it is what they meant: its rows, and what was done with them."""

from __future__ import annotations

from statistics import median
from typing import Any

import torch

from benchmarks.account import Account
from benchmarks.fingerprint import SPLITS
from benchmarks.stream import Task, TaskStream


def overview(stream: TaskStream) -> dict[str, Any]:
    """Plain values: name, tasks, classes, rows by split, train rows a class (least, median, most), and the account.

    A class of a domain is counted in each domain; free answers count as one class a task.
    """
    counts = [count for task in stream.tasks for count in class_counts(task)]
    return {
        "stream": stream.name,
        "tasks": len(stream.tasks),
        "classes": stream.classes,
        "rows": {split: sum(len(getattr(task, split)) for task in stream.tasks) for split in SPLITS},
        "rows_per_class": {"least": min(counts), "median": median(counts), "most": max(counts)},
        "left_out": len(stream.skipped),
        "notes": stream.account.as_list(),
    }


def class_counts(task: Task) -> list[int]:
    """Train rows of each class, those held out for validation not among them."""
    if not task.classes:
        return [len(task.train)]
    labels = task.train.labels[task.train.rows]
    return torch.bincount(labels - task.classes.start, minlength=len(task.classes)).tolist()


def overview_lines(values: dict[str, Any]) -> list[str]:
    """The first line says what there is; each further one names something that a user may not expect."""
    rows = ", ".join(f"{count} {split}" for split, count in values["rows"].items())
    spread = values["rows_per_class"]
    classes = f"{values['classes']} classes in " if values["classes"] else ""
    each = f"{spread['least']}"
    if spread["least"] < spread["most"]:
        each += f" to {spread['most']} (median {spread['median']:g})"
    left = f"; {values['left_out']} left out" if values["left_out"] else ""
    first = f"{classes}{values['tasks']} tasks; rows: {rows}; {each} train rows a class{left}"
    return [f"data of {values['stream']}: {line}" for line in (first, *Account.from_list(values["notes"]).lines())]
