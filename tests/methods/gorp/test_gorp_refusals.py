"""What GORP leaves out or refuses: gradients that cannot be used, options and parameters that do not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods.gorp.optimizer import GORP
from methods.gorp.options import CHOICES
from tests.support.gorp_steps import LORA, SHAPES, orthonormal, random, step, zero


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("refresh", ["randomised", "svd"])
@pytest.mark.parametrize("shape", [*SHAPES, LORA])
def test_a_gradient_that_is_not_finite_is_skipped_and_counted(bad: float, refresh: Any, shape: tuple[int, int]) -> None:
    """At a refresh and between two; the other parameter goes on, and later steps are as if it had not been."""
    rank = None if shape == LORA else 4
    made = [[zero(*shape), zero(20, 10)] for _ in range(2)]
    one, other = (GORP(weights, rank=rank, every=2, refresh=refresh) for weights in made)
    for seed in range(4):
        step(one, seed), step(other, seed)
        before = made[0][0].detach().clone(), made[0][1].detach().clone()
        for weights in made:
            weights[0].grad, weights[1].grad = random(*shape), random(20, 10, seed=50 + seed)
        grad = made[0][0].grad
        assert grad is not None
        grad[1, 2] = bad
        made[1][0].grad = None
        one.step(), other.step()
        assert torch.equal(made[0][0], before[0]) and not torch.equal(made[0][1], before[1])
        assert one.skipped == seed + 1
    assert all(torch.equal(left, right) for left, right in zip(*made, strict=True))
    assert all(weight.isfinite().all() for weight in made[0]) and other.skipped == 0


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e15])
@pytest.mark.parametrize("shape", [*SHAPES, LORA])
def test_gradients_of_any_finite_size_are_taken(size: float, shape: tuple[int, int]) -> None:
    weight = zero(*shape)
    optimizer = GORP([weight], rank=None if shape == LORA else 4, every=2, spaces={weight: orthonormal(max(shape), 3)})
    for seed in range(5):
        weight.grad = size * random(*shape, seed=seed)
        optimizer.step()
    optimizer.end_task()
    assert weight.isfinite().all() and optimizer.skipped == 0
    assert optimizer.spaces[weight].isfinite().all()


@pytest.mark.parametrize("rank", [4, None])
def test_half_precision_is_computed_in_full(rank: int | None) -> None:
    half, full = zero(40, 24, dtype=torch.bfloat16), zero(40, 24)
    one, other = GORP([half], lr=0.01, rank=rank, every=3), GORP([full], lr=0.01, rank=rank, every=3)
    for seed in range(8):
        half.grad = random(40, 24, seed=seed).bfloat16()
        full.grad = half.grad.float()
        one.step(), other.step()
    one.end_task(), other.end_task()
    assert {value.dtype for value in one.state[half].values() if isinstance(value, Tensor)} == {torch.float32}
    torch.testing.assert_close(half.float(), full.detach(), rtol=0.03, atol=1e-3)
    torch.testing.assert_close(one.spaces[half], other.spaces[full])


def test_a_sparse_gradient_is_told() -> None:
    table = nn.Embedding(10, 4, sparse=True)
    optimizer = GORP(table.parameters(), rank=2)
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(ValueError, match="sparse=False"):
        optimizer.step()


# --- options ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank must be at least 1"),
        ({"rank": -1}, "rank must be at least 1"),
        ({"rank": 25}, r"rank 25 of parameter 0 of group 0, \[40, 24\], is above 24"),
        ({"every": 0}, "every must be at least 1"),
        ({"energy": 0.0}, "energy must be above 0"),
        ({"energy": 1.1}, "energy must be above 0"),
        ({"energy": float("nan")}, "energy must be above 0"),
        ({"cap": 0.0}, "cap must be above 0"),
        ({"cap": 1.5}, "cap must be above 0"),
        ({"lr": -1.0}, "lr must be at least 0"),
        ({"lr": float("nan")}, "lr must be at least 0"),
        ({"scale": -1.0}, "scale must be"),
        ({"eps": -1.0}, "eps must be"),
        ({"betas": (0.9, 1.0)}, "betas must be"),
        ({"betas": (0.9,)}, "betas must be"),
        *[({name: "other"}, f"{name} must be one of") for name in CHOICES],
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as told:
        GORP([zero(40, 24)], **options)
    assert "\n" not in str(told.value)
    optimizer = GORP([zero(5, 5)], rank=2)
    with pytest.raises(ValueError, match=message.replace("group 0", "group 1")):
        optimizer.add_param_group({"params": [zero(40, 24)], **options})
    assert len(optimizer.param_groups) == 1, "a group that is rejected is not there"
    step(optimizer, 0)


def test_parameters_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"parameter 1 'b' of group 0, \[4\], is not a matrix"):
        GORP([{"params": [zero(40, 24), zero(4)], "names": ["a", "b"]}])
    with pytest.raises(ValueError, match="weight_decay"):
        GORP([{"params": [zero(40, 24)], "weight_decay": 0.1}])
    weight = zero(40, 24)
    with pytest.raises(ValueError, match="more than one parameter group"):
        GORP([{"params": [weight]}, {"params": [weight]}])
    with pytest.raises(ValueError, match=r"\[24, 40\].*rank=None"):
        GORP([zero(24, 40)], side="rows")


def test_spaces_that_do_not_fit_are_named() -> None:
    weight, plain = zero(40, 24), zero(40, 24)
    for space, message in ((orthonormal(24, 2), r"\[40, k\]"), (torch.ones(40, 2), "orthonormal")):
        with pytest.raises(ValueError, match=message):
            GORP([weight], spaces={weight: space})
    for other in (zero(40, 24), plain):
        with pytest.raises(ValueError, match="no projected group"):
            GORP([{"params": [weight]}, {"params": [plain], "projected": False}], spaces={other: orthonormal(40, 2)})
