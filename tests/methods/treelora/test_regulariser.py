"""The regulariser's closed forms against automatic differentiation, its limits, its sums over shards and its ramps."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional

from methods.treelora.config import TreeLoRAConfig
from methods.treelora.regulariser import POLE, RegulariserConfig, edit, ramp

SIZES = (40, 1, 7)
KINDS = ("l1", "cos", "dot_log")
LOSS, SHARE = torch.tensor(2.5, dtype=torch.float64), 0.5
every_kind = pytest.mark.parametrize("kind", KINDS)
every_scale = pytest.mark.parametrize("scale", ["raw", "match_loss"])
every_target = pytest.mark.parametrize("target", ["raw", "norm_matched"])


def padded(rows: list[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def random_rows(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator, dtype=torch.float64) for size in SIZES]


def pair(seed: int = 0) -> tuple[Tensor, Tensor]:
    """X and G, float64 [3, 40]."""
    return padded(random_rows(seed)), padded(random_rows(seed + 100))


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float32)


def summing(total: Callable[[Tensor], Tensor]) -> Any:
    """Levels of which the regulariser uses the sum over shards only."""
    return SimpleNamespace(total=total)


WHOLE = summing(lambda values: values)


def gradient(current: Tensor, stored: Tensor, levels: Any = WHOLE, **settings: Any) -> tuple[Tensor, Tensor]:
    """Weighted value and gradient; unless told otherwise of strength 1, raw and at the end of the ramp."""
    config = RegulariserConfig(**{"strength": 1.0, "scale": "raw"} | settings)
    edited = torch.zeros_like(current)
    value = edit(config, levels, edited, current, stored, LOSS.to(current.dtype), 1.0)
    return torch.tensor(value, dtype=current.dtype), edited


def formula(kind: str, current: Tensor, stored: Tensor) -> Tensor:
    """The objective that is differentiated, up to a constant."""
    if kind == "l1":
        return (current - stored).abs().sum()
    if kind == "cos":
        return (1 - functional.cosine_similarity(current, stored, 1)).sum()
    return -(current * stored).sum().abs().log()


def reference(kind: str, scale: str, target: str, current: Tensor, stored: Tensor, strength: float) -> list[Tensor]:
    """Weighted value and gradient by automatic differentiation; lengths and scales are constants."""
    leaf = current.clone().requires_grad_()
    if target == "norm_matched":
        stored = stored * (leaf.norm(dim=1) / stored.norm(dim=1)).detach()[:, None]
    objective = formula(kind, leaf, stored)
    (found,) = torch.autograd.grad(objective, leaf)
    value = torch.tensor(-1.0, dtype=torch.float64) if kind == "dot_log" else objective.detach()
    factor = strength * (LOSS / value.abs() if scale == "match_loss" else 1.0)
    return [factor * value, factor * found]


@every_kind
@every_scale
@every_target
@pytest.mark.parametrize("seed", range(3))
def test_values_and_gradients_equal_automatic_differentiation(kind: str, scale: str, target: str, seed: int) -> None:
    current, stored = pair(seed)
    edited = torch.ones_like(current)
    config = RegulariserConfig(kind=kind, scale=scale, target=target, strength=0.3)
    value = edit(config, WHOLE, edited, current, stored, LOSS, SHARE)
    wanted, expected = reference(kind, scale, target, current, stored, 0.3 * SHARE)
    assert value == pytest.approx(float(wanted), rel=1e-12)
    torch.testing.assert_close(edited, 1 + expected, rtol=1e-12, atol=1e-12)


@every_kind
@every_scale
@every_target
@pytest.mark.parametrize("shares", [(20, 1, 3), (0, 0, 7), (40, 1, 7)])
def test_two_shards_edit_as_the_whole(kind: str, scale: str, target: str, shares: tuple[int, ...]) -> None:
    settings: Any = {"kind": kind, "scale": scale, "target": target}
    rows = [random_rows(3), random_rows(4)]
    first = [padded([v[:n] for v, n in zip(vectors, shares, strict=True)]) for vectors in rows]
    second = [padded([v[n:] for v, n in zip(vectors, shares, strict=True)]) for vectors in rows]
    results = in_step([first, second], settings)
    value, expected = gradient(padded(rows[0]), padded(rows[1]), **settings)
    for other, _ in results:
        torch.testing.assert_close(other, value)
    for level, (share, size) in enumerate(zip(shares, SIZES, strict=True)):
        pieces = results[0][1][level, :share], results[1][1][level, : size - share]
        torch.testing.assert_close(torch.cat(pieces), expected[level, :size])


def in_step(shards: list[list[Tensor]], settings: Any) -> list[tuple[Tensor, Tensor]]:
    """What every shard finds: each sum is learned in one more pass over all of them."""
    sums: list[Tensor] = []
    while True:
        asked: list[list[Tensor]] = [[] for _ in shards]
        results = [gradient(*s, summing(answering(sums, asked[i])), **settings) for i, s in enumerate(shards)]
        if len(asked[0]) == len(sums):
            return results
        sums.append(sum((local[len(sums)] for local in asked), torch.zeros(())))


def answering(sums: list[Tensor], asked: list[Tensor]) -> Callable[[Tensor], Tensor]:
    """A sum over shards that knows the first few sums and records what it is asked."""

    def total(values: Tensor) -> Tensor:
        asked.append(values)
        return sums[len(asked) - 1] if len(asked) <= len(sums) else values

    return total


@pytest.mark.parametrize("kind", ["l1", "cos"])
def test_gradients_equal_finite_differences(kind: str) -> None:
    current, stored = pair()
    _, found = gradient(current, stored, kind=kind, strength=0.7)
    for level, place in [(0, 0), (0, 39), (1, 0), (2, 3)]:
        values = []
        for step in (1e-6, -1e-6):
            moved = current.clone()
            moved[level, place] += step
            values.append(gradient(moved, stored, kind=kind, strength=0.7)[0])
        assert float(found[level, place]) == pytest.approx(float(values[0] - values[1]) / 2e-6, abs=1e-7)


def test_l1_gradients_are_signs_times_the_strength_and_zero_where_equal() -> None:
    value, found = gradient(row(1, 2, 3, 0), row(3, 2, 1, 0), kind="l1", strength=0.5)
    assert value == 2
    assert found.tolist() == [[-0.5, 0, 0.5, 0]]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("against", [True, False])
@every_target
def test_a_small_step_on_the_cosine_increases_every_alignment(seed: int, against: bool, target: str) -> None:
    """Also from an angle of more than a right one, where the released code pushes apart."""
    current, stored = pair(seed)
    current[1, 1], stored[1, 1] = 1, -1  # one number has no angle
    current *= torch.where(((current * stored).sum(1) < 0) == against, 1, -1)[:, None]
    before = functional.cosine_similarity(current, stored, 1)
    assert ((before < 0) == against).all()
    _, found = gradient(current, stored, kind="cos", target=target)
    assert (functional.cosine_similarity(current - 1e-3 * found, stored, 1) > before).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_dot_log_pushes_the_product_away_from_zero_on_whichever_side_it_is(sign: int) -> None:
    """As the released code does, which is why vectors of a negative product are driven apart."""
    current, stored = pair()
    stored = stored * sign
    product = (current * stored).sum()
    _, found = gradient(current, stored, kind="dot_log")
    torch.testing.assert_close(found, -stored / product)
    assert ((current - 1e-3 * found) * stored).sum().abs() > product.abs()


@pytest.mark.parametrize("sign", [1, -1])
def test_the_loss_shrinks_by_the_strength_under_dot_log(sign: int) -> None:
    current, stored = pair()
    config = RegulariserConfig(kind="dot_log", strength=0.4)
    value = edit(config, WHOLE, torch.zeros_like(current), current, sign * stored, LOSS, SHARE)
    assert float(LOSS + value) == pytest.approx(float(LOSS) * (1 - SHARE * 0.4))


@every_scale
@pytest.mark.parametrize("product", [0.0, 1e-12, -1e-12, -POLE, -POLE * 0.999999, POLE])
def test_a_product_near_zero_pulls_no_harder_than_one_at_the_guard(scale: str, product: float) -> None:
    current, stored = row(product, 0.0).double(), row(1.0, 0.0).double()
    value, found = gradient(current, stored, kind="dot_log", scale=scale)
    factor = float(LOSS) if scale == "match_loss" else 1.0
    assert value == -factor
    assert found.tolist() == [[pytest.approx((1 if product < 0 else -1) * factor / POLE, rel=1e-5), 0.0]]


@every_kind
@every_scale
def test_strength_zero_and_the_start_of_a_ramp_edit_nothing(kind: str, scale: str) -> None:
    current, stored = pair()
    for strength, share in ((0.0, 1.0), (1.0, 0.0)):
        edited = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
        before = edited.clone()
        config = RegulariserConfig(kind=kind, strength=strength, scale=scale)
        assert edit(config, WHOLE, edited, current.float(), stored.float(), LOSS.float(), share) == 0
        assert torch.equal(edited, before)


@pytest.mark.parametrize("zero", ["current", "stored", "both"])
def test_a_zero_level_counts_one_and_pulls_nowhere(zero: str) -> None:
    current, stored = pair()
    others, _ = gradient(current[1:], stored[1:], kind="cos")
    if zero != "stored":
        current[0] = 0
    if zero != "current":
        stored[0] = 0
    value, found = gradient(current, stored, kind="cos")
    assert float(value) == pytest.approx(1 + float(others))
    assert not found[0].any()
    assert found[2].abs().sum() > 0


@every_kind
@every_scale
@every_target
@pytest.mark.parametrize("zero", ["current", "stored", "both"])
def test_zeros_everywhere_give_finite_gradients(kind: str, scale: str, target: str, zero: str) -> None:
    current, stored = (v.float() for v in pair())
    current = current * (zero == "stored")
    stored = stored * (zero == "current")
    value, found = gradient(current, stored, kind=kind, scale=scale, target=target)
    assert value.isfinite() and found.isfinite().all()
    if zero == "both" or kind == "cos" or (kind == "dot_log" and zero == "stored"):
        assert not found.any()


@every_kind
@every_scale
@every_target
def test_float32_vectors_of_any_length_give_finite_gradients(kind: str, scale: str, target: str) -> None:
    current, stored = (v.float() for v in pair())
    lengths = (1e-30, 1e-22, 1e-15, 1e-10, 1, 1e10, 1e30)
    for own, other in itertools.product(lengths, lengths):
        value, found = gradient(current * own, stored * other, kind=kind, scale=scale, target=target)
        assert value.isfinite() and found.isfinite().all(), (own, other)


@pytest.mark.parametrize("length", [1e-10, 1.0, 1e5])
@pytest.mark.parametrize("other", [1e-14, 1.0, 1e14])
def test_the_cosine_does_not_depend_on_lengths(length: float, other: float) -> None:
    current, stored = (v.float() for v in pair())
    value, found = gradient(current, stored, kind="cos")
    scaled, shrunk = gradient(current * length, stored * other, kind="cos")
    torch.testing.assert_close(scaled, value, rtol=1e-5, atol=0)
    torch.testing.assert_close(shrunk * length, found, rtol=1e-4, atol=1e-6)


@every_kind
@every_target
def test_a_target_of_matched_length_does_not_depend_on_its_own(kind: str, target: str) -> None:
    current, stored = pair()
    found = [gradient(current, stored * length, kind=kind, target=target)[1] for length in (1.0, 1e-3)]
    equal = torch.allclose(*found, rtol=1e-10)
    assert equal == (target == "norm_matched" or kind != "l1")


@pytest.mark.parametrize("strength", [-0.1, float("nan"), float("inf")])
def test_a_strength_that_is_no_weight_is_refused_by_name(strength: float) -> None:
    with pytest.raises(ValidationError) as caught:
        TreeLoRAConfig(regulariser={"strength": strength})
    (error,) = caught.value.errors()
    assert error["loc"] == ("regulariser", "strength")


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("const", [1, 1, 1, 1, 1, 1]),
        ("ramp_task", [1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1]),
        ("ramp_epoch", [1 / 3, 2 / 3, 1, 1 / 3, 2 / 3, 1]),
    ],
)
def test_a_ramp_ends_at_the_strength(schedule: str, expected: list[float]) -> None:
    assert [ramp(schedule, step, 6, 2) for step in range(6)] == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["const", "ramp_task", "ramp_epoch"])
def test_a_single_step_has_the_whole_strength(schedule: str) -> None:
    assert ramp(schedule, 0, 1, 1) == 1


def test_epochs_of_one_step_have_the_whole_strength() -> None:
    assert [ramp("ramp_epoch", step, 4, 4) for step in range(4)] == [1, 1, 1, 1]
