"""The protected space: which directions a task adds, and what protection takes away."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from methods.gorp.space import check, extend, protect

SIZE = 24
EMPTY = torch.zeros(SIZE, 0)


class Largest(TorchDispatchMode):
    """The number of elements of the largest memory that any operation inside returns, except that of ``ignored``."""

    def __init__(self, ignored: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self.elements = 0
        self.ignored = {tensor.untyped_storage().data_ptr() for tensor in ignored}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for value in made if isinstance(made, tuple | list) else [made]:
            if isinstance(value, Tensor) and value.untyped_storage().data_ptr() not in self.ignored:
                self.elements = max(self.elements, value.numel())
        return made


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def orthonormal(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(random(rows, columns, seed=seed)).Q


def planted(values: list[float], seed: int = 0) -> tuple[Tensor, Tensor]:
    """A summary with these singular values, and its left singular vectors."""
    left, right = orthonormal(SIZE, len(values), seed), orthonormal(8, len(values), seed + 100)
    return left * torch.tensor(values) @ right.t(), left


def outside(space: Tensor, vectors: Tensor) -> float:
    return float((vectors - space @ (space.t() @ vectors)).norm())


def share(space: Tensor, summary: Tensor) -> float:
    """Energy of the summary inside the space."""
    return float((space.t() @ summary).norm() ** 2 / summary.norm() ** 2)


def test_the_space_stays_orthonormal_and_keeps_what_it_had() -> None:
    space = EMPTY
    for task in range(15):
        longer = extend(space, random(SIZE, 2, seed=task), 0.9, 1.0)
        assert torch.equal(longer[:, : space.shape[1]], space)
        space = longer
        assert (space.t() @ space - torch.eye(space.shape[1])).abs().max() < 1e-6
    assert space.shape[1] > SIZE / 2


def test_planted_directions_are_found() -> None:
    summary, left = planted([3.0, 2.0, 1.0, 0.1])
    space = extend(EMPTY, summary, 0.9, 1.0)
    assert space.shape[1] == 2, "13 of 14.01 is above 0.9, 9 of 14.01 is not"
    assert outside(space, left[:, :2]) < 1e-5
    new, vectors = planted([1.0, 0.5], seed=7)
    longer = extend(space, new, 1.0, 1.0)
    assert longer.shape[1] == 4 and outside(longer, vectors) < 1e-4


@pytest.mark.parametrize("energy", [0.3, 0.6, 0.9, 0.99, 0.9999])
@pytest.mark.parametrize("known", [0, 3])
def test_the_fewest_directions_that_reach_the_energy_are_added(energy: float, known: int) -> None:
    summary = random(SIZE, 8, seed=5)
    old = orthonormal(SIZE, known, seed=6)
    space = extend(old, summary, energy, 1.0)
    assert space.shape[1] > known
    assert share(space, summary) >= energy - 1e-6
    assert share(space[:, :-1], summary) < energy


def test_more_energy_never_takes_fewer_directions() -> None:
    counts = [extend(EMPTY, random(SIZE, 8), energy, 1.0).shape[1] for energy in (0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0)]
    assert counts == sorted(counts) and counts[0] == 1 and counts[-1] == 8


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_full_energy_takes_the_numerical_rank(rank: int) -> None:
    summary = random(SIZE, rank) @ random(rank, 8, seed=1)
    assert extend(EMPTY, summary, 1.0, 1.0).shape[1] == rank
    assert extend(extend(EMPTY, summary, 1.0, 1.0), summary, 1.0, 1.0).shape[1] == rank


def test_the_same_summary_again_adds_nothing() -> None:
    summary = random(SIZE, 8)
    space = extend(EMPTY, summary, 0.9, 1.0)
    assert torch.equal(extend(space, summary, 0.9, 1.0), space)


def test_a_protected_summary_always_adds() -> None:
    """The paper's first moment has nothing inside the space, so that nothing counts as explained."""
    space = extend(EMPTY, random(SIZE, 8), 0.9, 1.0)
    assert extend(space, protect(random(SIZE, 8), space), 0.9, 1.0).shape[1] > space.shape[1]


