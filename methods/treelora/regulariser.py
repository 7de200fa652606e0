"""Closed-form gradients of the regulariser that draws an adapter towards a stored one.

X is the current displacement of the adapter since the task began, G the stored displacement of the chosen task, both
as local slices of every level. The sums that a gradient needs come from one small all-reduce for all levels.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from methods.levels import Levels

SHORTEST = 1e-30  # squared lengths below count as zero: the gradient would leave the range of float32


class RegulariserConfig(BaseModel):
    """Settings ``method.regulariser.<field>``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["cos", "l1", "none"] = Field("cos", description="cos: align directions; l1: equation 3 of the paper")
    strength: float = Field(0.1, ge=0, description="weight of the regulariser beside the task loss")


def regulariser(kind: str, levels: Levels, current: list[Tensor], stored: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Value and gradient with respect to the current displacement.

    l1: sum over levels of |X - G|_1. cos: sum over levels of 1 - cos(X, G); a level where X or G is zero counts 1
    and has no gradient.
    """
    if kind == "l1":
        value = levels.total(torch.stack([(x - g).abs().sum() for x, g in zip(current, stored, strict=True)]))
        return value.sum(), [torch.sign(x - g) for x, g in zip(current, stored, strict=True)]
    products = [torch.stack([x @ g, x @ x, g @ g]) for x, g in zip(current, stored, strict=True)]
    inner, own, other = levels.total(torch.stack(products)).unbind(1)
    scale = (own * other).sqrt()
    usable = (own > SHORTEST) & (scale > 0)
    inverse = torch.where(usable, 1 / scale.where(usable, torch.ones_like(scale)), torch.zeros_like(scale))
    cosine = inner * inverse
    shrink = torch.where(usable, cosine / own.where(usable, torch.ones_like(own)), torch.zeros_like(own))
    gradients = [s * x - i * g for x, g, s, i in zip(current, stored, shrink, inverse, strict=True)]
    return (1 - cosine).sum(), gradients
