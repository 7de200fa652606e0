"""Model, method and optimiser of one run on one worker: take a step, count right answers, hand over the state."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.backbones import build_classifier
from benchmarks.dataset import Examples
from benchmarks.stream import Task, TaskStream
from methods import method_class
from methods.base import Chooser
from orchestrator.config import Experiment
from orchestrator.errors import UserError
from orchestrator.sharding import (
    Place,
    adapters_and_head,
    load_adapters_and_head,
    load_optimizer_state,
    optimizer_state,
)

EVALUATION_BATCH = 256


class Learner:
    """What the loop drives. Every worker holds one and all workers call it in step."""

    def __init__(self, experiment: Experiment, stream: TaskStream, place: Place, chooser: Chooser | None) -> None:
        torch.manual_seed(experiment.seed)
        self.settings, self.seed, self.stream, self.place = experiment.train, experiment.seed, stream, place
        self.model = build_classifier(experiment.backbone, stream.classes)
        self.method = method_class(experiment.method.name)(experiment.method)
        try:
            self.method.adapt(self.model.backbone, experiment.backbone.targets)
        except ValueError as error:
            raise UserError(str(error)) from None
        self.wrapped = place.spread(self.model)
        self.method.bind(place.levels(self.model), chooser)
        self.seconds = {"train": 0.0, "evaluate": 0.0, "method": 0.0}
        self.optimizer: torch.optim.Optimizer | None = None

    @property
    def trainable_parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    @contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[kind] += time.perf_counter() - started

    def select(self, task: Task) -> None:
        """A fresh optimiser for ``task``: without moments, the rows of old classes stay where they are."""
        self.task = task
        head = list(self.model.head.parameters())
        adapters = [p for n, p in self.model.named_parameters() if p.requires_grad and not n.startswith("head.")]
        rates = self.settings.learning_rate, self.settings.head_learning_rate
        groups = [{"params": adapters, "lr": rates[0]}, {"params": head, "lr": rates[1]}]
        self.optimizer = torch.optim.Adam([g for g in groups if g["params"]])

    def begin_task(self, task: Task, steps: int) -> None:
        self.select(task)
        self.method.begin_task(task.index, steps)

    def end_task(self) -> None:
        with self.timed("method"):
            self.method.end_task()
        self.optimizer = None

    def step(self, rows: Tensor, number: int) -> float:
        """One optimiser step on the global batch ``rows``; returns the mean loss over it."""
        assert self.optimizer is not None
        with self.timed("train"):
            torch.manual_seed(hash((self.seed, self.task.index, number, self.place.rank)) % 2**63)
            self.wrapped.train()
            loss = self.backward(rows)
        if not torch.isfinite(loss):
            raise UserError(f"task {self.task.index}, step {number}: the loss is not finite; lower train.learning_rate")
        with self.timed("method"):
            self.method.edit_gradients(number, loss)
        with self.timed("train"):
            trainable = [p for p in self.model.parameters() if p.requires_grad]
            nn.utils.clip_grad_norm_(trainable, self.settings.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return float(loss)

    def backward(self, rows: Tensor) -> Tensor:
        """Loss on the current task's classes; workers take every world-th row, weighted to the global mean.

        A worker without a row lends an ear with weight zero, so that collective calls stay paired.
        """
        mine = rows[self.place.rank :: self.place.world]
        weight = float(len(mine) > 0)
        batch = self.to_device(self.task.train.take(mine if len(mine) else rows[:1]))
        classes = self.task.classes
        logits = self.wrapped(batch.inputs)[:, classes.start : classes.stop]
        loss = weight * functional.cross_entropy(logits, batch.labels - classes.start, reduction="sum") / len(rows)
        (loss * self.place.world).backward()
        self.place.average_gradients(self.model)
        return self.place.total(loss.detach())

    @torch.no_grad()
    def right(self, examples: Examples, labels: range) -> int:
        """How many ``examples`` are right when only ``labels`` may compete."""
        with self.timed("evaluate"):
            self.model.eval()
            count = torch.zeros((), device=self.place.device)
            for rows, valid in self.shares(len(examples)):
                batch = self.to_device(examples.take(rows))
                guess = self.model(batch.inputs)[:, labels.start : labels.stop].argmax(1) + labels.start
                count += ((guess == batch.labels) & valid.to(guess.device)).sum()
            return int(self.place.total(count))

    def shares(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """This worker's rows in batches and which of them count; all workers get equally many batches."""
        world = self.place.world
        padded = torch.arange(-(-count // world) * world)
        mine = padded[self.place.rank :: world]
        for rows in mine.split(EVALUATION_BATCH):
            yield rows.clamp(max=count - 1), rows < count

    def to_device(self, examples: Examples) -> Examples:
        device = self.place.device
        return Examples(examples.inputs.to(device), examples.labels.to(device))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain values that bring another learner to this point; whole on the first worker."""
        tensors = {f"model.{k}": v for k, v in adapters_and_head(self.model).items()}
        tensors |= {f"method.{k}": v for k, v in self.method.state_dict().items()}
        values: dict[str, Any] = {"seconds": self.seconds}
        if self.optimizer is not None:
            moments, values["optimizer"] = optimizer_state(self.model, self.optimizer)
            tensors |= {f"optimizer.{k}": v for k, v in moments.items()}
        return tensors, values

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """The inverse of ``state``; ``select`` comes first where a task is under way."""
        load_adapters_and_head(self.model, part(tensors, "model."))
        self.method.load_state_dict(part(tensors, "method."))
        self.seconds = dict(values["seconds"])
        if self.optimizer is not None:
            moments = part(tensors, "optimizer.")
            load_optimizer_state(self.model, self.optimizer, moments, values["optimizer"])


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
