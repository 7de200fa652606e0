"""The regulariser's closed forms against automatic differentiation, its limits, and its sums over shards."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from methods.treelora.regulariser import regulariser

SIZES = (40, 1, 7)


def random_vectors(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator, dtype=torch.float64) for size in SIZES]


def summing(total: Callable[[Tensor], Tensor]) -> Any:
    """Levels of which the regulariser uses the sum over shards only."""
    return SimpleNamespace(total=total)


def one_shard() -> Any:
    return summing(lambda values: values)


def l1(current: list[Tensor], stored: list[Tensor]) -> Tensor:
    return torch.cat([(x - g).abs() for x, g in zip(current, stored, strict=True)]).sum()


def cosine(current: list[Tensor], stored: list[Tensor]) -> Tensor:
    angles = [functional.cosine_similarity(x, g, 0) for x, g in zip(current, stored, strict=True)]
    return len(angles) - torch.stack(angles).sum()


@pytest.mark.parametrize(("kind", "reference"), [("l1", l1), ("cos", cosine)])
@pytest.mark.parametrize("seed", range(5))
def test_values_and_gradients_equal_automatic_differentiation(
    kind: str, reference: Callable[[list[Tensor], list[Tensor]], Tensor], seed: int
) -> None:
    current, stored = random_vectors(seed), random_vectors(seed + 100)
    leaves = [x.clone().requires_grad_() for x in current]
    expected = reference(leaves, stored)
    value, gradients = regulariser(kind, one_shard(), current, stored)
    torch.testing.assert_close(value, expected.detach(), atol=1e-5, rtol=0)
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["l1", "cos"])
def test_gradients_equal_finite_differences(kind: str) -> None:
    current, stored = random_vectors(1), random_vectors(2)
    _, gradients = regulariser(kind, one_shard(), current, stored)
    for level, place in [(0, 0), (0, 39), (1, 0), (2, 3)]:
        values = []
        for step in (1e-6, -1e-6):
            moved = [x.clone() for x in current]
            moved[level][place] += step
            values.append(regulariser(kind, one_shard(), moved, stored)[0])
        assert float(gradients[level][place]) == pytest.approx(float(values[0] - values[1]) / 2e-6, abs=1e-5)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("against", [True, False])
def test_a_small_step_on_the_cosine_increases_every_alignment(seed: int, against: bool) -> None:
    """Also from an angle of more than a right one, where a product of cosines would push apart."""
    current, stored = random_vectors(seed), random_vectors(seed + 100)
    current[1] = torch.cat([current[1], torch.ones(1, dtype=torch.float64)])  # one number has no angle
    stored[1] = torch.cat([stored[1], -torch.ones(1, dtype=torch.float64)])
    current = [x if (x @ g < 0) == against else -x for x, g in zip(current, stored, strict=True)]
    _, gradients = regulariser("cos", one_shard(), current, stored)
    for x, g, gradient in zip(current, stored, gradients, strict=True):
        before = functional.cosine_similarity(x, g, 0)
        assert (before < 0) == against
        assert functional.cosine_similarity(x - 1e-3 * gradient, g, 0) > before


def test_l1_gradients_are_signs_and_zero_where_equal() -> None:
    current, stored = torch.tensor([1.0, 2.0, 3.0, 0.0]), torch.tensor([3.0, 2.0, 1.0, 0.0])
    value, (gradient,) = regulariser("l1", one_shard(), [current], [stored])
    assert value == 4
    assert gradient.tolist() == [-1, 0, 1, 0]


@pytest.mark.parametrize("zero", ["current", "stored", "both"])
def test_a_zero_vector_counts_one_and_pulls_nowhere(zero: str) -> None:
    current, stored = random_vectors(1), random_vectors(2)
    others, _ = regulariser("cos", one_shard(), current[1:], stored[1:])
    if zero != "stored":
        current[0] = torch.zeros(40, dtype=torch.float64)
    if zero != "current":
        stored[0] = torch.zeros(40, dtype=torch.float64)
    value, gradients = regulariser("cos", one_shard(), current, stored)
    assert float(value) == pytest.approx(1 + float(others))
    assert gradients[0].tolist() == [0.0] * 40
    assert gradients[2].abs().sum() > 0


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e-20, 1e-15, 1e-10, 1e10])
@pytest.mark.parametrize("scaled", ["current", "stored"])
def test_float32_vectors_of_any_length_give_finite_gradients(scaled: str, scale: float) -> None:
    current, stored = torch.randn(2, 30, generator=torch.Generator().manual_seed(0))
    pair = [current * scale, stored] if scaled == "current" else [current, stored * scale]
    value, (gradient,) = regulariser("cos", one_shard(), [pair[0]], [pair[1]])
    assert gradient.isfinite().all()
    assert 0 <= value <= 2


@pytest.mark.parametrize("kind", ["l1", "cos"])
@pytest.mark.parametrize("shares", [(20, 1, 3), (0, 0, 7), (40, 1, 7)])
def test_two_shards_sum_to_the_whole(kind: str, shares: tuple[int, ...]) -> None:
    current, stored = random_vectors(3), random_vectors(4)
    first = [[v[:n] for v, n in zip(vectors, shares, strict=True)] for vectors in (current, stored)]
    second = [[v[n:] for v, n in zip(vectors, shares, strict=True)] for vectors in (current, stored)]
    shards = [first, second]
    sent: list[Tensor] = []

    def record(values: Tensor) -> Tensor:
        sent.append(values)
        return values

    for x, g in shards:
        regulariser(kind, summing(record), x, g)
    results = [regulariser(kind, summing(lambda _: sent[0] + sent[1]), x, g) for x, g in shards]
    value, gradients = regulariser(kind, one_shard(), current, stored)
    for other, _ in results:
        torch.testing.assert_close(other, value)
    for level, gradient in enumerate(gradients):
        torch.testing.assert_close(torch.cat([edits[level] for _, edits in results]), gradient)
