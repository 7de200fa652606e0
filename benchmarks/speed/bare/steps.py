"""The steps of a tiny run in plain torch: a small ViT with low-rank updates learns two tasks of eight images.

As in a run: all tasks are judged before the first, and those seen after each task, on validation rows and with the
next one on test rows; features of the training rows are collected once for a classifier in closed form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.dataset import Examples, StreamConfig
from benchmarks.formats import ImageFormat
from benchmarks.models.config import MICRO_VIT_PIXELS
from benchmarks.models.vision import MICRO_VIT_WEIGHTS, micro_vit
from benchmarks.stream import build_stream

# What the settings of the case say too.
STREAM = {"name": "split_digits", "source": "digits", "tasks": 2, "classes": 4}
ROWS = {"train_per_class": 4, "test_per_class": 4}
RANK, EVALUATED = 4, 256
ALL = slice(None)


class LowRank(nn.Module):
    """A frozen linear layer and an update of low rank."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, RANK, bias=False)
        self.up = nn.Linear(RANK, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x) + 2 * self.up(self.down(x))
        return y


class Classifier(nn.Module):
    """A pre-trained backbone with low-rank updates, and a linear head."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.backbone = micro_vit()
        weights = load_file(MICRO_VIT_WEIGHTS)
        self.backbone.load_state_dict({name: w for name, w in weights.items() if not name.startswith("head.")})
        self.backbone.requires_grad_(False)
        for number in range(len(self.backbone.blocks)):
            attention = self.backbone.get_submodule(f"blocks.{number}.attn")
            attention.qkv = LowRank(cast(nn.Linear, attention.qkv))
        self.width = int(self.backbone.num_features)
        self.head = nn.Linear(self.width, classes)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.backbone(x))
        return y

    def features(self, x: Tensor) -> Tensor:
        y: Tensor = self.backbone(x)
        return y


def learn(
    seed: int,
    report: Callable[[int, float], None],
    wrap: Callable[[Classifier], None] = lambda model: None,
    share: slice = ALL,
) -> None:
    """``report`` gets the number of tasks learned and the mean accuracy on validation rows; ``share`` of each batch
    is this worker's."""
    torch.manual_seed(seed)
    stream = build_stream(StreamConfig.model_validate(STREAM | ROWS), None, ImageFormat(MICRO_VIT_PIXELS))
    model = Classifier(stream.classes)
    wrap(model)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    means = torch.zeros(stream.classes, model.width)
    accuracies(model, means, [task.test for task in stream.tasks], share)
    for number, task in enumerate(stream.tasks, 1):
        for inputs, labels in loader(task.train, 32):
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs[share]), labels[share]).backward()
            optimizer.step()
        collect(model, means, task.train, share)
        judged = [t.test for t in stream.tasks[: number + 1]] + [t.validation for t in stream.tasks[:number]]
        report(number, sum(accuracies(model, means, judged, share)) / len(judged))


def loader(examples: Examples, size: int) -> DataLoader[tuple[Tensor, ...]]:
    batch = examples.batch()
    return DataLoader(TensorDataset(batch.inputs.float() / 127.5 - 1, batch.labels), size, shuffle=True)


@torch.no_grad()
def collect(model: Classifier, means: Tensor, examples: Examples, share: slice) -> None:
    for inputs, labels in loader(examples, EVALUATED):
        features = model.features(inputs[share])
        for label in labels[share].unique():
            means[label] = features[labels[share] == label].mean(0)


@torch.no_grad()
def accuracies(model: Classifier, means: Tensor, splits: list[Examples], share: slice) -> list[float]:
    found = []
    for split in splits:
        hits = [
            (torch.cdist(model.features(inputs[share]), means).argmin(1) == labels[share]).double()
            for inputs, labels in loader(split, EVALUATED)
        ]
        found.append(float(torch.cat(hits).mean()))
    return found
