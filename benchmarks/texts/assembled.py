"""How the tasks of a stream of texts become one data set.

Every task is a group and has classes of its own, so that two tasks may use the same label word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from benchmarks.account import Account
from benchmarks.dataset import FREE, BenchmarkError, Dataset, Records
from benchmarks.texts.labels import unified
from benchmarks.texts.rows import FORMS, Label, Row, Split, TextTask

Numbered = list[tuple[Row, int]]  # rows with their class numbers


def assembled(tasks: Iterable[TextTask], bad: list[str], skip_bad: bool) -> Dataset:
    """Number the classes of all tasks. ``bad`` has the place and reason of rows that were left out so far.

    BenchmarkError for bad rows (unless ``skip_bad``) and for splits without any good one.
    """
    class_names: list[str] = []
    train: list[Numbered] = []
    validation: list[Numbered] = []
    test: list[Numbered] = []
    names: list[str] = []
    account = Account()
    for given in tasks:
        task = unified(given, account)
        labels, numbers = labels_of(task, len(class_names))
        train.append(numbered(task, task.train, numbers, bad))
        test.append(numbered(task, task.test, numbers, bad))
        validation.append(numbered(task, task.validation, numbers, bad) if task.validation else [])
        class_names += map(str, labels)
        names.append(task.name)
        # A split without a good row would otherwise hide the reason why its rows are bad.
        if skip_bad or not bad:
            refuse_empty(task, train[-1], test[-1], validation[-1])
    if bad and not skip_bad:
        more = f"; {len(bad) - 1} more bad rows" if len(bad) > 1 else ""
        raise BenchmarkError(f"{bad[0]}{more}; correct this, or leave bad rows out with --skip-bad")
    return Dataset(records(train, validation), records(test), class_names, names, bad, account)


def labels_of(task: TextTask, start: int) -> tuple[list[Label], dict[Label, int]]:
    """The labels in order, none if the task is free, and the class of each: classes begin at ``start``.

    An integer counts into a given list of words.
    """
    if is_free(task):
        return [], {}
    found = {row.label for row in task.train.rows if row.label is not None}
    labels = task.labels or sorted(found, key=lambda label: (isinstance(label, str), label))
    numbers: dict[Label, int] = {label: start + index for index, label in enumerate(labels)}
    if task.labels and all(isinstance(label, str) for label in labels):
        numbers |= {index: start + index for index in range(len(labels))}
    return labels, numbers


def is_free(task: TextTask) -> bool:
    """The first train row says which form the task has."""
    return bool(task.train.rows) and task.train.rows[0].label is None


def numbered(task: TextTask, split: Split, numbers: Mapping[Label, int], bad: list[str]) -> Numbered:
    """Rows with their classes; those that do not fit into the task are added to ``bad``."""
    free = is_free(task)
    reason = "is not in the task's list of labels" if task.labels else "is in no train row of the task"
    kept = []
    for row in split.rows:
        if (row.label is None) != free:
            bad.append(f"{row.place}: other fields than the task's first row; all rows need {FORMS}")
        elif row.label is None:
            kept.append((row, FREE))
        elif row.label in numbers:
            kept.append((row, numbers[row.label]))
        else:
            bad.append(f"{row.place}: label {row.label!r} {reason}")
    return kept


def refuse_empty(task: TextTask, *splits: Numbered) -> None:
    for split, rows in zip(task.splits, splits, strict=False):
        if not rows:
            raise BenchmarkError(f"{split.place}: no usable row is in it; add some or leave out the task {task.name!r}")


def records(tasks: list[Numbered], held_out: list[Numbered] | None = None) -> Records:
    """All tasks one after another, each with its rows of ``held_out`` behind it; the group of a row is its task."""
    sets = list(zip(tasks, held_out or [[] for _ in tasks], strict=True))
    found = [(*one, index, held) for index, both in enumerate(sets) for held, rows in enumerate(both) for one in rows]
    rows = [row for row, *_ in found]
    labels, groups, held = (torch.tensor([one[column] for one in found]) for column in (1, 2, 3))
    answers = [row.answer for row in rows] if any(row.answer for row in rows) else []
    return Records([row.text for row in rows], labels, groups, answers, held.bool() if any(held_out or []) else None)
