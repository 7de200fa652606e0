"""Sketches: the errors that theory promises, and the rankings and trees that survive them.

The printed figures are root mean squares of relative errors for vectors of 6144 elements.
"""

from __future__ import annotations

import math

import numpy
import pytest
import torch
from torch import Tensor

from methods.treelora import sketch as module
from methods.treelora.sketch import SketchConfig, cauchy_entries, hashed
from methods.treelora.tree.tree import TaskTree
from tests.methods.treelora.test_sketch import EXACT, random_vectors, whole

SIZE = 6144


def rms(errors: Tensor) -> float:
    return float(errors.square().mean().sqrt())


def test_cauchy_tails_are_capped_at_the_documented_quantile(monkeypatch: pytest.MonkeyPatch) -> None:
    free = cauchy_entries(torch.arange(10_000), 8, 0, 0)
    monkeypatch.setattr(module, "TAIL", 1e-3)
    capped = cauchy_entries(torch.arange(10_000), 8, 0, 0)
    largest = math.tan(math.pi * (0.5 - 1e-3))
    torch.testing.assert_close(capped, free.clamp(-largest, largest))
    assert (capped != free).double().mean() == pytest.approx(2e-3, rel=0.3)


@pytest.mark.parametrize(("width", "printed"), [(64, 0.126), (256, 0.070), (1024, 0.032)])
def test_inner_products_are_unbiased_with_the_printed_error(width: int, printed: float) -> None:
    seeds = 200
    x, y = (v / v.norm() for v in random_vectors([SIZE, SIZE], 4))
    estimates, truth = torch.empty(seeds), x @ y
    for seed in range(seeds):
        sketch = whole([SIZE], SketchConfig(width=width), seed)
        estimates[seed] = (sketch([x]).values * sketch([y]).values).sum()
    errors = estimates - truth
    assert abs(errors.mean()) < 4 * printed / seeds**0.5
    assert printed / 1.3 < rms(errors) < 1.3 * printed


@pytest.mark.parametrize("width", [64, 256, 1024])
def test_l2_norms_have_the_error_of_the_formula(width: int) -> None:
    x = random_vectors([SIZE], 7)[0]
    norms = [whole([SIZE], SketchConfig(width=width), seed)([x]).values.norm() for seed in range(200)]
    formula = (2 * width) ** -0.5
    assert formula / 1.3 < rms(torch.stack(norms) / x.norm() - 1) < 1.3 * formula


@pytest.fixture(scope="module")
def projections() -> Tensor:
    """Cauchy columns [seeds, vectors, columns] of Gaussian, heavy-tailed and sparse vectors of L1 norm one."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, SIZE, generator=generator)
    x[8:16] /= torch.randn(8, SIZE, 2, generator=generator).norm(dim=2) / 2**0.5  # Student's t, two degrees
    x[16:] *= torch.rand(8, SIZE, generator=generator) < 0.01
    x /= x.abs().sum(dim=1, keepdim=True)
    sketches = [whole([SIZE], SketchConfig(width=1, cauchy=1024), seed) for seed in range(3)]
    return torch.stack([torch.stack([sketch([vector]).values[0, 1:] for vector in x]) for sketch in sketches])


@pytest.mark.parametrize("kind", [slice(0, 8), slice(8, 16), slice(16, 24)])
@pytest.mark.parametrize(("columns", "low", "high"), [(64, 0.17, 0.19), (256, 0.075, 0.10), (1024, 0.037, 0.052)])
def test_l1_norms_have_the_printed_error(
    projections: Tensor, kind: slice, columns: int, low: float, high: float
) -> None:
    groups = projections[:, kind].unflatten(2, (-1, columns))
    assert low / 1.3 < rms(groups.abs().median(dim=3).values - 1) < 1.3 * high


def test_ranking_by_estimated_l1_is_the_true_ranking_when_gaps_are_large() -> None:
    """Distances grow by a factor of 1.5, three times the error of 256 columns on either side."""
    query, *steps = random_vectors([SIZE] * 7, 9)
    order = [3, 0, 5, 1, 4, 2]
    tasks = [query + 1.5**rank * step for rank, step in zip(order, steps, strict=True)]
    sketch = whole([SIZE], SketchConfig(width=1, cauchy=256))
    estimates = [(sketch([t]).values - sketch([query]).values)[0, 1:].abs().median() for t in tasks]
    assert numpy.argsort(estimates).tolist() == numpy.argsort(order).tolist()
    assert estimates == pytest.approx([float((t - query).abs().sum()) for t in tasks], rel=0.25)


def test_a_planted_hierarchy_gives_the_same_tree_from_sketches_as_from_whole_vectors() -> None:
    """Two families of two kinds of two tasks, in mixed order; the widths of the gaps are 1, 0.5 and 0.2."""
    sizes = [SIZE, 4000]
    parts = [random_vectors(sizes, 20 + number) for number in range(14)]
    family, kind, own = parts[:2], parts[2:6], parts[6:]
    tasks = [
        [family[t // 4][i] + 0.5 * kind[t // 2][i] + 0.2 * own[t][i] for i in range(2)]
        for t in (5, 0, 2, 7, 4, 1, 3, 6)
    ]
    trees = []
    for config in (SketchConfig(width=256), EXACT):
        sketch = whole(sizes, config)
        trees.append(TaskTree.build(numpy.stack([sketch(task).values.numpy() for task in tasks])))
    groups = [{tuple(tree.members(node)) for node in range(len(tree.parent))} for tree in trees]
    assert groups[0] == groups[1]
    assert {(1, 2, 5, 6), (0, 3, 4, 7), (1, 5), (2, 6), (0, 4), (3, 7)} <= groups[0]


@pytest.mark.parametrize("first", [0, 10**12])
def test_buckets_and_signs_are_balanced_and_independent(first: int) -> None:
    """A chi-squared statistic of the 2 x 64 table has mean 127 and standard deviation 16."""
    count, width = 50_000, 64
    ((_, bucket, sign),) = hashed([(0, first, count)], width, 0)
    cells = torch.bincount(2 * bucket + sign, minlength=2 * width).double()
    expected = count / (2 * width)
    assert 127 - 5 * 16 < ((cells - expected) ** 2 / expected).sum() < 127 + 5 * 16


@pytest.mark.parametrize(("other_seed", "level"), [(0, 1), (0, 2), (1, 0), (1, 1)])
def test_levels_and_seeds_hash_independently(other_seed: int, level: int) -> None:
    """Two independent hashes agree on one bucket in ``width`` and on half of the signs."""
    count, width = 20_000, 32
    (_, bucket, sign), (_, other_bucket, other_sign) = (
        hashed([(one_level, 0, count)], width, seed)[0] for one_level, seed in ((0, 0), (level, other_seed))
    )
    assert abs((bucket == other_bucket).double().mean() - 1 / width) < 5 * (1 / width / count) ** 0.5
    assert abs((sign == other_sign).double().mean() - 0.5) < 5 * 0.5 / count**0.5
    entries, others = (
        cauchy_entries(torch.arange(count), 1, 0, 0),
        cauchy_entries(torch.arange(count), 1, other_seed, level),
    )
    assert abs(((entries > 0) == (others > 0)).double().mean() - 0.5) < 5 * 0.5 / count**0.5
