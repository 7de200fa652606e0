"""Two blocks of attention under GORP: output projections trained whole, pairs on query and value, three tasks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from methods.gorp import GORPConfig, GradientProjection
from methods.levels import Levels
from tests.support.sdlora_model import BLOCKS, CLASSES, Tiny, batch

RANK, RATE, STEPS, TASKS = 4, 0.02, 12, 3
OWN = {"rank": RANK, "full_rank": ["proj"], "full_rank_learning_rate": 0.01, "compression": {"rank": 8, "every": 3}}
Weights = dict[str, Tensor]


class Run:
    """The method's hooks called as the loop calls them; ``settings`` are the method's."""

    def __init__(
        self, rule: str = "adam", dtype: torch.dtype = torch.float64, target: str = "qkv", **settings: Any
    ) -> None:
        torch.manual_seed(0)
        self.model, self.rule, self.dtype = Tiny().to(dtype), rule, dtype
        self.method = GradientProjection(GORPConfig.model_validate(OWN | settings))
        self.method.adapt(self.model, [target], [f"blocks.{number}" for number in range(BLOCKS)], TASKS)
        self.method.bind(Levels(self.adapters(), lambda name: int("blocks.1" in name), lambda values: values), None)

    def adapters(self) -> list[tuple[str, nn.Parameter]]:
        named = self.model.named_parameters()
        return [(name, p) for name, p in named if p.requires_grad and not name.startswith("head.")]

    def begin(self, task: int) -> None:
        """What comes before the first step."""
        self.task, head = task, list(self.model.head[task].parameters())
        groups = [{"params": [p for _, p in self.adapters()], "lr": RATE}, {"params": head, "lr": RATE}]
        momentum = {"momentum": 0.9} if self.rule == "sgd" else {"betas": (0.9, 0.999)}
        self.optimiser = self.method.optimizer(groups, self.rule, {"weight_decay": 0.0, **momentum})
        self.method.begin_task(task, STEPS, 1)

    def steps(self, start: int = 0, stop: int = STEPS) -> None:
        for step in range(start, stop):
            self.model.zero_grad()
            x, labels = batch(self.task, step)
            logits = self.model(x.to(self.dtype))[:, CLASSES * self.task : CLASSES * (self.task + 1)]
            nn.functional.cross_entropy(logits, labels).backward()
            self.optimiser.step()

    def end(self) -> None:
        self.method.end_task()

    def learn(self, tasks: range) -> Run:
        for task in tasks:
            self.begin(task)
            self.steps()
            self.end()
        return self

    def images(self) -> Tensor:
        return torch.cat([batch(task, 99)[0] for task in range(TASKS)]).to(self.dtype)

    @torch.no_grad()
    def logits(self) -> Tensor:
        return self.model(self.images())

    def weights(self) -> Weights:
        """All that the method trains."""
        return {name: p.detach().clone() for name, p in self.adapters()}

    def spaces(self) -> Weights:
        named = self.method.matrices | self.method.downs
        return {name: self.method.spaces[p].clone() for name, p in named.items() if p in self.method.spaces}

    def moved(self, task: int) -> tuple[Weights, Weights]:
        """The spaces before ``task``, and how the weights move from its first step to its last."""
        spaces = self.spaces()
        self.begin(task)
        before = self.weights()
        self.steps()
        self.end()
        return spaces, {name: value - before[name] for name, value in self.weights().items()}


def same(left: Weights, right: Weights) -> bool:
    """Equal to the bit."""
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


def leaks(spaces: Weights, moved: Weights) -> list[float]:
    """Share of each weight's motion that is in its space, on whichever side that is."""
    found = []
    for name, space in spaces.items():
        change = moved[name].to(space)
        inside = space.t() @ change if len(space) == len(change) else change @ space
        assert space.shape[1] > 0 and change.norm() > 0
        found.append(float(inside.norm() / change.norm()))
    return found
