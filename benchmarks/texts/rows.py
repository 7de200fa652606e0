"""Rows of text tasks: what a good row is, and how the tasks of a stream become one data set.

Every task is a group and has classes of its own, so that two tasks may use the same label word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from benchmarks.dataset import FREE, BenchmarkError, Dataset, Records

Label = str | int
FORMS = "text and label, or prompt and answer"


class RowError(ValueError):
    """A row that cannot be used: the message is the reason."""


@dataclass(frozen=True)
class Row:
    """A text with its label, or (``label`` None) a prompt with its answer. ``place`` is its file and line."""

    place: str
    text: str
    label: Label | None = None
    answer: str = ""


@dataclass(frozen=True)
class Split:
    """The good rows of one file."""

    place: str
    rows: list[Row]


@dataclass(frozen=True)
class TextTask:
    """One task; ``labels`` are all its labels in order, None where they follow from its train rows."""

    name: str
    train: Split
    test: Split
    labels: list[Label] | None = None


Numbered = list[tuple[Row, int]]  # rows with their class numbers


def as_row(place: str, fields: object) -> Row:
    """Check the fields of one row; RowError says what is wrong."""
    if not isinstance(fields, dict):
        raise RowError("not an object")
    labelled, free = ({*names} <= fields.keys() for names in (("text", "label"), ("prompt", "answer")))
    if labelled == free:
        raise RowError(f"{'has both forms' if free else 'fields are missing'}; a row needs {FORMS}")
    if labelled:
        return Row(place, words(fields, "text"), as_label(fields["label"]))
    return Row(place, words(fields, "prompt"), answer=words(fields, "answer"))


def words(fields: Mapping[str, object], name: str) -> str:
    value = fields[name]
    if not isinstance(value, str):
        raise RowError(f"the {name} is not a string")
    if not value.strip():
        raise RowError(f"the {name} is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RowError(f"the {name} has half of a character (a lone surrogate)") from None
    return value


def as_label(value: object) -> Label:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RowError("the label is neither a string nor an integer")
    return value if isinstance(value, int) else words({"label": value}, "label")


def as_labels(value: object) -> list[Label]:
    """The given labels of a task: at least one, each once."""
    if not isinstance(value, list | tuple) or not value:
        raise RowError("the labels are not a list of strings or integers")
    labels = [as_label(label) for label in value]
    if len(set(labels)) < len(labels):
        raise RowError("a label is named twice")
    return labels


def assembled(tasks: Iterable[TextTask], bad: list[str], skip_bad: bool) -> Dataset:
    """Number the classes of all tasks. ``bad`` has the place and reason of rows that were left out so far.

    BenchmarkError for bad rows (unless ``skip_bad``) and for splits without any good one.
    """
    class_names: list[str] = []
    train: list[Numbered] = []
    test: list[Numbered] = []
    names: list[str] = []
    for task in tasks:
        labels, numbers = labels_of(task, len(class_names))
        train.append(numbered(task, task.train, numbers, bad))
        test.append(numbered(task, task.test, numbers, bad))
        class_names += map(str, labels)
        names.append(task.name)
        # A split without a good row would otherwise hide the reason why its rows are bad.
        if skip_bad or not bad:
            refuse_empty(task, train[-1], test[-1])
    if bad and not skip_bad:
        more = f"; {len(bad) - 1} more bad rows" if len(bad) > 1 else ""
        raise BenchmarkError(f"{bad[0]}{more}; correct this, or leave bad rows out with --skip-bad")
    return Dataset(records(train), records(test), class_names, names, bad)


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


def refuse_empty(task: TextTask, train: Numbered, test: Numbered) -> None:
    for split, rows in ((task.train, train), (task.test, test)):
        if not rows:
            raise BenchmarkError(f"{split.place}: no usable row is in it; add some or leave out the task {task.name!r}")


def records(tasks: list[Numbered]) -> Records:
    """All tasks one after another; the group of a row is its task."""
    rows = [row for task in tasks for row, _ in task]
    labels = torch.tensor([label for task in tasks for _, label in task])
    groups = torch.tensor([index for index, task in enumerate(tasks) for _ in task])
    answers = [row.answer for row in rows] if any(row.answer for row in rows) else []
    return Records([row.text for row in rows], labels, groups, answers)
