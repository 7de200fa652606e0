"""Inner products and fits of low-rank directions, against the dense matrices that they stand for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from methods.sdlora.gram import Fit, fit, grown, normalisers, products, squares

PROJECTIONS, INPUTS, OUTPUTS = 3, 12, 10
RANKS = [4, 3, 2]
Pair = tuple[Tensor, Tensor]


def pair(rank: int, seed: int) -> Pair:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(PROJECTIONS, rank, INPUTS, generator=generator, dtype=torch.float64)
    return a, torch.randn(PROJECTIONS, OUTPUTS, rank, generator=generator, dtype=torch.float64)


def dense(pairs: list[Pair]) -> Tensor:
    """Flat products [Q, K, outputs inputs]."""
    return torch.stack([(b @ a).flatten(1) for a, b in pairs], 1)


def fitted(old: list[Pair], new: Pair, joint: bool) -> Fit:
    """The fit of ``new`` by ``old``, whose Gram matrix grows pair by pair."""
    gram = torch.zeros(PROJECTIONS, 0, 0, dtype=torch.float64)
    for number, one in enumerate(old):
        gram = grown(gram, crossed(old[:number], one), squares(*one))
    return fit(gram, crossed(old, new), squares(*new), joint)


def crossed(old: list[Pair], new: Pair) -> Tensor:
    if not old:
        return torch.zeros(PROJECTIONS, 0, dtype=torch.float64)
    stored = torch.cat([a for a, _ in old], 1), torch.cat([b for _, b in old], 2)
    return products(*stored, [a.shape[1] for a, _ in old], *new)


OLD = [pair(rank, seed) for seed, rank in enumerate(RANKS)]
NEW = pair(4, 9)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-12) -> bool:
    return found.shape == expected.shape and bool(((found - expected).norm() <= tolerance * expected.norm()).all())


# --- products ---


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_squared_norm_is_that_of_the_product_in_double_precision(dtype: torch.dtype) -> None:
    a, b = NEW[0].to(dtype), NEW[1].to(dtype)
    assert squares(a, b).dtype == torch.float64
    assert close(squares(a, b), (b.double() @ a.double()).square().sum((1, 2)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_inner_products_are_those_of_the_dense_matrices(dtype: torch.dtype) -> None:
    old, new = [(a.to(dtype), b.to(dtype)) for a, b in OLD], (NEW[0].to(dtype), NEW[1].to(dtype))
    found, matrices = crossed(old, new), dense([(a.double(), b.double()) for a, b in [*old, new]])
    assert found.dtype == torch.float64
    assert close(found, (matrices[:, :-1] @ matrices[:, -1:].mT)[..., 0])


def test_the_three_normalisers() -> None:
    (a, b), lengths = NEW, dense([NEW])[:, 0].norm(dim=1)
    together = squares(a, b).sum()
    assert close(normalisers("product_fro", a, b, together), lengths)
    assert close(normalisers("joint", a, b, together), dense([NEW]).norm().expand(PROJECTIONS))
    factors = torch.tensor([float(x.norm() * y.norm()) for x, y in zip(a, b, strict=True)], dtype=torch.float64)
    assert close(normalisers("factor_fro", a, b, together), factors)
    assert bool((factors > lengths).all())


@pytest.mark.parametrize("kind", ["joint", "product_fro", "factor_fro"])
def test_a_direction_of_nothing_is_divided_by_something(kind: str) -> None:
    a, b = NEW[0], torch.zeros_like(NEW[1])
    assert bool((normalisers(kind, a, b, squares(a, b).sum()) == 1e-12).all())


# --- fits ---


def flat(pairs: list[Pair], joint: bool) -> Tensor:
    """What a fit looks at: [1 or Q, K, numbers]."""
    matrices = dense(pairs)
    return matrices.transpose(0, 1).flatten(1)[None] if joint else matrices


@pytest.mark.parametrize("joint", [True, False])
def test_a_fit_is_the_dense_least_squares(joint: bool) -> None:
    found, old, new = fitted(OLD, NEW, joint), flat(OLD, joint), flat([NEW], joint)[:, 0]
    expected = torch.linalg.lstsq(old.mT, new[..., None]).solution[..., 0]
    left = new - (expected[:, None] @ old)[:, 0]
    assert close(found.coefficients, expected, 1e-10)
    assert close(found.residual, left.square().sum(1), 1e-10)
    assert close(found.square, new.square().sum(1))


@pytest.mark.parametrize("joint", [True, False])
def test_what_is_left_is_orthogonal_to_every_old_direction(joint: bool) -> None:
    old, new = flat(OLD, joint), flat([NEW], joint)[:, 0]
    left = new - (fitted(OLD, NEW, joint).coefficients[:, None] @ old)[:, 0]
    cosines = (old @ left[..., None])[..., 0] / old.norm(dim=2) / left.norm(dim=1, keepdim=True)
    assert float(cosines.abs().max()) < 1e-10


@pytest.mark.parametrize("joint", [True, False])
def test_more_old_directions_leave_less(joint: bool) -> None:
    residuals = torch.stack([fitted(OLD[:count], NEW, joint).residual for count in range(4)])
    assert bool((residuals.diff(dim=0) < -1e-6).all())
    assert close(residuals[0], flat([NEW], joint)[:, 0].square().sum(1)), "none takes nothing away"


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("scale", [1.0, -3.0, 1e-5], ids=str)
def test_a_repeated_direction_changes_no_residual(joint: bool, scale: float) -> None:
    once = fitted(OLD, NEW, joint)
    a, b = OLD[1]
    again = fitted([*OLD, (a, scale * b)], NEW, joint)
    assert bool(again.coefficients.isfinite().all())
    assert close(again.residual, once.residual, 1e-8)
    split = again.coefficients[:, 1] + scale * again.coefficients[:, 3]
    assert close(split, once.coefficients[:, 1], 1e-6), "both together give what one gave"


def test_a_direction_that_two_others_make_up_changes_no_residual() -> None:
    a, b = OLD[0]
    other = torch.randn(b.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    old = [(a, b), (a, other), (a, 2 * b - 3 * other)]
    assert close(fitted(old, NEW, True).residual, fitted(old[:2], NEW, True).residual, 1e-8)


def test_a_direction_of_nothing_gets_nothing() -> None:
    a, b = OLD[0]
    found = fitted([*OLD, (a, 0 * b)], NEW, True)
    assert found.coefficients[0, -1] == 0
    assert close(found.residual, fitted(OLD, NEW, True).residual, 1e-10)


@pytest.mark.parametrize("joint", [True, False])
def test_a_combination_is_found_exactly(joint: bool) -> None:
    a = OLD[0][0]
    old = [(a, pair(4, seed)[1]) for seed in (1, 2, 3)]
    weights = torch.tensor([0.5, -2.0, 1.5], dtype=torch.float64)
    new = a, sum((w * b for w, (_, b) in zip(weights, old, strict=True)), torch.zeros(()))
    found = fitted(old, new, joint)
    assert close(found.coefficients, weights.expand_as(found.coefficients), 1e-10)
    assert float(found.measured("relative").max()) < 1e-12


def test_the_three_measures_of_a_residual() -> None:
    found = fitted(OLD, NEW, False)
    assert torch.equal(found.measured("fro_sq"), found.residual)
    assert close(found.measured("fro").square(), found.residual)
    assert close(found.measured("relative") * squares(*NEW), found.residual)
    assert bool((found.measured("relative") < 1).all())
