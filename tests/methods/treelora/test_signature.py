"""Signatures: exact running means, of the factors that count, whatever number of steps was planned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods.levels import Levels
from methods.treelora.config import SignatureConfig
from methods.treelora.signature import Signature

STEPS = 1000
KINDS = ("gradient", "displacement", "a_param")


def make_levels() -> Levels:
    """Two levels of a pair of factors; the second is wider."""
    shapes = {"0.lora_A.w": (2, 3), "0.lora_B.w": (4, 2), "1.lora_A.w": (2, 5), "1.lora_B.w": (4, 2)}
    named = [(name, nn.Parameter(torch.ones(shape))) for name, shape in shapes.items()]
    return Levels(named, lambda name: int(name[0]), lambda values: values)


def started(levels: Levels, **settings: Any) -> Signature:
    signature = Signature(SignatureConfig(**settings), levels)
    signature.begin(levels.parameters())
    return signature


def walk(levels: Levels, steps: int = STEPS) -> tuple[Tensor, Tensor]:
    """Gradients and values [steps, levels, width] that are zero in the padding."""
    generator = torch.Generator().manual_seed(0)
    filled = levels.coordinates() >= 0
    shape = (steps, *filled.shape)
    return torch.randn(shape, generator=generator) * filled, 3 + torch.randn(shape, generator=generator) * filled


def follow(levels: Levels, signature: Signature, gradients: Tensor, values: Tensor) -> None:
    for gradient, value in zip(gradients, values, strict=True):
        levels.set_parameters(value)
        signature.take(gradient)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 2, 17, STEPS])
def test_the_running_mean_equals_the_mean_of_the_batch(kind: str, steps: int) -> None:
    levels = make_levels()
    signature = started(levels, kind=kind)
    gradients, values = walk(levels)
    follow(levels, signature, gradients[:steps], values[:steps])
    filled = levels.coordinates() >= 0
    of_kind = {"gradient": gradients, "displacement": values - 1, "a_param": values}[kind]
    expected = of_kind[:steps].double().mean(0) * filled
    assert (signature.mean.double() - expected).abs().max() <= 1e-6 * of_kind.abs().max()
    assert signature.count == steps


def test_the_mean_is_over_what_was_seen_and_not_over_what_was_planned() -> None:
    """Equal gradients give the same mean after any number of steps: nothing knows the number to come."""
    levels = make_levels()
    signature = started(levels)
    gradient = walk(levels, 1)[0][0]
    for _ in range(50):
        signature.take(gradient)
        torch.testing.assert_close(signature.mean, gradient, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("factors", "left_out"), [("A", "lora_B"), ("B", "lora_A")])
@pytest.mark.parametrize("kind", KINDS)
def test_a_factor_that_does_not_count_is_zero(kind: str, factors: str, left_out: str) -> None:
    levels = make_levels()
    one, both = (started(levels, kind=kind, factors=f) for f in (factors, "AB"))
    gradients, values = walk(levels, 3)
    follow(levels, one, gradients, values)
    follow(levels, both, gradients, values)
    dropped = levels.named(left_out)
    assert int(dropped.sum()) == 16 and both.mean[dropped].all()
    for of_one, of_both in ((one.mean, both.mean), (one.target(), both.target()), (one.carrier(), both.carrier())):
        assert torch.equal(of_one, torch.where(dropped, 0, of_both))


@pytest.mark.parametrize(("kind", "expected"), [("gradient", 4.0), ("displacement", 4.0), ("a_param", 5.0)])
def test_what_is_drawn_is_the_way_since_the_start_or_the_values(kind: str, expected: float) -> None:
    levels = make_levels()
    signature = started(levels, kind=kind)
    assert torch.equal(signature.carrier().unique(), torch.tensor([0.0] if kind != "a_param" else [0.0, 1.0]))
    levels.set_parameters(torch.full((2, levels.width), 5.0))
    filled = levels.coordinates() >= 0
    assert torch.equal(signature.carrier(), expected * filled)
    assert torch.equal(levels.parameters(), 5.0 * filled)


@pytest.mark.parametrize(("kind", "expected"), [("gradient", 6.0), ("displacement", 4.0), ("a_param", 5.0)])
def test_later_tasks_are_drawn_to_the_last_way_or_to_the_mean(kind: str, expected: float) -> None:
    levels = make_levels()
    signature = started(levels, kind=kind)
    for value in (3.0, 7.0):
        levels.set_parameters(torch.full((2, levels.width), value))
        signature.take(torch.zeros(2, levels.width))
    assert torch.equal(signature.target(), expected * (levels.coordinates() >= 0))


def test_a_new_task_starts_anew_and_an_epoch_forgets_the_mean_alone() -> None:
    levels = make_levels()
    signature = started(levels)
    signature.take(torch.ones(2, levels.width))
    levels.set_parameters(torch.full((2, levels.width), 3.0))
    signature.forget()
    assert signature.count == 0 and not signature.mean.any()
    assert signature.carrier().max() == 2
    signature.begin(levels.parameters())
    assert not signature.carrier().any()


def test_taking_a_step_changes_neither_gradient_nor_start() -> None:
    levels = make_levels()
    start = levels.parameters()
    for kind in KINDS:
        for factors in ("A", "AB"):
            signature = Signature(SignatureConfig(kind=kind, factors=factors), levels)
            signature.begin(start)
            gradient = torch.ones(2, levels.width)
            signature.take(gradient)
            signature.take(gradient)
            assert (gradient == 1).all()
            assert torch.equal(start, levels.parameters())
