"""Continual learning, whole: for every task, for every epoch, for every batch; then evaluate on the tasks seen.

What happens at a step is the learner's and the method's; when to stop, resume, save and report is decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.stream import Task, TaskStream
from methods.base import finished
from orchestrator.run.learner import Learner

Matrix = list[list[float | None]]
MATRICES = ("test", "validation", "unmasked")
UNSCORED = -1.0  # in the place of None; scores are 0 to 1
DOUBLE = torch.float64  # as Python's floats: a resumed run ends with the undisturbed bits


@dataclass
class Position:
    """How far a run is, and what it has measured so far: mean scores in 0 to 1, accuracies where there are labels."""

    task: int = 0
    step: int = 0  # optimiser steps done in this task
    loss: float | None = None
    initial: list[float] = field(default_factory=list)  # test score on each task before any training
    test: Matrix = field(default_factory=list)  # accuracies, row = after task, None = not scored then
    validation: Matrix = field(default_factory=list)
    unmasked: Matrix = field(default_factory=list)  # test, all seen classes competing; scenario task only
    losses: list[float | None] = field(default_factory=list)  # last loss of each task, None where it took no step

    def as_dict(self) -> dict[str, Any]:
        """Plain values that do not change any more, without the matrices."""
        plain = {name: value for name, value in vars(self).items() if name not in MATRICES}
        return {name: list(value) if isinstance(value, list) else value for name, value in plain.items()}

    def rows(self, since: int) -> dict[str, Tensor]:
        """The rows of the matrices from task ``since`` on, which are never edited."""
        return {
            finished(task, name): torch.tensor([UNSCORED if score is None else score for score in row], dtype=DOUBLE)
            for name in MATRICES
            for task, row in list(enumerate(getattr(self, name)))[since:]
        }

    @classmethod
    def restored(cls, values: dict[str, Any], rows: dict[str, Tensor]) -> Position:
        """The inverse of ``as_dict`` and ``rows``."""
        position = cls(**values)
        for name in MATRICES:
            found = [rows[key].tolist() for task in range(position.task) if (key := finished(task, name)) in rows]
            setattr(position, name, [[None if score == UNSCORED else score for score in row] for row in found])
        return position


@dataclass(frozen=True)
class Hooks:
    """Callbacks of the loop, called on every worker at the same points; they may make collective calls."""

    save: Callable[[Position], None]
    stepped: Callable[[Position, int], None]  # with the number of steps of the task
    learned: Callable[[Position], None]


def learn(
    learner: Learner, stream: TaskStream, position: Position, hooks: Hooks, save_every: int, evaluate_every: int
) -> None:
    """Go through the stream from ``position`` on, which is updated in place and ends behind the last task.

    Checkpoints inside a task follow each other after ``save_every`` steps, evaluations of all seen tasks after
    ``evaluate_every`` tasks.
    """
    if not position.initial:
        position.initial = [row[0] for row in learner.scores(stream.tasks, "test", 0)]
    for task in stream.tasks[position.task :]:
        steps = steps_of(task, learner)
        if position.step == 0:
            position.loss = None
            learner.begin_task(task, steps)
        # The order of batches depends on seeds alone: to resume, those that were done are passed over.
        for rows in list(batches(task, learner))[position.step :]:
            position.loss = learner.step(rows, position.step)
            position.step += 1
            hooks.stepped(position, steps)
            # Not after the last step: the checkpoint below follows at once, and with the task ended.
            if position.step % save_every == 0 and position.step < steps:
                hooks.save(position)
        learner.end_task()
        measure(learner, stream, position, evaluate_every)
        position.task, position.step = position.task + 1, 0
        hooks.save(position)
        hooks.learned(position)


def batches(task: Task, learner: Learner) -> Iterator[Tensor]:
    """Rows of the global batches of all epochs; the order depends on (seed, task, epoch), not on workers."""
    for epoch in range(learner.epochs(task)):
        # Of 64 bits, as many as a generator takes.
        seed = ((learner.seed * 1_000_003 + task.index) * 1_000_003 + epoch) % 2**64
        order = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(seed))
        yield from order.split(learner.settings.batch_size)


def steps_of(task: Task, learner: Learner) -> int:
    return learner.epochs(task) * -(-len(task.train) // learner.settings.batch_size)


def measure(learner: Learner, stream: TaskStream, position: Position, every: int) -> None:
    """Fill one row of each matrix; between two evaluations of all seen tasks the one just learned is scored alone."""
    learned = position.task + 1
    scored = scored_after(learned, len(stream.tasks), every)
    with learner.method.inference():
        test, *unmasked = row(learner, stream, scored["test"], "test", learned)
        validation = row(learner, stream, scored["validation"], "validation", learned)[0]
    position.test.append(test)
    position.unmasked += unmasked
    position.validation.append(validation)
    position.losses.append(position.loss)


def scored_after(learned: int, count: int, every: int) -> dict[str, list[int]]:
    """Which of ``count`` tasks are scored by split once ``learned`` are, of which all have their turn at the end."""
    whole = learned % every == 0 or learned == count
    seen = list(range(learned)) if whole else [learned - 1]
    # The next one too, for forward transfer, which is read off test rows alone.
    return {"test": [*seen, learned] if learned < count else seen, "validation": seen}


def row(learner: Learner, stream: TaskStream, scored: list[int], split: str, learned: int) -> Matrix:
    """Mean score on each task of the stream after ``learned`` tasks, None for those that are not ``scored``.

    The first row is the result; in scenario task a classifier adds one where all seen classes compete.
    """
    found = learner.scores([stream.tasks[index] for index in scored], split, learned)
    rows: Matrix = [[None] * len(stream.tasks) for _ in found[0]]
    for index, values in zip(scored, found, strict=True):
        for number, value in enumerate(values):
            rows[number][index] = value
    return rows
