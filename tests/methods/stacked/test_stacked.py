"""A stacked layer in both of its forms: what it computes, what gets gradients, what it keeps for them."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from methods.stacked import layer as stacked
from methods.stacked.layer import StackedLinear
from methods.stacked.product import TokenSpace, WeightSpace
from tests.support.near import near

INPUTS, WIDTH, RANK = 24, 20, 4
FUSED, WHOLE = (slice(0, WIDTH), slice(2 * WIDTH, 3 * WIDTH)), (slice(0, WIDTH),)
FORMS = {"token": TokenSpace, "weight": WeightSpace}
RANKS = (3, 1, 4, 2)  # of the stored tasks
every_shape = pytest.mark.parametrize("sections", [FUSED, WHOLE])


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each form in turn, whatever it costs."""
    monkeypatch.setattr(stacked, "cheaper_form", lambda *_: FORMS[request.param])
    return request.param


def made(sections: tuple[slice, ...] = FUSED, bias: bool = True, active: int = RANK, **options: Any) -> StackedLinear:
    """A layer with four stored tasks, a trained pair and one trained magnitude a task; the pair's is the last."""
    torch.manual_seed(0)
    layer = StackedLinear(nn.Linear(INPUTS, sections[-1].stop, bias), RANK, sections, **options)
    for rank in RANKS:
        layer.store(torch.randn(len(sections), rank, INPUTS), torch.randn(len(sections), WIDTH, rank))
    nn.init.normal_(layer.lora_B)
    layer.active = active
    layer.magnitudes = nn.Parameter(torch.randn(len(RANKS) + 1))
    layer.scales = partial(scales_of, layer)
    return layer


def scales_of(layer: StackedLinear) -> Tensor:
    repeats = torch.tensor([*RANKS, layer.active])
    return layer.magnitudes.repeat_interleave(repeats).expand(len(layer.sections), -1)


def looped(layer: StackedLinear, x: Tensor, of_pair: Tensor | None = None) -> Tensor:
    """The same from separate adapters, one after another; the last one may see another input."""
    y = functional.linear(x, layer.base.weight, layer.base.bias)
    A, B = layer.lora_A.unflatten(0, (-1, RANK)), layer.lora_B.unflatten(0, (-1, WIDTH))
    afters = [*layer.stored_B.to(B).split(RANKS, 2), B[..., : layer.active]]
    befores = [*layer.stored_A.to(A).split(RANKS, 1), A[:, : layer.active]]
    seen = [*([x] * len(RANKS)), x if of_pair is None else of_pair]
    for magnitude, before, after, z in zip(layer.magnitudes, befores, afters, seen, strict=True):
        for number, section in enumerate(layer.sections):
            addition = magnitude * (z @ before[number].T @ after[number].T)
            y = y + functional.pad(addition, (section.start, y.shape[-1] - section.stop))
    return y


def learned(layer: StackedLinear, x: Tensor, y: Tensor) -> list[Tensor]:
    """Output and gradients of x, A, B and the magnitudes, for a loss that weighs every element on its own."""
    loss = (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape).sin()).sum()
    return [y, *torch.autograd.grad(loss, [x, layer.lora_A, layer.lora_B, layer.magnitudes])]


def tokens(*leading: int, **options: Any) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*leading, INPUTS, generator=generator, **options).requires_grad_()


