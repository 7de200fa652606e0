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

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from methods.levels import Levels

SHORTEST, LONGEST = 1e-30, 1e30  # squared lengths beyond have no direction: sums would leave the range of float32
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
) -> Tensor:
    """Add the regulariser's gradient to ``gradients`` [levels, width] in place; returns its weighted value.

    ``share`` is the schedule's. No level is edited where X or G is zero in a way that leaves no direction.
    """
    if config.target == "norm_matched":
        stored = as_long_as(levels, stored, current)
    if config.kind == "l1":
        difference = current - stored
        value = levels.total(difference.abs().sum())
        factor = weight(config, value, loss, share)
        gradients.add_(difference.sign_() * factor)
        return factor * value
    value, along_current, along_stored = COEFFICIENTS[config.kind](*products(levels, current, stored))
    factor = weight(config, value, loss, share)
    gradients.addcmul_(current, (factor * along_current).to(gradients.dtype)[:, None])
    gradients.addcmul_(stored, (factor * along_stored).to(gradients.dtype)[:, None])
    return factor * value


def products(levels: Levels, current: Tensor, stored: Tensor) -> Tensor:
    """<X, G>, <X, X> and <G, G> of every level, [3, levels], float64 from sums in the vectors' own precision."""
    squares = [torch.linalg.vector_norm(vectors, dim=1).square() for vectors in (current, stored)]
    return levels.total(torch.stack([torch.linalg.vecdot(current, stored), *squares])).double()


def weight(config: RegulariserConfig, value: Tensor, loss: Tensor, share: float) -> Tensor:
    """What the raw gradient is multiplied by."""
    matched = loss / value.abs().clamp(min=1e-8) if config.scale == "match_loss" else torch.ones_like(loss)
    return config.strength * share * matched


def cosine(inner: Tensor, own: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of 1 - cos and the coefficients of X and G in its gradient, [levels]."""
    usable = (own > SHORTEST) & (other > SHORTEST) & (own < LONGEST) & (other < LONGEST)
    inverse = torch.where(usable, (own * other).rsqrt(), 0)
    found = torch.where(usable, inner * inverse, 0)
    return (1 - found).sum(), torch.where(usable, found / own, 0), -inverse


def released(inner: Tensor, own: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """-<X, G> over its own size: the value is always -1, so that the loss shrinks to (1 - strength) of itself."""
    total = inner.sum()
    guarded = torch.where(total < 0, total.clamp(max=-POLE), total.clamp(min=POLE))
    along = torch.where(guarded.isfinite(), -1 / guarded, 0)
    return -torch.ones_like(total), torch.zeros_like(own), along.expand_as(own)


COEFFICIENTS = {"cos": cosine, "dot_log": released}


def as_long_as(levels: Levels, stored: Tensor, current: Tensor) -> Tensor:
    """Every level of ``stored`` with the L2 length of ``current``; a zero level stays zero."""
    wanted, found = products(levels, current, stored)[1:].sqrt()
    usable = (found > 0) & found.isfinite() & wanted.isfinite()
    ratio = torch.where(usable, wanted / torch.where(usable, found, 1), 0)
    return stored * ratio.to(stored.dtype)[:, None]
