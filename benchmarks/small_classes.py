"""Classes with too few rows to be learned and tested, as long tails have them: refused together, or left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.dataset import FREE, BenchmarkError, Dataset, Records, StreamConfig

NAMED = 3  # classes that a message names


def refuse_small(data: Dataset, used: Sequence[int], config: StreamConfig) -> None:
    """BenchmarkError that names the classes of ``used`` without two train rows and a test row."""
    small = [reason for label, reason in small_classes(data).items() if label in set(used)]
    if small:
        more = f" (and {len(small) - NAMED} more classes)" if len(small) > NAMED else ""
        raise BenchmarkError(
            f"{place(config)}: {', '.join(small[:NAMED])}{more}, and two and one are needed; add some, or leave such "
            "classes out with --skip-bad"
        )


def without_small(data: Dataset, config: StreamConfig) -> Dataset:
    """The data without such classes, which are named in ``skipped``; BenchmarkError where none is left."""
    small = small_classes(data)
    left = [label for label in range(len(data.class_names)) if label not in small]
    if not small:
        return data
    if not left and FREE not in data.train.labels:
        raise BenchmarkError(f"{place(config)}: no class has two train rows and a test row; add some")
    numbers = torch.full((len(data.class_names) + 1,), FREE)  # the last one is FREE's own
    numbers[left] = torch.arange(len(left))
    dropped = torch.tensor(list(small))
    train, test = (taken(split, ~torch.isin(split.labels, dropped), numbers) for split in (data.train, data.test))
    skipped = [*data.skipped, *(f"{place(config)}: {reason}" for reason in small.values())]
    return replace(data, train=train, test=test, class_names=[data.class_names[c] for c in left], skipped=skipped)


def small_classes(data: Dataset) -> dict[int, str]:
    """What each class that is too small has, by its label."""
    labels, held_out = data.train.labels, data.train.held_out
    held_out = torch.zeros_like(labels).bool() if held_out is None else held_out
    train, validation, test = (
        torch.bincount(labels[labels != FREE], minlength=len(data.class_names)).tolist()
        for labels in (labels[~held_out], labels[held_out], data.test.labels)
    )
    return {
        label: f"class {name!r} has {train[label]} train and {test[label]} test rows"
        + (f", and {validation[label]} of validation" if validation[label] else "")
        for label, name in enumerate(data.class_names)
        if train[label] < 2 or test[label] < 1
    }


def taken(records: Records, kept: Tensor, numbers: Tensor) -> Records:
    """The rows that are ``kept`` [n], with ``numbers[label]`` for each label."""
    rows = kept.nonzero().flatten()
    items = records.items[rows] if isinstance(records.items, Tensor) else [records.items[row] for row in rows.tolist()]
    return Records(
        items,
        numbers[records.labels[rows]],
        None if records.groups is None else records.groups[rows],
        [records.answers[row] for row in rows.tolist()] if records.answers else (),
        None if records.held_out is None else records.held_out[rows],
    )


def place(config: StreamConfig) -> str:
    return f"benchmark.path={config.path}" if config.path else f"benchmark={config.name}"
