"""A run in this process that ends in the middle of a task, as a killed one would."""

from __future__ import annotations

import pytest
from torch import Tensor

from orchestrator.config import Experiment
from orchestrator.learner import Learner
from orchestrator.trainer import train


class Interrupted(Exception):
    """Stands for whatever ends a process in the middle of a step."""


def train_until(experiment: Experiment, task: int, number: int) -> None:
    """Train ``experiment`` and end it before step ``number`` of ``task``; fails if it does not get there."""
    step = Learner.step

    def failing(self: Learner, rows: Tensor, at: int) -> float:
        if (self.task.index, at) == (task, number):
            raise Interrupted
        return step(self, rows, at)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Learner, "step", failing)
        with pytest.raises(Interrupted):
            train(experiment)
