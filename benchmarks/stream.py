"""The stream: ordered tasks with train, validation and test examples.

The class order is drawn from ``order_seed`` alone and the splits from fixed seeds, so that runs with other
``seed`` see the same stream. Labels are renumbered in the order of arrival: task t owns a range of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks import images  # noqa: F401  registers its sources
from benchmarks.dataset import SOURCES, BenchmarkError, Examples, StreamConfig


@dataclass(frozen=True)
class Task:
    """One task; ``classes`` are its labels in the stream's numbering."""

    index: int
    name: str
    classes: range
    train: Examples
    validation: Examples
    test: Examples


@dataclass(frozen=True)
class TaskStream:
    """All tasks in order; ``classes`` is the size of the whole label space."""

    name: str
    scenario: str
    class_names: list[str]
    tasks: list[Task]

    @property
    def classes(self) -> int:
        return len(self.class_names)

    def candidates(self, learned: int, evaluated: int) -> range:
        """Labels that compete when task ``evaluated`` is tested after ``learned`` tasks.

        Class-incremental: all seen classes, and the task's own where it lies ahead. Task-incremental: its own.
        """
        if self.scenario == "task":
            return self.tasks[evaluated].classes
        return range(self.tasks[max(learned - 1, evaluated)].classes.stop)


def build_stream(config: StreamConfig, order_seed: int | None) -> TaskStream:
    """Read the data and divide its classes into ``config.tasks`` tasks, in natural order without ``order_seed``."""
    if config.source not in SOURCES:
        raise BenchmarkError(f"benchmark.source={config.source}: choose one of {', '.join(sorted(SOURCES))}")
    data = SOURCES[config.source](config)
    count = len(data.class_names)
    if config.tasks > count:
        raise BenchmarkError(f"benchmark.tasks={config.tasks}: {config.name} has only {count} classes")
    order = class_order(count, order_seed)
    names = [data.class_names[c] for c in order]
    new_label = torch.empty(count, dtype=torch.long)
    new_label[order] = torch.arange(count)
    train = renumbered(data.train, new_label)
    test = renumbered(data.test, new_label)
    tasks = [
        make_task(t, range(count * t // config.tasks, count * (t + 1) // config.tasks), names, train, test, config)
        for t in range(config.tasks)
    ]
    return TaskStream(config.name, config.scenario, names, tasks)


def class_order(count: int, order_seed: int | None) -> Tensor:
    """The natural order, or a permutation that depends on ``order_seed`` alone."""
    if order_seed is None:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(order_seed))


def renumbered(examples: Examples, new_label: Tensor) -> Examples:
    return Examples(examples.inputs, new_label[examples.labels])


def make_task(
    index: int, classes: range, names: list[str], train: Examples, test: Examples, config: StreamConfig
) -> Task:
    """Cut one task out of both splits; the validation split comes out of train, never out of test."""
    train_rows, validation_rows, test_rows = [], [], []
    for label in classes:
        rows = rows_of(train, label, names, "train", config)
        held_out = min(max(1, round(config.validation_share * len(rows))), len(rows) - 1)
        validation_rows.append(rows[:held_out])
        train_rows.append(rows[held_out:])
        test_rows.append(rows_of(test, label, names, "test", config))
    parts = [
        part.take(torch.cat(rows).sort().values)
        for part, rows in ((train, train_rows), (train, validation_rows), (test, test_rows))
    ]
    name = ", ".join(names[c] for c in classes[:3]) + (" …" if len(classes) > 3 else "")
    return Task(index, name, classes, *parts)


def rows_of(examples: Examples, label: int, names: list[str], split: str, config: StreamConfig) -> Tensor:
    """Rows of one class in an order fixed by their number, as many as the settings allow."""
    rows = (examples.labels == label).nonzero().flatten()
    if len(rows) < (2 if split == "train" else 1):
        place = f"benchmark.path={config.path}" if config.path else f"benchmark={config.name}"
        raise BenchmarkError(
            f"{place}: class {names[label]!r} has too few {split} images ({len(rows)}); add some or remove the class"
        )
    shuffled = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(len(rows)))]
    return shuffled[: config.train_per_class if split == "train" else config.test_per_class]
