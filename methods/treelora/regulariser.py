"""The regulariser that draws an adapter towards a stored one, as closed-form edits of its gradient.

X [levels, width] is what the method compares, of the adapter now, and G the same of the chosen earlier tasks: the
displacement since the task began, or the parameters themselves. Both are local values; the sums that a gradient needs
come from one small all-reduce for all levels. With c = strength x ramp, and <X, G> over all levels:

    l1       c |X - G|_1                gradient  c sign(X - G), sign(0) = 0
    cos      c sum over levels of 1 - cos(X, G); a level where X or G is zero counts 1 and has no gradient
    dot_log  - c log |<X, G>|           gradient  - c G / <X, G>: the released code's inner product over its own value

``l1_hvp`` is the paper's equation 3 itself, c |grad(now) - grad(stored)|_1 with gradients of the batch; it is in
``method.py``, since it needs further passes over the batch.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from methods.levels import Levels

SHORTEST, LONGEST = 1e-15, 1e15  # lengths beyond have no direction: their squares would leave the range of float32
WIDE = 2**14  # elements of a row
POLE = 1e-5  # the released code's guard: <X, G> may come no nearer to zero


class RegulariserConfig(BaseModel):
    """Settings ``method.regulariser.<field>``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["cos", "l1", "dot_log", "l1_hvp", "none"] = Field(
        "cos", description="cos aligns directions; l1 is equation 3 with adapters for gradients, l1_hvp with gradients"
    )
    strength: float = Field(0.1, ge=0, allow_inf_nan=False, description="weight beside the task loss")
    schedule: Literal["const", "ramp_epoch", "ramp_task"] = Field("const", description="rise from 0 to the strength")
    scale: Literal["match_loss", "raw"] = Field("match_loss", description="match_loss: its value becomes the loss's")
    target: Literal["raw", "norm_matched"] = Field("raw", description="norm_matched: G as long as X in every level")


def ramp(schedule: str, step: int, steps: int, epochs: int) -> float:
    """Share of the strength at ``step`` of ``steps`` in a task of ``epochs``; 1 at the end of each ramp."""
    if schedule == "const":
        return 1.0
    period = max(1, steps // epochs if schedule == "ramp_epoch" else steps)
    return (step % period + 1) / period


def edit(
    config: RegulariserConfig,
    levels: Levels,
    gradients: Tensor,
    current: Tensor,
    stored: Tensor,
    loss: Tensor,
    share: float,
) -> float:
    """Add the regulariser's gradient to ``gradients`` [levels, width] in place; returns its weighted value.

    ``share`` is the schedule's. No level is edited where X or G is zero in a way that leaves no direction.
    """
    if config.target == "norm_matched":
        stored = as_long_as(levels, stored, current)
    if config.kind == "l1":
        difference = current - stored
        value = float(levels.total(difference.abs().sum()))
        factor = weight(config, value, float(loss), share)
        gradients.add_(difference.sign_(), alpha=factor)
        return factor * value
    value, along_current, along_stored = COEFFICIENTS[config.kind](*products(levels, current, stored))
    factor = weight(config, value, float(loss), share)
    for_current, for_stored = current.new_tensor([along_current, along_stored]).unsqueeze(2)
    if any(along_current):
        gradients.addcmul_(current, for_current, value=factor)
    gradients.addcmul_(stored, for_stored, value=factor)
    return factor * value


def products(levels: Levels, current: Tensor, stored: Tensor) -> tuple[list[float], list[float], list[float]]:
    """<X, G>, |X| and |G| of every level."""
    squares = [torch.linalg.vector_norm(vectors, dim=1).square_() for vectors in (current, stored)]
    inner, own, other = levels.total(torch.stack([row_products(current, stored), *squares])).tolist()
    return inner, list(map(math.sqrt, own)), list(map(math.sqrt, other))


def row_products(left: Tensor, right: Tensor) -> Tensor:
    """<left, right> of every row; whole rows at once make a product that a cache does not hold when they are wide."""
    if left.shape[1] < WIDE:
        return torch.linalg.vecdot(left, right)
    return torch.stack([one @ other for one, other in zip(left, right, strict=True)])


def weight(config: RegulariserConfig, value: float, loss: float, share: float) -> float:
    """What the raw gradient is multiplied by."""
    matched = loss / max(abs(value), 1e-8) if config.scale == "match_loss" else 1.0
    return config.strength * share * matched


Coefficients = tuple[float, list[float], list[float]]  # value, then those of X and of G in its gradient, by level


def cosine(inner: list[float], own: list[float], other: list[float]) -> Coefficients:
    """Sum of 1 - cos, in plain numbers: a call into torch costs more than all levels do here."""
    value, along_current, along_stored = 0.0, [], []
    for product, x, g in zip(inner, own, other, strict=True):
        usable = SHORTEST < x < LONGEST and SHORTEST < g < LONGEST
        found = product / (x * g) if usable else 0.0
        value += 1 - found
        along_current.append(found / (x * x) if usable else 0.0)
        along_stored.append(-1 / (x * g) if usable else 0.0)
    return value, along_current, along_stored


def released(inner: list[float], own: list[float], other: list[float]) -> Coefficients:
    """-<X, G> over its own size: the value is always -1, so that the loss shrinks to (1 - strength) of itself."""
    total = sum(inner)
    guarded = math.copysign(max(abs(total), POLE), total)
    along = -1 / guarded if math.isfinite(total) else 0.0
    return -1.0, [0.0] * len(own), [along] * len(own)


COEFFICIENTS = {"cos": cosine, "dot_log": released}


def as_long_as(levels: Levels, stored: Tensor, current: Tensor) -> Tensor:
    """Every level of ``stored`` with the L2 length of ``current``; a zero level stays zero."""
    _, wanted, found = products(levels, current, stored)
    usable = [f > 0 and math.isfinite(f) and math.isfinite(w) for w, f in zip(wanted, found, strict=True)]
    ratio = [w / f if known else 0.0 for w, f, known in zip(wanted, found, usable, strict=True)]
    return stored * stored.new_tensor(ratio)[:, None]
