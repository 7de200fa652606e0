"""The weighted mean of low-rank adapters as an adapter of the same rank.

The factors of a product B A can be changed without changing the product, so factors are not averaged: the mean of the
products has a higher rank, and its best approximation of the old rank comes from a small SVD (Eckart and Young 1936)
without forming a product.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from methods.levels import Levels


def mean_of_products(levels: Levels, adapters: list[Tensor], shares: list[float]) -> Tensor:
    """The products of ``adapters``, local values [levels, width], weighted by ``shares``.

    All shards have to call it together: whole levels are put together for it.
    """
    factors = [levels.named_wholes(adapter) for adapter in adapters]
    result = dict(factors[0])
    for name in [name for name in result if "lora_A." in name]:
        pair = name.replace("lora_A.", "lora_B.")
        # The sum of products is one product of factors that stand side by side.
        left = torch.cat([share * found[pair] for share, found in zip(shares, factors, strict=True)], 1)
        right = torch.cat([found[name] for found in factors], 0)
        result[pair], result[name] = truncated(left, right, len(result[name]))
    return levels.local_of(result)


def truncated(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best approximation of left [d, n] times right [n, k] by factors of rank r, singular values shared.

    Where d or k is below r, the rest of the factors is zero.
    """
    first, first_triangle = torch.linalg.qr(left)
    second, second_triangle = torch.linalg.qr(right.T)
    u, values, v = torch.linalg.svd(first_triangle @ second_triangle.T, full_matrices=False)
    root, missing = values[:rank].sqrt(), max(0, rank - len(values))
    left, right = (first @ u[:, :rank]) * root, root[:, None] * (v[:rank] @ second.T)
    return functional.pad(left, (0, missing)), functional.pad(right, (0, 0, 0, missing))
