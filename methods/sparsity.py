"""Keep only the largest entries of each level's gradient, by a threshold that all shards agree on."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.levels import Levels

BINS = 4096
LOWEST, HIGHEST = -80.0, 20.0  # powers of two; what is smaller counts as zero, what is larger is in the last bin


def sparsify(levels: Levels, gradients: Tensor, sparsity: float) -> Tensor:
    """Zero all but the largest (1 - ``sparsity``) share of every level [levels, width] by magnitude.

    The threshold is read off a histogram of log-magnitudes (bins 1.7 % wide) that is added over the shards, so that
    nothing is gathered and the kept set does not depend on the world size. The bin at the threshold is kept whole.
    """
    if sparsity == 0:
        return gradients
    bins = magnitude_bin(gradients)
    counts = torch.stack([torch.bincount(row, minlength=BINS) for row in bins]).double()
    return gradients * (bins >= threshold_bins(levels.total(counts), levels.sizes, sparsity)[:, None])


def magnitude_bin(gradient: Tensor) -> Tensor:
    """Bin of log2 |g|; zeros fall in bin 0."""
    place = (gradient.abs().log2() - LOWEST) / (HIGHEST - LOWEST) * BINS
    return place.clamp(0, BINS - 1).long()


def threshold_bins(counts: Tensor, sizes: list[int], sparsity: float) -> Tensor:
    """The highest bin of each level above which (with it) lies at least the share to keep, [levels]."""
    # Flipped twice: cumsum adds from the lowest bin only.
    from_top = counts.flip(1).cumsum(1).flip(1)
    keep = (1 - sparsity) * torch.tensor(sizes, dtype=counts.dtype, device=counts.device)
    keep = keep.round(decimals=6)  # (1 - 0.7) * 10 is a little more than 3
    return (from_top >= keep[:, None]).sum(1) - 1
