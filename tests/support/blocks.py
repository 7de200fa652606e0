"""Two tiny blocks of adapters under a method, with a loss in closed form: no model, no data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors.torch import load, save
from torch import Tensor, nn

from methods.base import Method
from methods.levels import Levels
from methods.lora import LoRA, LoRAConfig
from methods.treelora import TreeLoRA, TreeLoRAConfig, TreeService

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "method"
PRESETS = ("treelora", "treelora_paper", "treelora_released")
RATE = 0.2
FACTORS = {"lora_A": (2, 5), "lora_B": (3, 2)}


def config_of(preset: str = "treelora", **changes: Any) -> TreeLoRAConfig:
    """A preset's settings with some changed, as in ``tree={"budget": 2}``."""
    found = OmegaConf.merge(OmegaConf.load(CONFIGS / f"{preset}.yaml"), changes)
    return TreeLoRAConfig.model_validate(OmegaConf.to_container(found))


def adapters() -> Levels:
    """Seeded tensors named like peft's; each block is a level."""
    torch.manual_seed(0)
    shapes = {f"block.{b}.{factor}.default.weight": shape for b in range(2) for factor, shape in FACTORS.items()}
    named = [(name, nn.Parameter(0.3 * torch.randn(shape))) for name, shape in shapes.items()]
    return Levels(named, lambda name: int(name.split(".")[1]), lambda values: values)


def noise(seed: int) -> Tensor:
    return torch.randn(2, 16, generator=torch.Generator().manual_seed(seed))


class Blocks:
    """Adapters that descend on log cosh(values - centre), the centre being the task's and a little the step's.

    ``places[task]`` numbers a task's centre; tasks of the same place want the same. ``edited`` are the gradients after
    the method, ``asked`` is (task, step, values) for every gradient that it asked for again, ``ends`` are the values
    after each task.
    """

    def __init__(self, config: TreeLoRAConfig | None = None, places: tuple[int, ...] = (0, 1, 0, 2, 1)) -> None:
        self.levels, self.places = adapters(), places
        self.method: Method = TreeLoRA(config) if config else LoRA(LoRAConfig())
        service = self.method.service(seed=3)
        self.method.bind(self.levels, service)
        self.edited: list[Tensor] = []
        self.asked: list[tuple[int, int, Tensor]] = []
        self.ends: list[Tensor] = []

    @property
    def tree(self) -> TreeLoRA:
        assert isinstance(self.method, TreeLoRA)
        return self.method

    @property
    def service(self) -> TreeService:
        assert isinstance(self.tree.chooser, TreeService)
        return self.tree.chooser

    def away(self, task: int, step: int) -> Tensor:
        """Values minus the centre of a step's batch."""
        return self.levels.parameters() - noise(self.places[task]) - 0.1 * noise(1000 + 100 * task + step)

    def gradient(self, task: int, step: int) -> Tensor:
        return self.away(task, step).tanh()

    def step(self, task: int, step: int) -> None:
        """One step up to the optimiser's."""
        self.levels.set_gradients(self.gradient(task, step))
        loss = self.away(task, step).cosh().log().mean()

        def again() -> Tensor:
            self.asked.append((task, step, self.levels.parameters()))
            return self.gradient(task, step)

        self.method.edit_gradients(step, loss, again)
        self.edited.append(self.levels.gradients())

    def descend(self) -> None:
        self.levels.set_parameters(self.levels.parameters() - RATE * self.levels.gradients())

    def learn(self, task: int, steps: int = 12, epochs: int = 2, start: int = 0, stop: int | None = None) -> None:
        """The steps ``start`` to ``stop`` of a task; with its last one it ends."""
        if start == 0:
            self.method.begin_task(task, steps, epochs)
        for step in range(start, steps if stop is None else stop):
            self.step(task, step)
            self.descend()
        if stop is None:
            self.method.end_task()
            self.ends.append(self.levels.parameters())

    def saved(self) -> dict[str, bytes]:
        """What a checkpoint holds."""
        parts = {"method": self.method.state_dict(), "service": self.service.state_dict()}
        return {name: save(state) for name, state in parts.items()} | {"values": save({"v": self.levels.parameters()})}

    def restore(self, saved: dict[str, bytes]) -> None:
        self.levels.set_parameters(load(saved["values"])["v"])
        self.method.load_state_dict(load(saved["method"]))
        self.service.load_state_dict(load(saved["service"]))


def products(values: Tensor) -> Tensor:
    """B times A of each block, [2, 3, 5]."""
    first, second = (shape[0] * shape[1] for shape in FACTORS.values())
    a, b = values.split([first, second], 1)
    return b.view(2, *FACTORS["lora_B"]) @ a.view(2, *FACTORS["lora_A"])


def of_rank_2(matrices: Tensor) -> Tensor:
    """The best approximation [..., rows, columns] of rank 2."""
    u, values, v = torch.linalg.svd(matrices, full_matrices=False)
    return u[..., :2] * values[..., None, :2] @ v[..., :2, :]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    """Equal to the bit."""
    return len(left) == len(right) and all(torch.equal(*pair) for pair in zip(left, right, strict=True))


def learned(blocks: Blocks, tasks: int, **length: int) -> Blocks:
    for task in range(tasks):
        blocks.learn(task, **length)
    return blocks
