"""Parameters and steps on random gradients for tests of GORP's optimiser."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from methods.gorp.optimizer import GORP

SHAPES = [(40, 24), (24, 40), (32, 32)]
LORA = (4, 40)  # LoRA's A
every_shape = pytest.mark.parametrize("shape", SHAPES)
every_rule = pytest.mark.parametrize("rule", ["adam", "sgd"])


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def zero(*shape: int, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape, dtype=dtype))


def orthonormal(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.linalg.qr(random(rows, columns, seed=77, dtype=dtype)).Q


def step(optimizer: torch.optim.Optimizer, seed: int) -> None:
    """One step on random gradients, the same for every optimiser over parameters of the same shapes."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, parameter in enumerate(parameters):
        parameter.grad = random(*parameter.shape, seed=1000 * seed + number, dtype=parameter.dtype)
    optimizer.step()


def steps(optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for seed in range(first, last):
        step(optimizer, seed)


def leak(optimizer: GORP, parameter: nn.Parameter, space: Tensor, moved: Tensor) -> float:
    """Share of a movement that is in the space."""
    inside = space.t() @ moved if optimizer.layouts[parameter].free == "rows" else moved @ space
    assert moved.norm() > 0
    return float(inside.norm() / moved.norm())
