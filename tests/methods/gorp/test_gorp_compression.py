"""One-sided compression: bases, sides and the way back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from methods.gorp.compression import Compression, rotate
from methods.gorp.rows import Rows

OPTIONS = {"projected": True, "rank": 4, "side": "free", "refresh": "randomised"}
SHAPES = [(40, 24), (24, 40), (32, 32)]
every_shape = pytest.mark.parametrize("shape", SHAPES)


def compression(shape: tuple[int, int], number: int = 0, **options: object) -> Compression:
    return Compression.of({**OPTIONS, **options}, nn.Parameter(torch.zeros(shape)), number, "w")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def falling(shape: tuple[int, int], fall: float = 2.0, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A matrix whose singular values fall by ``fall`` each, and its singular vectors."""
    least = min(shape)
    left, right = (torch.linalg.qr(random(size, least, seed=seed + size).double()).Q for size in shape)
    values = fall ** -torch.arange(least, dtype=torch.float64)
    return (left * values @ right.t()).float(), left, right


def found(own: Compression, gradient: Tensor, basis: Tensor | None = None, refreshes: int = 0) -> tuple[Tensor, Tensor]:
    rank = own.rank
    assert rank is not None
    basis = torch.zeros(min(gradient.shape), rank) if basis is None else basis
    return own.refreshed(gradient, own.sketch(gradient, basis, refreshes), rank)


def distance(vectors: Tensor, basis: Tensor) -> float:
    """Sine of the largest angle between two spaces of equal dimension."""
    basis = basis.double()
    return float(torch.linalg.matrix_norm(vectors - basis @ (basis.t() @ vectors), 2))


@every_shape
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fall", [2.0, 3.0])
def test_a_random_sketch_finds_the_leading_singular_vectors(shape: tuple[int, int], seed: int, fall: float) -> None:
    gradient, left, right = falling(shape, fall, seed)
    own = compression(shape, number=seed)
    basis, values = found(own, gradient)
    assert distance((left if own.left else right)[:, :4], basis) < 1e-3
    torch.testing.assert_close(values, own.compress(gradient, basis), atol=1e-6, rtol=0)
    exact, exact_values = own.decomposed(gradient, 4)
    assert distance(exact.double(), basis) < 1e-3
    torch.testing.assert_close(exact_values.norm(dim=0), values.norm(dim=0), atol=1e-4, rtol=0)


@every_shape
@pytest.mark.parametrize("rank", [0, 1, 3, 8])
def test_bases_are_orthonormal_whatever_the_gradients_rank(shape: tuple[int, int], rank: int) -> None:
    gradient = random(shape[0], rank) @ random(rank, shape[1])
    basis, _ = found(compression(shape), gradient)
    assert basis.shape == (min(shape), 4)
    assert (basis.t() @ basis - torch.eye(4)).abs().max() < 1e-6
    again, _ = found(compression(shape), gradient, basis, 1)
    assert (again.t() @ again - torch.eye(4)).abs().max() < 1e-6


def test_a_warm_start_comes_nearer_where_singular_values_fall_slowly() -> None:
    shape = (64, 48)
    gradient, _, right = falling(shape, 1.05)
    own = compression(shape)
    basis, _ = found(own, gradient)
    cold = distance(right[:, :4], basis)
    for refresh in range(1, 12):
        basis, _ = found(own, gradient, basis, refresh)
    assert distance(right[:, :4], basis) < cold / 10


def test_random_directions_differ_by_parameter_and_refresh_and_repeat() -> None:
    shape, basis = (40, 24), torch.linalg.qr(random(24, 4)).Q
    gradient = random(40, 24)
    first = compression(shape).sketch(gradient, basis, 1)
    assert torch.equal(first, compression(shape).sketch(gradient, basis, 1))
    others = [compression(shape, 1).sketch(gradient, basis, 1), compression(shape).sketch(gradient, basis, 2)]
    for other in others:
        assert torch.equal(first[:, :4], other[:, :4]), "the basis there is"
        assert not torch.isclose(first[:, 4:], other[:, 4:]).any()