def test_the_released_count_is_one_short_and_may_be_none() -> None:
    dominated, _ = planted([10.0, 1.0])
    assert extend(EMPTY, dominated, 0.9, 1.0, "below").shape[1] == 0
    assert extend(EMPTY, dominated, 0.9, 1.0, "reach").shape[1] == 1
    spread, _ = planted([2.0, 2.0, 2.0, 2.0])
    assert [extend(EMPTY, spread, 0.9, 1.0, rule).shape[1] for rule in ("below", "reach")] == [3, 4]


def test_the_released_count_ignores_what_is_explained() -> None:
    summary, left = planted([10.0, 1.0, 1.0])
    old = left[:, :1].contiguous()
    assert extend(old, summary, 0.9, 1.0).shape[1] == 1
    assert extend(old, summary, 0.9, 1.0, "below").shape[1] == 2


def test_a_zero_summary_adds_nothing() -> None:
    for selection in ("reach", "below"):
        assert extend(EMPTY, torch.zeros(SIZE, 4), 0.9, 1.0, selection).shape == (SIZE, 0)


def test_the_cap_limits_the_space_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    space = extend(EMPTY, random(SIZE, 8), 1.0, 0.25)
    assert space.shape[1] == 6
    assert "full at 6; new directions left out: 2" in caplog.text
    assert torch.equal(extend(space, random(SIZE, 8, seed=1), 0.9, 0.25), space)
    assert torch.equal(extend(space, random(SIZE, 8, seed=1), 0.9, 0.1), space), "a lower cap drops nothing"


@pytest.mark.parametrize(("cap", "expected"), [(0.29, 29), (0.57, 57), (1.0, 100)])
def test_the_cap_is_not_rounded_down_twice(cap: float, expected: int) -> None:
    assert extend(torch.zeros(100, 0), random(100, 100), 1.0, cap).shape[1] == expected


def test_a_space_that_spans_everything_is_told(caplog: pytest.LogCaptureFixture) -> None:
    extend(EMPTY, random(SIZE, SIZE - 1), 1.0, 1.0)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        extend(EMPTY, random(SIZE, SIZE), 1.0, 1.0)
    assert "spans all 24 dimensions" in caplog.text


@pytest.mark.parametrize("side", ["rows", "columns"])
def test_protection_is_the_dense_projector_and_idempotent(side: str) -> None:
    space = orthonormal(SIZE, 5)
    projector = torch.eye(SIZE) - space @ space.t()
    values = random(SIZE, 7) if side == "rows" else random(7, SIZE)
    found = protect(values, space, side)
    torch.testing.assert_close(found, projector @ values if side == "rows" else values @ projector, atol=1e-6, rtol=0)
    left = space.t() @ found if side == "rows" else found @ space
    assert left.norm() <= 1e-6 * values.norm()
    torch.testing.assert_close(protect(found, space, side), found, atol=1e-6, rtol=0)
    assert (found - values).norm() > 0.1


def test_an_empty_space_changes_no_bit() -> None:
    values = random(SIZE, 7)
    assert protect(values, EMPTY) is values


def test_protection_never_makes_a_square() -> None:
    """What is counted are the elements of every tensor that an operation returns."""
    largest = Largest()
    space = orthonormal(512, 4)
    values = random(512, 3)
    with largest:
        protect(values, space)
        extend(space, values, 0.9, 0.5)
    assert 512 * 3 <= largest.elements <= 512 * 7


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (torch.zeros(5, 2), r"\[24, k\]"),
        (torch.zeros(SIZE), r"\[24, k\]"),
        (torch.zeros(SIZE, SIZE + 1), r"\[24, k\]"),
        (torch.ones(SIZE, 2), "orthonormal"),
        (torch.full((SIZE, 1), float("nan")), "orthonormal"),
        (orthonormal(SIZE, 3) * 1.001, "orthonormal"),
    ],
)
def test_a_space_that_is_none_is_rejected(space: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(space, SIZE, "w")
