"""GORP's state: what is saved goes on as if it had not stopped."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from methods.gorp.optimizer import GORP
from tests.support.gorp_steps import LORA, step, steps, zero


def model() -> list[dict[str, Any]]:
    groups = [{"params": [zero(40, 24), zero(24, 40)], "rank": 4}, {"params": [zero(*LORA)], "rule": "sgd"}]
    return [*groups, {"params": [zero(6)], "projected": False}, {"params": [zero(6, 5)], "summary": "first"}]


def weights(optimizer: GORP) -> list[Tensor]:
    return [p.detach() for group in optimizer.param_groups for p in group["params"]]


def continued(before: GORP) -> GORP:
    """Another optimiser on copies of the weights, without any state."""
    after = GORP(model(), rank=None, every=3)
    for own, other in zip(weights(after), weights(before), strict=True):
        own.copy_(other)
    return after


@pytest.mark.parametrize("way", ["torch", "whole"])
@pytest.mark.parametrize("stop", [7, 0])
def test_a_resumed_optimiser_goes_on_to_the_bit(way: str, stop: int) -> None:
    before = GORP(model(), rank=None, every=3)
    steps(before, 0, 5)
    before.end_task()
    steps(before, 10, 10 + stop)
    after = continued(before)
    if way == "torch":
        after.load_state_dict(copy.deepcopy(before.state_dict()))
    else:
        for new, old in zip(after.layouts, before.layouts, strict=True):
            after.load_whole_state(new, copy.deepcopy(before.whole_state(old)))
    for optimizer in (before, after):
        steps(optimizer, 20, 28)
        optimizer.end_task()
        steps(optimizer, 30, 34)
    assert all(torch.equal(left, right) for left, right in zip(weights(before), weights(after), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before.spaces.values(), after.spaces.values(), strict=True))


def test_state_of_half_precision_weights_is_loaded_in_full() -> None:
    half, again = zero(40, 24, dtype=torch.bfloat16), zero(40, 24, dtype=torch.bfloat16)
    before, after = GORP([half], rank=4), GORP([again], rank=4)
    steps(before, 0, 5)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    for name, value in before.state[half].items():
        other = after.state[again][name]
        assert torch.equal(value, other) and value.dtype == other.dtype if isinstance(value, Tensor) else value == other


def test_a_copied_optimiser_is_independent() -> None:
    optimizer = GORP([zero(40, 24)], rank=4)
    step(optimizer, 0)
    twin = copy.deepcopy(optimizer)
    (old,), (new,) = weights(optimizer), weights(twin)
    step(twin, 1)
    assert not torch.equal(old, new)
    step(optimizer, 1)
    assert torch.equal(old, new)


def test_whole_state_counts_and_copies() -> None:
    weight = zero(40, 24)
    optimizer = GORP([weight], rank=4)
    steps(optimizer, 0, 3)
    state = optimizer.whole_state(weight)
    assert set(state) == {"step", "skipped", "first", "second", "mean", "basis", "space"}
    assert state["step"].shape == () and int(state["step"]) == 3
    state["first"].zero_()
    assert optimizer.state[weight]["first"].any()


def test_state_of_another_parameter_is_told() -> None:
    optimizer = GORP(model(), rank=None)
    tall, flat = optimizer.param_groups[0]["params"]
    other = zero(48, 24)
    longer = GORP([other], rank=4).whole_state(other)
    with pytest.raises(ValueError, match=r"parameter 0 of group 0, \[40, 24\], is \[48, 4\], expected \[40, 4\]"):
        optimizer.load_whole_state(tall, longer)
    with pytest.raises(ValueError, match=r"expected \['basis', 'first'"):
        optimizer.load_whole_state(flat, optimizer.whole_state(optimizer.param_groups[1]["params"][0]))
    with pytest.raises(ValueError, match="orthonormal"):
        optimizer.load_whole_state(tall, optimizer.whole_state(tall) | {"space": torch.ones(40, 2)})
