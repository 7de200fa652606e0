"""GORP's steps and tasks on whole matrices."""

from __future__ import annotations

import doctest
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods.gorp import optimizer as module
from methods.gorp.optimizer import GORP
from tests.methods.gorp.test_gorp_space import Largest
from tests.support.gorp_steps import LORA, SHAPES, every_rule, every_shape, leak, orthonormal, random, step, steps, zero


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
