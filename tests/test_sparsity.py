"""Sparsification keeps the largest entries, to within a bin, and the same ones on any number of shards."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from methods.sparsity import sparsify


def make_levels(sizes: list[int], total: Callable[[Tensor], Tensor] = lambda values: values) -> Any:
    """Levels of which sparsification uses the whole sizes and the sum over shards only."""
    return SimpleNamespace(sizes=sizes, total=total)


def random_gradient(size: int, seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sparsity", [0.1, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e4])
def test_exactly_the_largest_well_separated_entries_are_kept(sparsity: float, scale: float) -> None:
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    gradient = scale * 1.5**order * (-1.0) ** order
    (kept,) = sparsify(make_levels([10]), [gradient], sparsity)
    expected = torch.where(order >= round(10 * sparsity), gradient, torch.zeros(10))
    assert torch.equal(kept, expected)


@pytest.mark.parametrize("sparsity", [0.05, 0.5, 0.9, 0.99])
def test_the_kept_share_of_random_gradients_is_within_one_percent(sparsity: float) -> None:
    gradient = random_gradient(20_000, 1)
    (kept,) = sparsify(make_levels([20_000]), [gradient], sparsity)
    mask = kept != 0
    assert torch.equal(kept[mask], gradient[mask])
    assert gradient[mask].abs().min() > gradient[~mask].abs().max()
    assert 1 - sparsity <= mask.double().mean() <= 1 - sparsity + 0.01


def test_every_level_keeps_its_own_share() -> None:
    gradients = [random_gradient(20_000, 1), 1e-6 * random_gradient(2000, 2)]
    kept = sparsify(make_levels([20_000, 2000]), gradients, 0.8)
    for values in kept:
        assert (values != 0).double().mean() == pytest.approx(0.2, abs=0.01)


def test_sparsity_zero_returns_the_same_tensors_without_asking_the_shards() -> None:
    gradients = [random_gradient(5, 1)]
    unasked = make_levels([5], lambda _: pytest.fail("nothing is to be added"))
    assert sparsify(unasked, gradients, 0.0)[0] is gradients[0]


@pytest.mark.parametrize("sparsity", [0.3, 0.9])
def test_zeros_stay_zeros(sparsity: float) -> None:
    mostly_zero = torch.tensor([0.0, 2.0, 0.0, 0.0, -1.0])
    kept = sparsify(make_levels([4, 5]), [torch.zeros(4), mostly_zero], sparsity)
    assert kept[0].tolist() == [0.0] * 4
    assert kept[1].tolist() == [0, 2, 0, 0, 0 if sparsity == 0.9 else -1]


@pytest.mark.parametrize("first", [0, 300, 999, 1000])
def test_two_shards_keep_what_the_whole_keeps(first: int) -> None:
    """Shards with unequal magnitudes: a threshold of each shard's own would keep others."""
    whole = [random_gradient(1000, 3), random_gradient(10, 4)]
    whole[0][:300] *= 100
    shards = [[g[:first] for g in whole], [g[first:] for g in whole]]
    sent: list[Tensor] = []

    def record(counts: Tensor) -> Tensor:
        sent.append(counts)
        return counts

    for shard in shards:
        sparsify(make_levels([1000, 10], record), shard, 0.6)
    levels = make_levels([1000, 10], lambda _: sent[0] + sent[1])
    parts = [sparsify(levels, shard, 0.6) for shard in shards]
    expected = sparsify(make_levels([1000, 10]), whole, 0.6)
    for level, values in enumerate(expected):
        assert torch.equal(torch.cat([part[level] for part in parts]), values)