@every_shape
def test_back_and_forth_is_an_orthogonal_projector(shape: tuple[int, int]) -> None:
    own, gradient = compression(shape), random(*shape)
    basis, _ = found(own, gradient)

    def project(matrix: Tensor) -> Tensor:
        result = torch.zeros(shape)
        own.add(result, own.compress(matrix, basis), basis, 1.0)
        return result

    once, other = project(gradient), random(*shape, seed=1)
    torch.testing.assert_close(project(once), once, atol=1e-5, rtol=0)
    torch.testing.assert_close((once * other).sum(), (gradient * project(other)).sum(), atol=1e-3, rtol=1e-4)
    assert 0.1 < once.norm() / gradient.norm() < 0.9


@pytest.mark.parametrize(
    ("shape", "options", "free", "size"),
    [
        ((40, 24), {}, "rows", 40),
        ((24, 40), {}, "columns", 40),
        ((32, 32), {}, "rows", 32),
        ((40, 24), {"rank": None}, "rows", 40),
        ((24, 40), {"rank": None}, "columns", 40),
        ((24, 40), {"rank": 24}, "columns", 40),
        ((24, 40), {"rank": None, "side": "rows"}, "rows", 24),
        ((40, 24), {"side": "rows"}, "rows", 40),
    ],
)
def test_the_space_lives_on_the_side_that_is_not_compressed(
    shape: tuple[int, int], options: dict[str, object], free: str, size: int
) -> None:
    own = compression(shape, **options)
    assert (own.free, own.size) == (free, size)
    assert own.left == (shape == (24, 40) and not options)
    space = torch.linalg.qr(random(size, 5)).Q
    gradient = random(*shape)
    basis = torch.zeros(0) if own.rank is None else found(own, gradient)[0]
    values = gradient if own.rank is None else own.compress(gradient, basis)
    step = torch.zeros(shape)
    own.add(step, own.protected(values, space), None if own.rank is None else basis, 1.0)
    leak = space.t() @ step if free == "rows" else step @ space
    assert leak.abs().max() < 1e-5 < step.norm()
    assert own.carriers(values).shape[0] == size


@every_shape
def test_protection_commutes_with_a_change_of_basis(shape: tuple[int, int]) -> None:
    own = compression(shape)
    space = torch.linalg.qr(random(own.size, 5)).Q
    old, new = (found(own, random(*shape, seed=seed))[0] for seed in (1, 2))
    moments = own.compress(random(*shape), old)
    overlap = own.overlap(old, new)
    torch.testing.assert_close(
        own.protected(moments @ overlap, space), own.protected(moments, space) @ overlap, atol=1e-5, rtol=0
    )


def test_rotated_moments_are_those_in_the_new_basis() -> None:
    """Where both bases span the same, the first moment turns exactly and second moments mix by squares."""
    own, old = compression((40, 24)), torch.linalg.qr(random(24, 4)).Q
    turn = torch.linalg.qr(random(4, 4, seed=3)).Q
    gradient = random(40, 24)
    second = random(40, 4, seed=4).square()
    state = {"first": gradient @ old, "mean": 2 * gradient @ old, "second": second.clone()}
    rotate(state, own.overlap(old, old @ turn))
    torch.testing.assert_close(state["first"], gradient @ (old @ turn), atol=1e-5, rtol=0)
    torch.testing.assert_close(state["mean"], 2 * state["first"], atol=1e-5, rtol=0)
    expected = torch.einsum("mi,ij->mj", second, turn**2)
    torch.testing.assert_close(state["second"], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(state["second"].sum(1), second.sum(1), atol=1e-4, rtol=0)


def test_a_full_space_leaves_exactly_nothing() -> None:
    own = compression((40, 24))
    assert not own.protected(random(40, 4), torch.linalg.qr(random(40, 40)).Q).any()


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((4,), {"rank": None}, "not a matrix"),
        ((4, 4, 4), {"rank": None}, "not a matrix"),
        ((24, 40), {"rank": 25}, "rank 25 of w is above 24"),
        ((24, 40), {"side": "rows"}, "rank=None"),
    ],
)
def test_what_does_not_suit_a_shape_is_rejected(
    shape: tuple[int, ...], options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        compression(shape, **options)  # type: ignore[arg-type]


def test_whole_rows_exchange_nothing() -> None:
    rows, values = Rows.of(nn.Parameter(torch.zeros(5, 3))), random(5, 3)
    assert (rows.first, rows.count, rows.group) == (0, 5, None)
    assert rows.total(values) is values and rows.whole(values) is values and rows.own(values) is values