def close(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        assert (one - other).norm() <= tolerance * other.norm() and other.norm() > 0


@every_shape
@pytest.mark.parametrize("leading", [(), (2, 3, 5)])
@pytest.mark.parametrize(("active", "bias"), [(RANK, True), (2, False)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_the_stack_is_the_loop_over_separate_adapters(
    form: str, sections: Any, leading: Any, active: int, bias: bool, dtype: torch.dtype, tolerance: float
) -> None:
    layer, x = made(sections, bias, active).to(dtype), tokens(*leading, dtype=dtype)
    close(learned(layer, x, layer(x)), learned(layer, x, looped(layer, x)), tolerance)


@every_shape
def test_gradients_are_those_of_finite_differences(form: str, sections: Any) -> None:
    layer, x = made(sections).double(), tokens(2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *_: layer(x), [x, layer.lora_A, layer.lora_B, layer.magnitudes])


@pytest.mark.parametrize("asked", range(4))
def test_a_gradient_alone_is_the_one_among_others(form: str, asked: int) -> None:
    layer, x = made(), tokens(2, 3)
    tensors = [x, layer.lora_A, layer.lora_B, layer.magnitudes]
    [_, *together] = learned(layer, x, layer(x))
    for number, tensor in enumerate(tensors):
        tensor.requires_grad_(number == asked)
    y = layer(x)
    y.backward(torch.linspace(-1, 1, y.numel()).view(y.shape).sin())
    assert [tensor.grad is not None for tensor in tensors] == [number == asked for number in range(4)]
    torch.testing.assert_close(tensors[asked].grad, together[asked])


def test_a_gradient_of_strided_tokens_is_that_of_dense_ones(form: str) -> None:
    layer, x = made(), tokens(6, 5)
    strided = x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    close(learned(layer, strided, layer(strided)), learned(layer, x, looped(layer, x)), 1e-5)
    [summed] = torch.autograd.grad(layer(x).sum(), x)
    [expected] = torch.autograd.grad(looped(layer, x).sum(), x)
    assert torch.allclose(summed, expected, rtol=1e-4, atol=1e-5)


def test_only_the_pair_and_the_magnitudes_learn(form: str) -> None:
    layer = made(active=2)
    before = [tensor.clone() for tensor in (layer.stored_A, layer.stored_B, layer.base.weight, layer.base.bias)]
    layer(tokens(7)).square().sum().backward()
    torch.optim.AdamW([p for p in layer.parameters() if p.requires_grad], weight_decay=0.1).step()
    assert {name for name, p in layer.named_parameters() if p.grad is not None} == {"lora_A", "lora_B", "magnitudes"}
    after = (layer.stored_A, layer.stored_B, layer.base.weight, layer.base.bias)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert not layer.stored_A.requires_grad and not layer.stored_B.requires_grad


@pytest.mark.parametrize("active", [0, 1, 3])
def test_directions_that_are_not_active_have_exactly_no_gradient(form: str, active: int) -> None:
    layer = made(active=active)
    layer(tokens(7)).square().sum().backward()
    assert layer.lora_A.grad is not None and layer.lora_B.grad is not None
    down, up = layer.lora_A.grad.view(2, RANK, INPUTS), layer.lora_B.grad
    assert torch.equal(down.abs().sum(2) > 0, (torch.arange(RANK) < active).expand(2, -1))
    assert torch.equal(up.abs().sum(0) > 0, torch.arange(RANK) < active)


@every_shape
def test_a_fresh_pair_changes_nothing(form: str, sections: Any) -> None:
    base = nn.Linear(INPUTS, sections[-1].stop)
    layer, x = StackedLinear(base, RANK, sections), tokens(3, 7)
    assert near(layer(x), base(x))
    layer = made(sections)
    nn.init.zeros_(layer.lora_B)
    with_pair = layer(x)
    layer.active = 0
    layer.magnitudes = nn.Parameter(layer.magnitudes.detach().clone())
    assert near(with_pair, layer(x)) and not near(with_pair, layer.base(x))


def test_magnitudes_of_zero_leave_the_bare_layer(form: str) -> None:
    layer, x = made(), tokens(3, 7)
    nn.init.zeros_(layer.magnitudes)
    assert near(layer(x), layer.base(x))


@pytest.mark.parametrize("task", range(len(RANKS) + 1))
def test_the_output_is_linear_in_each_magnitude(form: str, task: int) -> None:
    layer, x = made().double(), tokens(7, dtype=torch.float64)
    outputs = []
    for value in (0.0, 1.0, 3.0):
        layer.magnitudes.data[task] = value
        outputs.append(layer(x))
    assert (outputs[1] - outputs[0]).norm() > 1
    torch.testing.assert_close(outputs[2] - outputs[0], 3 * (outputs[1] - outputs[0]))


def test_no_random_number_is_drawn_without_dropout(form: str) -> None:
    layer, before = made(), torch.get_rng_state()
    layer(tokens(7)).sum().backward()
    torch.testing.assert_close(torch.get_rng_state(), before)


def test_dropout_concerns_the_input_of_the_pair_alone(form: str) -> None:
    layer, x = made(dropout=0.5), tokens(3, 7)
    torch.manual_seed(5)
    found = learned(layer, x, layer(x))
    torch.manual_seed(5)
    close(found, learned(layer, x, looped(layer, x, functional.dropout(x, 0.5))), 1e-5)
    layer.eval()
    assert (layer(x) - looped(layer, x)).norm() <= 1e-5 * found[0].norm()


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_autocast_computes_in_half_and_learns_in_full(form: str, dropout: float) -> None:
    layer, x = made(dropout=dropout), tokens(3, 7)
    torch.manual_seed(5)
    expected = learned(layer, x, layer(x))
    torch.manual_seed(5)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        assert y.dtype == layer.base(x).dtype == torch.bfloat16
        inside = learned(layer, x, y.float())
    close(inside, expected, 0.03)
    assert layer(x).dtype == torch.float32


@pytest.mark.parametrize("learning", [True, False])
def test_what_is_kept_of_the_tokens(form: str, learning: bool) -> None:
    """x, and in token space x A^T: of all directions where magnitudes learn, else of the pair alone."""
    layer, x, kept = made(), tokens(1000), []
    layer.magnitudes.requires_grad_(learning)
    with saved_tensors_hooks(lambda tensor: (kept.append(tensor), tensor)[1], lambda tensor: tensor):
        layer(x)
    large = [tensor for tensor in kept if tensor.numel() >= 1000]
    assert any(tensor.data_ptr() == x.data_ptr() for tensor in large)
    directions = sum(RANKS) + RANK if learning else RANK
    inner = {"token": [1000 * 2 * directions], "weight": []}[form]
    own = {x.data_ptr(), layer.base.weight.data_ptr()}
    others = [tensor for tensor in large if tensor.data_ptr() not in own]
    assert [tensor.untyped_storage().nbytes() // 4 for tensor in others] == inner, "no slice of something larger"


@pytest.mark.parametrize("of_x", [True, False])
@pytest.mark.parametrize("of_magnitudes", [True, False])
def test_no_gradient_is_computed_that_nothing_asks_for(form: str, of_x: bool, of_magnitudes: bool) -> None:
    """Multiplications and additions of the backward pass, with n tokens, K directions and r of the pair."""
    layer, n, r, stored = made(), 50, RANK, sum(RANKS)
    layer.magnitudes.requires_grad_(of_magnitudes)
    y = layer(tokens(n).requires_grad_(of_x))
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    used, whole = r + stored * (of_x or of_magnitudes), 3 * WIDTH * INPUTS
    expected = {
        "token": n * 2 * (WIDTH * used + (WIDTH + INPUTS) * r) + of_x * n * whole,
        "weight": 2 * WIDTH * INPUTS * (n + 2 * r + stored * of_magnitudes) + of_x * n * whole,
    }[form]
    assert counter.get_total_flops() == 2 * expected, "in-place additions of products are not counted"


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_activations_give_the_same_bits(form: str, reentrant: bool) -> None:
    layer, x = made(), tokens(3, 7)
    losses = [layer(x).square().sum(), checkpoint(layer, x, use_reentrant=reentrant).square().sum()]
    found = []
    for loss in losses:
        layer.zero_grad()
        x.grad = None
        loss.backward()
        found.append([tensor.grad.clone() for tensor in (x, layer.lora_A, layer.lora_B, layer.magnitudes)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
