"""Fewer rows to score: a seeded choice of each task's test and validation rows, even over its classes."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.account import Account
from benchmarks.dataset import BenchmarkError, Examples
from benchmarks.stream import Task, TaskStream


def limited(stream: TaskStream, limit: int) -> TaskStream:
    """The stream with ``limit`` test rows and ``limit`` validation rows in a task, or all where it has no more.

    BenchmarkError where some class would have none.
    """
    account = Account()
    account.include(stream.account)
    tasks = []
    for task in stream.tasks:
        chosen = {split: even(task, split, limit) for split in ("test", "validation")}
        for split, rows in chosen.items():
            left_out = len(getattr(task, split)) - len(rows)
            account.note(f"{split} rows not scored (evaluate.limit)", task.name, left_out)
        tasks.append(replace(task, test=chosen["test"], validation=chosen["validation"]))
    return replace(stream, tasks=tasks, account=account)


def even(task: Task, split: str, limit: int) -> Examples:
    """``limit`` rows of a split, of every class as many as of the others where it has them."""
    examples: Examples = getattr(task, split)
    classes = examples.own_labels().unique()
    if limit < len(classes):
        raise BenchmarkError(
            f"evaluate.limit={limit}: task {task.name!r} has {len(classes)} classes in its {split} rows; "
            f"say {len(classes)} or more"
        )
    turns = turns_of(examples.own_labels())
    return examples.take(turns.argsort(stable=True)[:limit].sort().values)


def turns_of(labels: Tensor) -> Tensor:
    """When each row [n] is chosen: first one row of every class, then a second one, and so on."""
    turns = torch.empty_like(labels)
    for label in labels.unique():
        own = (labels == label).nonzero().flatten()
        # Seeded by their number, as the stream's own choices are: every run scores the same rows.
        turns[own] = torch.randperm(len(own), generator=torch.Generator().manual_seed(len(own)))
    return turns
