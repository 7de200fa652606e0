"""Model, method and optimiser of one run on one worker: training steps, evaluation, state for the checkpoint."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.dataset import BenchmarkError, Examples
from benchmarks.models.backbones import build_model
from benchmarks.stream import Task, TaskStream
from methods import method_class
from methods.base import Chooser
from methods.levels import locals_of
from orchestrator.run.evaluation import Evaluation, share
from orchestrator.run.memory import enough_memory
from orchestrator.run.sharding import (
    Place,
    adapters_and_head,
    load_adapters_and_head,
    load_optimizer_state,
    optimizer_state,
)
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError

MORE_WORKERS = "share it among more workers (scale.workers, scale.sharding=fsdp2), or say backbone.dtype=bf16"
SMALLER_STEPS = "say train.gradient_checkpointing=true, or a larger train.accumulate"
SMALLER_BATCHES = "say a smaller train.evaluation_batch_size"
OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


class Learner:
    """What the loop calls. Every worker has one, and all of them make the same calls in the same order."""

    def __init__(self, experiment: Experiment, stream: TaskStream, place: Place, chooser: Chooser | None) -> None:
        # All workers draw the same initial weights, as sharding takes each worker's part of its own copy.
        torch.manual_seed(experiment.seed)
        self.settings, self.seed, self.stream, self.place = experiment.train, experiment.seed, stream, place
        try:
            # Drawn weights, and those that timm brings, are whole here; others come when the model is spread.
            self.model = build_model(experiment.backbone, experiment.head, stream, experiment.seed)
            if self.settings.gradient_checkpointing:
                self.model.save_memory()
            if self.settings.compile:
                self.model.compile_blocks()
        except BenchmarkError as error:
            raise UserError(str(error)) from None
        self.method = method_class(experiment.method.name)(experiment.method)
        blocks = [name.removeprefix("backbone.") for name in self.model.block_names]
        try:
            # Before the model is wrapped: DDP and FSDP2 handle only the parameters that exist by then.
            self.method.adapt(self.model.backbone, self.model.targets, blocks, stream.length)
        except ValueError as error:
            raise UserError(str(error)) from None
        self.half = half_precision(self.settings.precision, experiment.backbone.dtype, place.device)
        if self.half and stores_half(experiment.backbone.dtype, place.device):
            self.model.store_frozen(torch.bfloat16)
        with enough_memory("the backbone", MORE_WORKERS):
            self.wrapped = place.spread(self.model, self.half)
        # After it: levels are made of this worker's shards.
        self.method.bind(place.levels(self.model), chooser)
        # Of the model and not its wrapper: DDP wraps forward alone, and FSDP2 has the model's own methods registered.
        self.evaluation = Evaluation(self.model, stream, place, self.settings.evaluation_batch_size)
        self.seconds = {"train": 0.0, "evaluate": 0.0, "method": 0.0, "checkpoint": 0.0}
        self.optimizer: torch.optim.Optimizer | None = None

    @property
    def trainable_parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    @contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[kind] += time.perf_counter() - started

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.place.device.type, torch.bfloat16, enabled=self.half)

    def epochs(self, task: Task) -> int:
        """Passes over ``task``: none where nothing of it is learned by gradient."""
        if not self.method.adapts(task.index) and (self.model.closed_form or not self.model.head_parameters(task)):
            return 0
        epochs = self.settings.epochs
        return epochs if isinstance(epochs, int) else epochs[min(task.index, len(epochs) - 1)]

    def select(self, task: Task) -> None:
        """A fresh optimiser for ``task`` over the adapters and the task's own part of the head."""
        self.task = task
        settings = self.settings
        rate = settings.first_learning_rate if task.index == 0 else None
        adapters = [p for _, p in self.model.adapters()] if self.method.adapts(task.index) else []
        groups = [
            {"params": adapters, "lr": rate or settings.learning_rate},
            {"params": self.model.head_parameters(task), "lr": settings.head_learning_rate},
        ]
        groups = [group for group in groups if group["params"]]
        momentum = {"momentum": settings.betas[0]} if settings.optimizer == "sgd" else {"betas": settings.betas}
        common: dict[str, Any] = {"weight_decay": settings.weight_decay, **momentum}
        # A method's own optimiser is saved with the method: its state may not be keyed as torch's is.
        own = self.method_optimizer(groups, common) if groups else None
        self.own_optimizer = own is not None
        self.optimizer = own or (OPTIMIZERS[settings.optimizer](groups, **common) if groups else None)

    def method_optimizer(self, groups: list[dict[str, Any]], settings: dict[str, Any]) -> torch.optim.Optimizer | None:
        try:
            return self.method.optimizer(groups, self.settings.optimizer, settings)
        except ValueError as error:
            raise UserError(str(error)) from None

    def begin_task(self, task: Task, steps: int) -> None:
        self.select(task)
        self.method.begin_task(task.index, steps, self.epochs(task))

    def end_task(self) -> None:
        self.check_values()
        with self.timed("method"):
            try:
                self.method.end_task()
            except ValueError as error:
                raise UserError(f"task {self.task.index}: {error}") from None
        if self.method.adapts(self.task.index):
            self.evaluation.forget()
        # Moments end with the task; a checkpoint between tasks has none.
        self.optimizer = None
        if self.model.closed_form:
            with self.method.inference():
                self.fit_head(self.task.train)

    def check_values(self) -> None:
        """UserError on every worker where training has left a value that is not finite, or too large to be squared.

        A loss may stay finite meanwhile, as the norms of a backbone hide how large its adapters are.
        """
        trained = {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}
        squares = torch.stack([local.float().square().sum() for local in locals_of(trained.values())])
        finite = torch.isfinite(self.place.total(squares)).tolist()
        if not all(finite):
            name = next(name for name, good in zip(trained, finite, strict=True) if not good)
            raise UserError(
                f"task {self.task.index}: {name} is not finite, or beyond what float32 can square; "
                "lower train.learning_rate"
            )

    def step(self, rows: Tensor, number: int) -> float:
        """One optimiser step on the global batch ``rows``; returns the mean loss over it."""
        assert self.optimizer is not None
        with self.timed("train"), enough_memory("a step", SMALLER_STEPS):
            loss = self.differentiate(rows, number)
        if not torch.isfinite(loss):
            raise UserError(f"task {self.task.index}, step {number}: the loss is not finite; lower train.learning_rate")
        with self.timed("method"):
            try:
                self.method.edit_gradients(number, loss, lambda: self.gradient_again(rows, number))
            except ValueError as error:
                raise UserError(f"task {self.task.index}, step {number}: {error}") from None
        with self.timed("train"):
            if self.settings.clip_norm is not None:
                nn.utils.clip_grad_norm_(self.trained(), self.settings.clip_norm)
            self.optimizer.step()
            self.model.zero_grad()
        return float(loss)

    def differentiate(self, rows: Tensor, number: int) -> Tensor:
        """Mean loss of the global batch ``rows``; its gradient is in the parameters' ``grad`` afterwards."""
        # Dropout's numbers by step, so that a resumed run draws the same; a hash of integers, unlike one of strings, is
        # the same in every process.
        torch.manual_seed(hash((self.seed, self.task.index, number, self.place.rank)) % 2**63)
        self.wrapped.train()
        loss = sum((self.backward(part, len(rows)) for part in self.parts(rows)), torch.zeros(()))
        self.place.average_gradients(self.model)
        return loss

    def gradient_again(self, rows: Tensor, number: int) -> Tensor:
        """The adapters' gradient of the same batch at their present values; the step's own gradient stays."""
        # References and no copies: zero_grad drops the gradients, so that the next pass makes new ones.
        kept = [(p, p.grad) for p in self.trained()]
        self.model.zero_grad()
        self.differentiate(rows, number)
        found = self.method.levels.gradients()
        for parameter, gradient in kept:
            parameter.grad = gradient
        return found

    def parts(self, rows: Tensor) -> tuple[Tensor, ...]:
        """A step's batch in the parts that go through the model one after another."""
        return rows.split(-(-len(rows) // self.settings.accumulate))

    def trained(self) -> list[nn.Parameter]:
        assert self.optimizer is not None
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def backward(self, rows: Tensor, count: int) -> Tensor:
        """Add the gradient of ``rows``, a part of ``count`` rows; workers take every world-th row.

        A worker without a row computes one with weight zero: it has to join the collective calls of the pass.
        """
        mine = rows[self.place.rank :: self.place.world]
        weight = float(len(mine) > 0)
        batch = self.task.train.take(mine if len(mine) else rows[:1]).batch().to(self.place.device)
        with self.autocast():
            loss = weight * self.wrapped(batch, self.task).sum() / count
        # DDP and FSDP2 average gradients over the workers; the sum over ``count`` rows of the global batch is wanted.
        (loss * self.place.world).backward()
        return self.place.total(loss.detach())

    def scores(self, tasks: Sequence[Task], split: str, learned: int) -> list[list[float]]:
        """Mean score on a split of each task, for each set of labels that may compete after ``learned`` tasks."""
        # Until the next task that moves the adapters, what the backbone makes of a row stays the same.
        keep = learned < len(self.stream.tasks) and not self.method.adapts(learned)
        with self.timed("evaluate"), self.autocast(), enough_memory("evaluation", SMALLER_BATCHES):
            return self.evaluation.scores(tasks, split, learned, keep)

    @torch.no_grad()
    def fit_head(self, examples: Examples) -> None:
        """One pass over a task's training rows for the statistics of a closed-form head."""
        with self.timed("train"), self.autocast():
            self.model.eval()
            parts = (part.split(self.settings.evaluation_batch_size) for part in share(len(examples), self.place))
            for rows, valid in zip(*parts, strict=True):
                self.model.collect(examples.take(rows).batch().to(self.place.device), valid)
            self.model.finish(self.place.total)

    def state(self, since: int = 0) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain values that bring another learner to this point; whole on the first worker.

        What the method keeps for good of the tasks before ``since`` is left out. UserError where they are of no use,
        before anything of them is written.
        """
        self.check_values()
        tensors = {f"model.{k}": v for k, v in adapters_and_head(self.model).items()}
        tensors |= {f"method.{k}": v for k, v in self.method.state_dict(since).items()}
        tensors |= {f"statistics.{k}": v for k, v in self.model.statistics().items()}
        values: dict[str, Any] = {"seconds": self.seconds}
        if self.optimizer is not None and not self.own_optimizer:
            moments, values["optimizer"] = optimizer_state(self.model, self.optimizer)
            tensors |= {f"optimizer.{k}": v for k, v in moments.items()}
        return tensors, values

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """The inverse of ``state``; ``select`` comes first where a task is under way."""
        try:
            load_adapters_and_head(self.model, part(tensors, "model."))
            self.method.load_state_dict(part(tensors, "method."))
        except KeyError as error:
            raise UserError(
                f"the checkpoint does not fit: no {error.args[0]} in it, as if of another version; take another name=…"
            ) from None
        except ValueError as error:
            raise UserError(f"the checkpoint does not fit: {error}") from None
        self.model.load_statistics(part(tensors, "statistics."))
        self.seconds |= values["seconds"]
        if self.optimizer is not None and not self.own_optimizer:
            moments = part(tensors, "optimizer.")
            load_optimizer_state(self.model, self.optimizer, moments, values["optimizer"])


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def half_precision(precision: str, dtype: str, device: torch.device) -> bool:
    """Whether to compute in bf16; what is learned and sums stay in float32."""
    if dtype == "bf16":
        return True
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return precision == "bf16"


def stores_half(dtype: str, device: torch.device) -> bool:
    """Whether a run that computes in bf16 keeps its frozen matrices in it: on a CPU where that is asked for."""
    return dtype == "bf16" or (dtype == "auto" and device.type == "cuda")
