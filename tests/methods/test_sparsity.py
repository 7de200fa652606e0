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


def matrix(rows: list[Tensor]) -> Tensor:
    """Rows of unequal length, padded with zeros as levels are."""
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def random_gradient(size: int, seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sparsity", [0.1, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e4])
def test_exactly_the_largest_well_separated_entries_are_kept(sparsity: float, scale: float) -> None:
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    gradient = scale * 1.5**order * (-1.0) ** order
    kept = sparsify(make_levels([10]), gradient[None], sparsity)[0]
    expected = torch.where(order >= round(10 * sparsity), gradient, torch.zeros(10))
    assert torch.equal(kept, expected)


@pytest.mark.parametrize("sparsity", [0.05, 0.5, 0.9, 0.99])
def test_the_kept_share_of_random_gradients_is_within_one_percent(sparsity: float) -> None:
    gradient = random_gradient(20_000, 1)
    kept = sparsify(make_levels([20_000]), gradient[None], sparsity)[0]
    mask = kept != 0
    assert torch.equal(kept[mask], gradient[mask])
    assert gradient[mask].abs().min() > gradient[~mask].abs().max()
    assert 1 - sparsity <= mask.double().mean() <= 1 - sparsity + 0.01


def test_every_level_keeps_its_own_share_of_its_own_size() -> None:
    gradients = [random_gradient(20_000, 1), 1e-6 * random_gradient(2000, 2)]
    kept = sparsify(make_levels([20_000, 2000]), matrix(gradients), 0.8)
    for values, size in zip(kept, (20_000, 2000), strict=True):
        assert (values[:size] != 0).double().mean() == pytest.approx(0.2, abs=0.01)
    assert not kept[1, 2000:].any()


@pytest.mark.parametrize("padding", [1, 7, 1000])
@pytest.mark.parametrize("sparsity", [0.05, 0.5, 0.9])
def test_padding_changes_nothing(padding: int, sparsity: float) -> None:
    gradient = random_gradient(50, 5)
    padded = torch.cat([gradient, torch.zeros(padding)])
    kept = sparsify(make_levels([50]), padded[None], sparsity)[0]
    assert torch.equal(kept[:50], sparsify(make_levels([50]), gradient[None], sparsity)[0])
    assert not kept[50:].any()


def test_sparsity_zero_returns_the_same_tensor_without_asking_the_shards() -> None:
    gradients = random_gradient(5, 1)[None]
    unasked = make_levels([5], lambda _: pytest.fail("nothing is to be added"))
    assert sparsify(unasked, gradients, 0.0) is gradients


@pytest.mark.parametrize("sparsity", [0.3, 0.9])
def test_zeros_stay_zeros(sparsity: float) -> None:
    mostly_zero = torch.tensor([0.0, 2.0, 0.0, 0.0, -1.0])
    kept = sparsify(make_levels([4, 5]), matrix([torch.zeros(4), mostly_zero]), sparsity)
    assert kept[0].tolist() == [0.0] * 5
    assert kept[1].tolist() == [0, 2, 0, 0, 0 if sparsity == 0.9 else -1]


@pytest.mark.parametrize("first", [0, 300, 999, 1000])
def test_two_shards_keep_what_the_whole_keeps(first: int) -> None:
    """Shards with unequal magnitudes and widths: a threshold of each shard's own would keep others."""
    whole = [random_gradient(1000, 3), random_gradient(10, 4)]
    whole[0][:300] *= 100
    shards = [matrix([g[:first] for g in whole]), matrix([g[first:] for g in whole])]
    sent: list[Tensor] = []

    def record(counts: Tensor) -> Tensor:
        sent.append(counts)
        return counts

    for shard in shards:
        sparsify(make_levels([1000, 10], record), shard, 0.6)
    levels = make_levels([1000, 10], lambda _: sent[0] + sent[1])
    parts = [sparsify(levels, shard, 0.6) for shard in shards]
    expected = sparsify(make_levels([1000, 10]), matrix(whole), 0.6)
    for level, size in enumerate((1000, 10)):
        pieces = parts[0][level, : min(first, size)], parts[1][level, : max(size - first, 0)]
        assert torch.equal(torch.cat(pieces), expected[level, :size])
