"""Two blocks of attention under SD-LoRA, trained by torch's optimisers on five tasks of two Gaussian classes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional

from methods.levels import Levels
from methods.sdlora import SDLoRA, SDLoRAConfig
from methods.stacked.method import Pairs

WIDTH, TOKENS, BLOCKS, CLASSES, TASKS, RANK = 64, 8, 2, 2, 5, 4
PROJECTIONS = 2 * BLOCKS  # query and value of each block
STEPS = 4
OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "adam": partial(torch.optim.Adam, lr=0.01, weight_decay=0.1),
    "adamw": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
}

REDUCED = {"variant": "rr", "rank": 4, "reduction": {"mu": 2, "nu": 4, "rank_mu": 3, "rank_nu": 1}}
KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "reset": {"alpha_at_task_start": "reset", "magnitude": 0.8},
    "product_fro": {"norm": "product_fro"},
    "factor_fro": {"norm": "factor_fro", "alpha_at_task_start": "reset"},
    "rr": REDUCED,
    "kd": {"variant": "kd", "absorption": {"threshold": 0.97}},
    "kd of each projection": {"variant": "kd", "absorption": {"threshold": 0.8, "scope": "per_projection"}},
    "one direction": {"variant": "one_direction"},
}


class Block(nn.Module):
    """Attention of one head on tokens [n, tokens, width]."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.proj(functional.scaled_dot_product_attention(*self.qkv(self.norm(x)).chunk(3, -1)))


class Tiny(nn.Module):
    """The mean over tokens after the blocks, and a part of the head for each task."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.requires_grad_(False)
        self.head = nn.ModuleList(nn.Linear(WIDTH, CLASSES) for _ in range(TASKS))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return torch.cat([part(x.mean(1)) for part in self.head], 1)


def batch(task: int, step: int, rows: int = 8) -> tuple[Tensor, Tensor]:
    """Rows [n, tokens, width] around the centres of the task's classes, and labels from 0."""
    generator = torch.Generator().manual_seed(100 * task + step)
    labels = torch.arange(rows) % CLASSES
    centres = torch.randn(CLASSES, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1000 + task))
    return centres[labels] + torch.randn(rows, TOKENS, WIDTH, generator=generator), labels


class Run:
    """A method's hooks called as the loop calls them; ``settings`` are the method's."""

    def __init__(self, optimiser: str = "sgd", **settings: Any) -> None:
        torch.manual_seed(0)
        self.model = Tiny()
        self.method = SDLoRA(SDLoRAConfig.model_validate({"rank": RANK} | settings))
        self.method.adapt(self.model, ["qkv"], [f"blocks.{number}" for number in range(BLOCKS)], TASKS)
        self.levels = Levels(self.adapters(), lambda name: int("blocks.1" in name), lambda values: values)
        self.method.bind(self.levels, None)
        self.make = OPTIMISERS[optimiser]

    def adapters(self) -> list[tuple[str, nn.Parameter]]:
        named = self.model.named_parameters()
        return [(name, p) for name, p in named if p.requires_grad and not name.startswith("head.")]

    def begin(self, task: int) -> None:
        """What comes before the first step."""
        self.task, own = task, self.model.head[task].parameters()
        self.optimiser = self.make([*(p for _, p in self.adapters()), *own])
        self.method.begin_task(task, STEPS, 1)

    def differentiate(self, step: int = 0) -> Tensor:
        """Gradients of the loss over the task's own classes, from nothing."""
        self.model.zero_grad()
        x, labels = batch(self.task, step)
        first = CLASSES * self.task
        loss = functional.cross_entropy(self.model(x)[:, first : first + CLASSES], labels)
        loss.backward()
        return loss.detach()

    def steps(self, start: int = 0, stop: int = STEPS) -> None:
        for step in range(start, stop):
            self.differentiate(step)
            self.optimiser.step()

    def learn(self, tasks: range) -> Run:
        for task in tasks:
            self.begin(task)
            self.steps()
            self.method.end_task()
        return self

    @torch.no_grad()
    def logits(self) -> Tensor:
        return self.model(torch.cat([batch(task, 99)[0] for task in range(TASKS)]))

    def updates(self) -> Tensor:
        """What is added to all weights [blocks, 3 width, width], in float64."""
        return torch.stack([b.double() @ a.double() for a, b in self.method.pairs().values()])

    def magnitudes(self) -> Tensor:
        return self.model.get_parameter("magnitudes").detach().clone()

    def pairs(self) -> Pairs:
        """The pair under way."""
        return self.method.active_pairs(self.method.wholes())

    def stored(self) -> dict[str, Tensor]:
        layers = self.method.layers.items()
        rights = {f"{name}.stored_A": layer.stored_A.clone() for name, layer in layers}
        return rights | {f"{name}.stored_B": layer.stored_B.clone() for name, layer in layers}

    def plant(self, task: int, pairs: Pairs, magnitude: float) -> None:
        """Begin ``task`` and let ``pairs`` and ``magnitude`` be what it has learned; it is not ended."""
        self.begin(task)
        wholes = self.method.wholes()
        for name, (a, b) in zip(self.method.layers, pairs, strict=True):
            into = self.method.factors(name, wholes)
            into[0].copy_(a.flatten(0, 1))
            into[1].copy_(b.flatten(0, 1))
        self.method.magnitudes(wholes)[len(self.method.directions)] = magnitude
        self.method.put(wholes)

    def saved(self) -> dict[str, bytes]:
        """What a checkpoint holds, besides the optimiser."""
        trained = {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}
        return {"model": save(trained), "method": save(self.method.state_dict())}

    def restore(self, saved: dict[str, bytes]) -> None:
        self.model.load_state_dict(load(saved["model"]), strict=False)
        self.method.load_state_dict(load(saved["method"]))


def distance(one: Tensor, other: Tensor) -> float:
    """Relative to the second."""
    return float((one - other).norm() / other.norm())
