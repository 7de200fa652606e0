"""Models and tasks for tests, without a stream of data."""

from __future__ import annotations

import torch

from benchmarks.dataset import Examples
from benchmarks.models.backbones import BackboneConfig, build_model
from benchmarks.models.classifier import Classifier
from benchmarks.models.heads import HeadConfig
from benchmarks.stream import Task, TaskStream

NOTHING = Examples.of(torch.empty(0), torch.empty(0, dtype=torch.long))


def one_task(classes: int) -> Task:
    """A task without rows."""
    return Task(0, "all", range(classes), NOTHING, NOTHING, NOTHING)


def one_task_stream(classes: int) -> TaskStream:
    return TaskStream("none", "class", [str(c) for c in range(classes)], [one_task(classes)], answer_length=8)


def classifier(config: BackboneConfig, classes: int, head: HeadConfig | None = None) -> Classifier:
    """A classifier of one task."""
    model = build_model(config, head or HeadConfig(), one_task_stream(classes), seed=0)
    assert isinstance(model, Classifier)
    return model
