"""A stacked layer around its products: the choice of form, storing and folding directions, what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods.stacked import layer as stacked
from methods.stacked.layer import StackedLinear
from methods.stacked.product import TokenSpace, WeightSpace, cheaper_form
from tests.methods.stacked.test_stacked import FUSED, INPUTS, RANK, RANKS, WHOLE, WIDTH, every_shape, made, tokens


def update(layer: StackedLinear) -> Tensor:
    return layer.delta(layer.lora_A, layer.lora_B, layer.scales())


def directions(rank: int, projections: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(projections, rank, INPUTS), torch.randn(projections, WIDTH, rank)


@every_shape
@pytest.mark.parametrize("tasks", [0, 1, len(RANKS)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
@pytest.mark.parametrize("active", [2, 0])
def test_a_folded_layer_is_the_unfolded_one(
    sections: Any, tasks: int, dtype: torch.dtype, tolerance: float, active: int
) -> None:
    layer = made(sections, active=active).to(dtype)
    count = sum(RANKS[:tasks])
    layer.restore(layer.stored_A[:, :count], layer.stored_B[..., :count])
    scales = torch.randn(len(sections), count + active, dtype=dtype)
    layer.scales = lambda: scales
    x, weight = tokens(3, 7, dtype=dtype), layer.base.weight.clone()
    before = layer(x)
    layer.fold(update(layer))
    assert (layer(x) - before).abs().max() < tolerance
    assert torch.equal(layer(x), layer.base(x))
    assert torch.equal(layer.base.weight, weight) == (count + active == 0)
    layer.unfold()
    assert torch.equal(layer.base.weight, weight) and torch.equal(layer(x), before)


def test_an_update_concerns_the_sections_alone() -> None:
    found = update(made(FUSED))
    assert found.shape == (3 * WIDTH, INPUTS) and not found.requires_grad
    assert found[WIDTH : 2 * WIDTH].count_nonzero() == 0
    assert bool((found[:WIDTH] != 0).all()) and bool((found[2 * WIDTH :] != 0).all())


def test_folds_do_not_nest() -> None:
    layer = made()
    with pytest.raises(RuntimeError, match="not folded"):
        layer.unfold()
    layer.fold(update(layer))
    with pytest.raises(RuntimeError, match="folded already"):
        layer.fold(update(layer))
    layer.unfold()
    with pytest.raises(RuntimeError, match="not folded"):
        layer.unfold()


def test_stored_directions_are_copies_in_order() -> None:
    layer = StackedLinear(nn.Linear(INPUTS, 3 * WIDTH), RANK, FUSED)
    first, second = directions(3), directions(1)
    layer.store(*first)
    layer.store(second[0].double().requires_grad_(), second[1])
    assert torch.equal(layer.stored_A, torch.cat([first[0], second[0]], 1))
    assert torch.equal(layer.stored_B, torch.cat([first[1], second[1]], 2))
    assert layer.scales().shape == (2, 4 + RANK)
    layer.restore(*first)
    first[0].zero_(), first[1].zero_()
    assert layer.stored_A.shape == (2, 3, INPUTS) and bool((layer.stored_A != 0).all() and (layer.stored_B != 0).all())
    assert not layer.stored_A.requires_grad and layer.stored_A.dtype == torch.float32


def test_a_restored_layer_computes_the_same_bits() -> None:
    layer, x = made(), tokens(7)
    other = StackedLinear(nn.Linear(INPUTS, 3 * WIDTH), RANK, FUSED)
    other.load_state_dict({name: value for name, value in layer.state_dict().items() if name != "magnitudes"})
    other.restore(layer.stored_A, layer.stored_B)
    other.scales = layer.scales
    assert torch.equal(other(x), layer(x))


def test_stored_directions_follow_the_layer_to_its_device() -> None:
    layer = made().to("meta")
    assert layer.stored_A.device.type == layer.stored_B.device.type == "meta"
    assert layer.stored_A.shape == (2, sum(RANKS), INPUTS)


def test_a_copy_of_a_layer_has_its_own_scales() -> None:
    layer = StackedLinear(nn.Linear(INPUTS, WIDTH), RANK, WHOLE)
    other = copy.deepcopy(layer)
    other.store(*directions(3, 1))
    assert layer.scales().shape == (1, RANK) and other.scales().shape == (1, 3 + RANK)


@pytest.mark.parametrize(
    "sections",
    [(), (slice(0, 20), slice(40, 59)), (slice(50, 70),), (slice(-20, None),), (slice(20, 20),), (slice(0, 40, 2),)],
)
def test_sections_that_do_not_fit_are_refused(sections: Any) -> None:
    with pytest.raises(ValueError, match=r"^sections \[.*\]: name equally wide ranges of rows inside the 60 outputs$"):
        StackedLinear(nn.Linear(INPUTS, 60), RANK, sections)


@pytest.mark.parametrize("rank", [-1, 0, 21])
def test_ranks_that_do_not_fit_are_refused(rank: int) -> None:
    with pytest.raises(ValueError, match=f"^rank {rank}: a projection of 24 to 20 takes 1 to 20$"):
        StackedLinear(nn.Linear(INPUTS, 60), rank, FUSED)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("broken", [0, 1])
def test_values_that_are_not_finite_are_refused(value: float, broken: int) -> None:
    layer, pair = made(), directions(2)
    pair[broken][1, 1, 1] = value
    for call in (layer.store, layer.restore):
        with pytest.raises(ValueError, match="not finite"):
            call(*pair)
    assert layer.stored_A.shape[1] == layer.stored_B.shape[2] == sum(RANKS)


@pytest.mark.parametrize("shapes", [((1, 3, 24), (1, 20, 3)), ((2, 3, 24), (2, 20, 4)), ((2, 3, 23), (2, 20, 3))])
def test_shapes_that_disagree_are_named(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    layer, pair = made(), [torch.zeros(shape) for shape in shapes]
    for call in (layer.store, layer.restore):
        with pytest.raises(ValueError) as caught:
            call(*pair)
        named = (*shapes, (2, 3, INPUTS), (2, WIDTH, 3))
        assert all(str(shape) in str(caught.value) for shape in named) and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"\(24,\)"):
        layer.restore(torch.zeros(24), pair[1])


def test_a_fresh_layer_is_drawn_as_peft_draws_it() -> None:
    torch.manual_seed(3)
    layer = StackedLinear(nn.Linear(INPUTS, 3 * WIDTH), RANK, FUSED)
    assert layer.lora_A.abs().max() <= INPUTS**-0.5 and layer.lora_A.std() > 0.5 * INPUTS**-0.5
    assert layer.active == RANK and layer.lora_B.count_nonzero() == 0
    assert layer.scales().shape == (2, RANK) and bool((layer.scales() == 1).all())
    assert {name for name, p in layer.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}
    assert set(layer.state_dict()) == {"base.weight", "base.bias", "lora_A", "lora_B"}


def test_half_precision_rounds_the_sum_and_not_the_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the folded layer does; most of the update is smaller than half a step between weights in bf16."""
    monkeypatch.setattr(stacked, "cheaper_form", lambda *_: WeightSpace)
    layer, x = made(), tokens(50)
    nn.init.uniform_(layer.base.weight, 1, 2)
    nn.init.constant_(layer.magnitudes, 3e-4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        bare, unfolded = layer.base(x), layer(x)
        layer.fold(layer.delta(layer.lora_A, layer.lora_B, layer.scales()))
        assert (unfolded - layer(x)).norm() < 0.1 * (layer(x) - bare).norm()


def test_weight_space_begins_at_a_quarter_of_the_smaller_side() -> None:
    assert cheaper_form(15, 64, 96, torch.float32) is cheaper_form(15, 96, 64, torch.float64) is TokenSpace
    assert cheaper_form(16, 64, 96, torch.float32) is cheaper_form(16, 96, 64, torch.float64) is WeightSpace
    assert cheaper_form(64, 64, 64, torch.bfloat16) is TokenSpace, "the sum would be rounded to half precision"


@pytest.mark.parametrize(("active", "expected"), [(0, TokenSpace), (1, WeightSpace)])
def test_the_layer_counts_stored_and_active_directions(
    monkeypatch: pytest.MonkeyPatch, active: int, expected: Any
) -> None:
    chosen = []
    original = stacked.stacked_linear
    monkeypatch.setattr(stacked, "stacked_linear", lambda form, *rest: (chosen.append(form), original(form, *rest))[1])
    layer = StackedLinear(nn.Linear(INPUTS, WIDTH), RANK, WHOLE)
    layer.store(torch.randn(1, 4, INPUTS), torch.randn(1, WIDTH, 4))
    layer.active = active
    layer(tokens(7))
    assert chosen == [expected]
