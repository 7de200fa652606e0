"""A run in this process that ends in the middle of a task, as a killed one would, and goes on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.launch import train
from orchestrator.run import checkpoint
from orchestrator.run.learner import Learner
from orchestrator.settings.config import Experiment


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


def ended(experiment: Experiment) -> dict[str, Tensor]:
    """All tensors of a run's newest checkpoint."""
    found = checkpoint.load(experiment.folder)
    assert found is not None
    return found[0]


def assert_ends_alike(stopped: Experiment, task: int, number: int, whole: Experiment, result: dict[str, Any]) -> None:
    """Ended before step ``number`` of ``task`` and taken up again, ``stopped`` ends with the bits of ``whole``."""
    train_until(stopped, task, number)
    resumed = train(stopped)
    for key in ("accuracy_matrix", "validation_matrix", "method_report", "stored_parameters"):
        assert resumed[key] == result[key]
    one, two = ended(stopped), ended(whole)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
