"""Which classes and rows make up each task: the data's own tasks, its domains, or its classes divided evenly."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy
import torch

from benchmarks.dataset import FREE, BenchmarkError, Dataset, StreamConfig

USUAL_TASKS = 5  # into which classes are divided where nothing is said


@dataclass(frozen=True)
class Part:
    """One task before its rows are read: classes as the source numbers them, and its group where it has one."""

    name: str
    classes: list[int]
    options: list[str]  # what the classes are called
    group: int | None = None


def divide(data: Dataset, config: StreamConfig, order_seed: int | None) -> list[Part]:
    """The tasks of a stream in order; ``order_seed`` draws the order of classes, or of the data's own tasks."""
    if config.scenario == "domain":
        return domains(data, config, order_seed)
    if data.group_names and not isinstance(config.tasks, int):
        return own_tasks(data, config, order_seed)
    return even_tasks(data, config, order_seed)


def even_tasks(data: Dataset, config: StreamConfig, order_seed: int | None) -> list[Part]:
    """The classes in order, cut into ``benchmark.tasks`` parts whose sizes differ by one at most."""
    if isinstance(config.tasks, tuple):
        raise BenchmarkError(f"benchmark.tasks: {config.name} has no tasks of its own; say into how many to divide it")
    order = permutation(len(data.class_names), order_seed)[: config.classes]
    # Unless it is said, at least two classes a task: one alone teaches a trained head nothing.
    tasks = config.tasks or min(USUAL_TASKS, max(1, len(order) // 2))
    if tasks > len(order):
        raise BenchmarkError(
            f"benchmark.tasks={tasks}: {config.name} has only {len(order)} classes; say {len(order)} or fewer"
        )
    cuts = [len(order) * t // tasks for t in range(tasks + 1)]
    return [part_of(data, order[start:stop]) for start, stop in pairwise(cuts)]


def part_of(data: Dataset, classes: list[int]) -> Part:
    names = words(data, classes)
    return Part(", ".join(names[:3]) + (" …" if len(names) > 3 else ""), classes, names)


def words(data: Dataset, classes: list[int]) -> list[str]:
    return [data.class_names[c] for c in classes]


def group_part(data: Dataset, group: int, classes: list[int]) -> Part:
    return Part(data.group_names[group], classes, words(data, classes), group)


def own_tasks(data: Dataset, config: StreamConfig, order_seed: int | None) -> list[Part]:
    """The data's own tasks; those that ``benchmark.tasks`` names, in its order."""
    groups = ordered_groups(data, config, order_seed)
    return [group_part(data, group, own_classes(data, group)) for group in groups]


def own_classes(data: Dataset, group: int) -> list[int]:
    """Those of a task's rows in either split; none where its answers are free."""
    labels = [split.labels[split.groups == group] for split in (data.train, data.test) if split.groups is not None]
    return [label for label in torch.cat(labels).unique().tolist() if label != FREE]


def domains(data: Dataset, config: StreamConfig, order_seed: int | None) -> list[Part]:
    """Every domain with all classes."""
    if not data.group_names:
        raise BenchmarkError(
            f"benchmark.scenario=domain: {config.name} has no domains of its own, as benchmark=image_folder has them "
            "with DIR/DOMAIN/CLASS/*"
        )
    if isinstance(config.tasks, int):
        raise BenchmarkError(
            f"benchmark.tasks={config.tasks}: each domain of {config.name} is a task; say null, or name some of them"
        )
    classes = list(range(len(data.class_names)))
    return [group_part(data, group, classes) for group in ordered_groups(data, config, order_seed)]


def shared_classes(data: Dataset) -> Dataset:
    """Classes of one name as one class: tasks of text come with classes of their own."""
    names = list(dict.fromkeys(data.class_names))
    numbers = torch.tensor([*map(names.index, data.class_names), FREE])  # FREE is the last one
    train, test = (replace(split, labels=numbers[split.labels]) for split in (data.train, data.test))
    return replace(data, train=train, test=test, class_names=names)


def ordered_groups(data: Dataset, config: StreamConfig, order_seed: int | None) -> list[int]:
    """The groups that ``benchmark.tasks`` names, else all, in its order or the one that ``order_seed`` draws."""
    if config.classes is not None:
        raise BenchmarkError(f"benchmark.classes={config.classes}: {config.name} has its own tasks; name some of them")
    wanted = config.tasks if isinstance(config.tasks, tuple) else tuple(data.group_names)
    for name in wanted:
        if name not in data.group_names:
            raise BenchmarkError(f"benchmark.tasks: there is no {name!r}; choose among {', '.join(data.group_names)}")
    return [data.group_names.index(wanted[place]) for place in permutation(len(wanted), order_seed)]


def permutation(count: int, order_seed: int | None) -> list[int]:
    """The natural order, or numpy's legacy permutation of that seed: the one that class orders are published by."""
    if order_seed is None:
        return list(range(count))
    return numpy.random.RandomState(order_seed).permutation(count).tolist()
