"""Models and tasks for tests, without a stream of data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.dataset import BenchmarkError, Examples
from benchmarks.models.backbones import build_model
from benchmarks.models.classifier import Classifier
from benchmarks.models.config import BackboneConfig
from benchmarks.models.deferred import filled
from benchmarks.models.heads import HeadConfig
from benchmarks.models.model import Model
from benchmarks.models.writer import AnswerWriter
from benchmarks.stream import Task, TaskStream
from methods.lora import LoRA, LoRAConfig

NOTHING = Examples.of(torch.empty(0), torch.empty(0, dtype=torch.long))
ANSWER_LENGTH = 8


def one_task(classes: int) -> Task:
    """A task without rows."""
    return Task(0, "all", range(classes), NOTHING, NOTHING, NOTHING)


def labelled_task(*options: str) -> Task:
    """A task of these label words, without rows."""
    return Task(0, "all", range(len(options)), NOTHING, NOTHING, NOTHING, list(options))


def free_task(score: str = "exact_match") -> Task:
    """A task of free answers, without rows."""
    return Task(0, "all", range(0), NOTHING, NOTHING, NOTHING, score=score)


def one_task_stream(classes: int) -> TaskStream:
    names = [str(c) for c in range(classes)]
    return TaskStream("none", "class", names, [one_task(classes)], answer_length=ANSWER_LENGTH)


def built(config: BackboneConfig, classes: int = 3, head: HeadConfig | None = None) -> Model:
    """What a run of one task would train."""
    return filled(build_model(config, head or HeadConfig(kind="linear"), one_task_stream(classes), seed=0))


def told(config: BackboneConfig) -> str:
    """The one line by which a backbone is refused."""
    with pytest.raises(BenchmarkError) as caught:
        built(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def classifier(config: BackboneConfig, classes: int, head: HeadConfig | None = None) -> Classifier:
    """A classifier of one task."""
    model = built(config, classes, head)
    assert isinstance(model, Classifier)
    return model


def writer(folder: Path) -> AnswerWriter:
    """The model of a folder that writes answers, as it is in evaluation."""
    model = built(BackboneConfig(name=str(folder)))
    assert isinstance(model, AnswerWriter)
    return model.eval()


def adapted(model: Model, rank: int = 2) -> Model:
    """``model`` with adapters; they and the head are no longer zero, so that every gradient is something."""
    torch.manual_seed(0)
    LoRA(LoRAConfig(rank=rank)).adapt(model.backbone, model.targets, [], 1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or name == "head.parts.0.weight":
            nn.init.normal_(parameter, std=0.1)
    return model


@torch.no_grad()
def option_likelihoods(model: AnswerWriter, prompts: Tensor, options: Tensor) -> Tensor:
    """Log-likelihood of every option [options, length] after every prompt, none left out: [n, options]."""
    reading = model.read(prompts)
    rows = torch.arange(len(prompts)).repeat_interleave(len(options))
    answers = options.repeat(len(prompts), 1)
    first = reading.first.float().log_softmax(1)[rows, answers[:, 0]]
    return (first + model.rest(reading, rows, answers)).view(len(prompts), len(options))
