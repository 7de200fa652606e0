"""The rules by which a gradient becomes a step: Adam's and momentum's, as (direction, factor)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

State = dict[str, Any]


def adam(state: State, gradient: Tensor, group: dict[str, Any]) -> tuple[Tensor, float]:
    """Adam's step as (direction, factor), bias corrected (arXiv 1412.6980, algorithm 1)."""
    (slow, slower), step = group["betas"], state["step"]
    first, second = state["first"], state["second"]
    first.lerp_(gradient, 1 - slow)
    second.mul_(slower).addcmul_(gradient, gradient, value=1 - slower)
    root = second.sqrt().div_(math.sqrt(1 - slower**step)).add_(group["eps"])
    # The direction in the memory of ``root``; the correction as a factor saves another pass over it.
    return torch.div(first, root, out=root), 1 / (1 - slow**step)


def momentum(state: State, gradient: Tensor, group: dict[str, Any]) -> tuple[Tensor, float]:
    """The step of torch's SGD with momentum, likewise."""
    return state["first"].mul_(group["betas"][0]).add_(gradient), 1.0
