"""Equality but for rounding, which depends on the processor and on the order of sums."""

from __future__ import annotations

import torch
from torch import Tensor


def near(found: Tensor, expected: Tensor, roundings: float = 100) -> bool:
    """Whether no element is off by more than so many roundings of the largest element of ``expected``."""
    bound = roundings * torch.finfo(expected.dtype).eps * expected.abs().max()
    return (
        found.shape == expected.shape
        and found.dtype == expected.dtype
        and bool((found - expected).abs().max() <= bound)
    )
