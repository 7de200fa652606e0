"""GORP's steps, tasks and state on whole matrices."""

from __future__ import annotations

import copy
import doctest
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods.gorp import optimizer as module
from methods.gorp.optimizer import GORP
from methods.gorp.options import CHOICES
from tests.test_gorp_space import Largest

SHAPES = [(40, 24), (24, 40), (32, 32)]
LORA = (4, 40)  # LoRA's A
every_shape = pytest.mark.parametrize("shape", SHAPES)
every_rule = pytest.mark.parametrize("rule", ["adam", "sgd"])


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def zero(*shape: int, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape, dtype=dtype))


def orthonormal(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.linalg.qr(random(rows, columns, seed=77, dtype=dtype)).Q


def step(optimizer: torch.optim.Optimizer, seed: int) -> None:
    """One step on random gradients, the same for every optimiser over parameters of the same shapes."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, parameter in enumerate(parameters):
        parameter.grad = random(*parameter.shape, seed=1000 * seed + number, dtype=parameter.dtype)
    optimizer.step()


def steps(optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for seed in range(first, last):
        step(optimizer, seed)


def leak(optimizer: GORP, parameter: nn.Parameter, space: Tensor, moved: Tensor) -> float:
    """Share of a movement that is in the space."""
    inside = space.t() @ moved if optimizer.layouts[parameter].free == "rows" else moved @ space
    assert moved.norm() > 0
    return float(inside.norm() / moved.norm())


def test_the_example_runs() -> None:
    assert doctest.testmod(module).attempted >= 9
    assert doctest.testmod(module).failed == 0


# --- steps ---


@pytest.mark.parametrize("rank", [None, 24])
@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (24, 24)])
def test_without_compression_and_history_it_is_adam(shape: tuple[int, int], rank: int | None) -> None:
    ours, theirs = zero(*shape), zero(*shape)
    one, other = GORP([ours], lr=0.01, rank=rank, scale=0.3), torch.optim.Adam([theirs], lr=0.01)
    for seed in range(25):
        step(one, seed), step(other, seed)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_unprojected_groups_take_plain_steps_at_any_shape() -> None:
    shapes = [(5,), (3, 4, 2), (), (6, 5)]
    for rule, plain in (("adam", torch.optim.Adam), ("sgd", lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9))):
        ours, theirs = [zero(*s) for s in shapes], [zero(*s) for s in shapes]
        one, other = GORP([{"params": ours, "projected": False}], lr=0.01, rule=rule), plain(theirs, lr=0.01)
        steps(one, 0, 15), steps(other, 0, 15)
        for left, right in zip(ours, theirs, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-7)
        assert one.spaces == {}
        one.end_task()


@every_shape
def test_the_best_compression_of_a_low_rank_gradient_loses_nothing(shape: tuple[int, int]) -> None:
    """Plain SGD with momentum, for any basis that spans the gradients."""
    left, right = random(shape[0], 3), random(3, shape[1], seed=1)
    ours, theirs = zero(*shape), zero(*shape)
    one, other = GORP([ours], lr=0.01, rule="sgd", rank=4, every=3), torch.optim.SGD([theirs], 0.01, momentum=0.9)
    for seed in range(10):
        ours.grad = theirs.grad = left @ random(3, 3, seed=seed) @ right
        one.step(), other.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@every_shape
def test_a_compressed_step_is_the_one_by_hand(shape: tuple[int, int]) -> None:
    """Two Adam steps in float64 with dense projectors, one refresh between them, scale and bias correction."""
    weight = zero(*shape, dtype=torch.float64)
    size = max(shape)
    space = orthonormal(size, 3, torch.float64)
    projector = torch.eye(size, dtype=torch.float64) - space @ space.t()
    optimizer = GORP([weight], lr=0.1, rank=4, every=1, scale=0.5, refresh="svd", spaces={weight: space})
    moments, expected, old = (torch.zeros(size, 4, dtype=torch.float64) for _ in range(2)), torch.zeros(shape), None
    first, second = moments
    for number in (1, 2):
        gradient = random(*shape, seed=number, dtype=torch.float64)
        tall = gradient if shape[0] >= shape[1] else gradient.t()
        basis = torch.linalg.svd(tall, full_matrices=False).Vh[:4].t()
        turn = torch.eye(4).double() if old is None else old.t() @ basis
        values = projector @ tall @ basis
        first = 0.9 * first @ turn + 0.1 * values
        second = 0.999 * second @ turn**2 + 0.001 * values**2
        update = first / (1 - 0.9**number) / ((second / (1 - 0.999**number)).sqrt() + 1e-8)
        moved = -0.1 * 0.5 * projector @ update @ basis.t()
        expected = expected + (moved if shape[0] >= shape[1] else moved.t())
        old = basis
        weight.grad = gradient
        optimizer.step()
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("refresh", ["randomised", "svd"])
def test_the_basis_is_found_anew_at_every_interval_and_only_then(refresh: Any) -> None:
    weight = zero(40, 24)
    optimizer = GORP([weight], rank=4, every=3, refresh=refresh)
    changed, basis = [], torch.zeros(24, 4)
    for seed in range(10):
        step(optimizer, seed)
        found = optimizer.state[weight]["basis"]
        changed.append(not torch.equal(found, basis))
        basis = found.clone()
    assert [number for number, new in enumerate(changed) if new] == [0, 3, 6, 9]


def test_moments_are_rotated_or_kept_at_a_refresh() -> None:
    found = {}
    for moments in ("rotate", "keep"):
        weight = zero(40, 24)
        optimizer = GORP([weight], rule="sgd", rank=4, every=2, moments=moments)  # type: ignore[arg-type]
        steps(optimizer, 0, 2)
        old, before = optimizer.state[weight]["basis"].clone(), optimizer.state[weight]["first"].clone()
        step(optimizer, 2)
        assert weight.grad is not None
        new = optimizer.state[weight]["basis"]
        expected = 0.9 * (before @ (old.t() @ new) if moments == "rotate" else before) + weight.grad @ new
        torch.testing.assert_close(optimizer.state[weight]["first"], expected, rtol=1e-4, atol=1e-5)
        found[moments] = weight.detach().clone()
    assert (found["rotate"] - found["keep"]).abs().max() > 1e-4


# --- protection ---


@every_rule
@pytest.mark.parametrize("shape", [*SHAPES, LORA])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_update_moves_into_the_space(rule: Any, shape: tuple[int, int], dtype: torch.dtype) -> None:
    """From zero, so that rounding of the weights hides nothing; over refreshes and over a whole task."""
    weight, rank = zero(*shape, dtype=dtype), None if shape == LORA else 4
    space = orthonormal(max(shape), 6, dtype)
    optimizer = GORP([weight], lr=0.01, rule=rule, rank=rank, every=3, spaces={weight: space})
    step(optimizer, 0)
    assert leak(optimizer, weight, space, weight.detach()) <= 1e-6
    steps(optimizer, 1, 20)
    assert leak(optimizer, weight, space, weight.detach()) <= 1e-6


@pytest.mark.parametrize("shape", [*SHAPES, LORA])
def test_protecting_gradients_alone_leaks_through_adams_division(shape: tuple[int, int]) -> None:
    leaks = {}
    for protect in ("update", "gradient", "none"):
        weight, rank = zero(*shape), None if shape == LORA else 4
        space = orthonormal(max(shape), 6)
        optimizer = GORP([weight], lr=0.01, rank=rank, every=3, protect=protect, spaces={weight: space})  # type: ignore[arg-type]
        steps(optimizer, 0, 10)
        leaks[protect] = leak(optimizer, weight, space, weight.detach())
        moments = optimizer.state[weight]["first"]
        tall = moments.t() if shape == LORA else moments
        assert (float((space.t() @ tall).norm() / tall.norm()) < 1e-6) == (protect != "none")
    assert leaks["update"] <= 1e-6 and leaks["gradient"] > 1e-3 and leaks["none"] > 0.1


def test_the_released_side_of_loras_a_freezes_it_when_all_rows_are_taken() -> None:
    weight = zero(*LORA)
    optimizer = GORP([weight], rank=None, side="rows", protect="gradient", spaces={weight: orthonormal(4, 4)})
    steps(optimizer, 0, 5)
    assert not weight.detach().any()
    assert optimizer.spaces[weight].shape == (4, 4)


@every_rule
@every_shape
def test_an_empty_history_changes_no_bit(rule: Any, shape: tuple[int, int]) -> None:
    weights = []
    for protect in ("update", "gradient", "none"):
        weight = zero(*shape)
        optimizer = GORP([weight], rule=rule, rank=4, every=3, protect=protect)  # type: ignore[arg-type]
        steps(optimizer, 0, 10)
        weights.append(weight.detach())
    assert weights[0].any() and all(torch.equal(weights[0], other) for other in weights[1:])


@every_rule
@pytest.mark.parametrize("shape", [(12, 10), (10, 12), LORA])
@pytest.mark.parametrize("protect", ["update", "gradient"])
def test_a_space_that_spans_everything_stops_the_matrix(
    rule: Any, shape: tuple[int, int], protect: Any, caplog: pytest.LogCaptureFixture
) -> None:
    weight, rank = zero(*shape), None if shape == LORA else 4
    optimizer = GORP([weight], rule=rule, rank=rank, every=2, energy=1.0, cap=1.0, protect=protect)
    for task in range(12):
        steps(optimizer, 10 * task, 10 * task + 5)
        optimizer.end_task()
    assert optimizer.spaces[weight].shape == (max(shape),) * 2
    assert "does not move any more" in caplog.text
    before = weight.detach().clone()
    steps(optimizer, 200, 205)
    assert torch.equal(weight, before)
    optimizer.end_task()


def test_harm_to_an_old_task_falls_with_the_square_of_the_rate() -> None:
    """A linear regression whose old gradients are inside the space: no first-order change of its loss."""
    inputs, other = random(20, 16, dtype=torch.float64), random(20, 16, seed=1, dtype=torch.float64)
    start = random(24, 16, seed=2, dtype=torch.float64)
    space = orthonormal(24, 3, torch.float64)
    wanted = inputs @ start.t() + random(20, 3, seed=3, dtype=torch.float64) @ space.t()  # residuals inside the space

    def old_loss(weight: Tensor) -> Tensor:
        return (inputs @ weight.t() - wanted).square().mean()

    def changes(protect: Any) -> list[float]:
        found = []
        for rate in (2e-3, 1e-3):
            weight = nn.Parameter(start.clone())
            optimizer = GORP([weight], lr=rate, rank=4, every=2, protect=protect, spaces={weight: space})
            for _ in range(3):
                optimizer.zero_grad()
                (other @ weight.t() - 1).square().sum().backward()
                optimizer.step()
            found.append(float((old_loss(weight.detach()) - old_loss(start)).abs()))
        return found

    far, near = changes("update")
    assert far / near == pytest.approx(4, rel=0.05)
    far, near = changes("none")
    assert far / near < 3


# --- tasks ---


@pytest.mark.parametrize("shape", [*SHAPES, LORA])
def test_the_space_recovers_planted_directions(shape: tuple[int, int]) -> None:
    """Gradients of each task lie in three directions of the free side, of which the second shares one."""
    weight, rank = zero(*shape), None if shape == LORA else 4
    optimizer = GORP([weight], rank=rank, every=4, energy=0.9999, cap=1.0)
    planted, least = orthonormal(max(shape), 5), min(shape)
    for first, expected in ((0, 3), (2, 5), (1, 5)):
        scale = random(3, least, seed=first)
        for seed in range(10):
            tall = planted[:, first : first + 3] @ (scale + 0.1 * random(3, least, seed=10 * first + seed))
            weight.grad = (tall if optimizer.layouts[weight].free == "rows" else tall.t()).contiguous()
            optimizer.step()
        optimizer.end_task()
        space = optimizer.spaces[weight]
        assert space.shape[1] == expected
        assert (space - planted @ (planted.t() @ space)).norm() < 1e-3
        assert (space.t() @ space - torch.eye(expected)).abs().max() < 1e-6


def test_a_repeated_task_adds_only_where_its_summary_is_protected() -> None:
    added = {}
    for summary, protect in (("mean", "update"), ("first", "gradient")):
        weight = zero(40, 24)
        optimizer = GORP([weight], rank=4, protect=protect, summary=summary, cap=1.0)  # type: ignore[arg-type]
        counts = []
        for _ in range(2):
            for seed in range(10):
                weight.grad = random(40, 24) + 1e-3 * random(40, 24, seed=seed)
                optimizer.step()
            optimizer.end_task()
            counts.append(optimizer.spaces[weight].shape[1])
        added[summary] = counts[1] - counts[0]
    assert added["mean"] == 0 < added["first"]


def test_the_mean_of_a_task_is_that_of_its_compressed_gradients() -> None:
    weight = zero(40, 24)
    optimizer = GORP([weight], rank=4, every=100, spaces={weight: orthonormal(40, 5)})
    gradients = []
    for seed in range(7):
        step(optimizer, seed)
        assert weight.grad is not None
        gradients.append(weight.grad)
    expected = torch.stack(gradients).mean(0) @ optimizer.state[weight]["basis"]
    torch.testing.assert_close(optimizer.state[weight]["mean"], expected, rtol=1e-4, atol=1e-6)


def test_a_new_task_starts_as_a_new_optimiser_with_the_spaces() -> None:
    one = zero(40, 24), zero(*LORA), zero(6)
    groups = [{"params": [one[0]], "rank": 4}, {"params": [one[1]]}, {"params": [one[2]], "projected": False}]
    first = GORP(groups, rank=None, every=3)
    steps(first, 0, 5)
    first.end_task()
    other = [nn.Parameter(p.detach().clone()) for p in one]
    spaces = {new: first.spaces[old] for new, old in zip(other, one, strict=True) if old in first.spaces}
    groups = [{"params": [other[0]], "rank": 4}, {"params": [other[1]]}, {"params": [other[2]], "projected": False}]
    second = GORP(groups, rank=None, every=3, spaces=spaces)
    steps(first, 10, 15), steps(second, 10, 15)
    assert len(spaces) == 2 and all(torch.equal(left, right) for left, right in zip(one, other, strict=True))


def test_a_task_without_a_gradient_is_told_and_changes_nothing() -> None:
    with_one, without = zero(40, 24), zero(24, 40)
    optimizer = GORP([{"params": [with_one, without], "names": ["up", "down"]}], rank=4)
    with_one.grad = random(40, 24)
    optimizer.step()
    with pytest.raises(ValueError, match=r"parameter 1 'down' of group 0, \[24, 40\], has had no finite gradient"):
        optimizer.end_task()
    assert optimizer.spaces[with_one].shape == (40, 0) and optimizer.state[with_one]["step"] == 1


# --- gradients that cannot be used ---


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


# --- state ---


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


# --- memory ---


@every_shape
def test_a_step_makes_no_tensor_as_large_as_the_matrix(shape: tuple[int, int]) -> None:
    shape = (shape[0] * 4, shape[1] * 4)
    weight = zero(*shape)
    optimizer = GORP([weight], rank=2, every=2, spaces={weight: orthonormal(max(shape), 5)})
    weight.grad = random(*shape)
    seen = Largest(ignored=(weight, weight.grad))
    with seen:
        for _ in range(4):
            optimizer.step()
        optimizer.end_task()
    assert 0 < seen.elements <= max(shape) * 10


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
