"""Splits follow their definitions, many groups at once as each alone, and find planted clusters."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy
import pytest
from numpy.typing import NDArray

from methods.treelora.tree.split import SplitName
from methods.treelora.tree.tree import TaskTree
from tests.support.trees import (
    SPLITS,
    children,
    clusters,
    depth_of,
    every_split,
    inner_nodes,
    random_sketches,
)

MEDIANS = SPLITS[1:]


def reference_vector(points: NDArray, split: SplitName) -> tuple[NDArray, float | None]:
    """What a rule fits to one group, in plain numpy and double precision."""
    mean = points.mean(axis=0)
    far = points[numpy.linalg.norm(points - mean, axis=1).argmax()]
    if split == "pca":
        vector = far - mean
        for _ in range(16):
            vector = (points - mean).T @ ((points - mean) @ vector)
            vector /= numpy.linalg.norm(vector)
        return vector, None
    if split != "two_means":
        return mean, None
    first, second = far, points[numpy.linalg.norm(points - far, axis=1).argmax()]
    for _ in range(10):
        nearer = numpy.linalg.norm(points - first, axis=1) <= numpy.linalg.norm(points - second, axis=1)
        first, second = points[nearer].mean(axis=0), points[~nearer].mean(axis=0)
    return first - second, (first - second) @ (first + second) / 2


def reference_split(members: list[int], points: NDArray, split: SplitName, block: int) -> tuple[list[int], list[int]]:
    """One group of distinct points, split by definition; the vector is fitted to at most ``block`` of them."""
    if len(members) == 2:
        return members[:1], members[1:]
    group = points[members]
    vector, threshold = reference_vector(group[:: math.ceil(len(group) / block)], split)
    scores = -numpy.abs(group - vector).sum(axis=1) if split == "l1_mean" else group @ vector
    median = numpy.sort(scores)[(len(group) - 1) // 2]
    left = scores >= (median if threshold is None else threshold)
    if threshold is not None:
        if min(left.sum(), (~left).sum()) < 0.1 * len(group):
            left = scores >= median
        left = left == left[0]
    return [m for m, s in zip(members, left, strict=True) if s], [
        m for m, s in zip(members, left, strict=True) if not s
    ]


def reference_nodes(points: NDArray, split: SplitName, block: int) -> Iterator[tuple[list[int], list[int]]]:
    """The two sides of every inner node of a tree over points with one level."""
    pending = [list(range(len(points)))]
    while pending:
        sides = reference_split(pending.pop(), points, split, block)
        yield sides
        pending += [side for side in sides if len(side) > 1]


@every_split
@pytest.mark.parametrize("block", [16, 50, 4096])
def test_splitting_many_groups_together_equals_splitting_each(
    split: SplitName, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("methods.treelora.tree.grow.BLOCK", block)
    monkeypatch.setattr("methods.treelora.tree.metric.CHUNK", 100)
    tree = TaskTree.build(random_sketches(300, levels=1, width=6), split=split)
    found = sorted(children(tree, node) for node in inner_nodes(tree))
    expected = reference_nodes(tree.signatures[:, 0].astype(float), split, block)
    assert found == sorted(list(sides) for sides in expected)


@pytest.mark.parametrize("split", MEDIANS)
@pytest.mark.parametrize("tasks", [3, 4, 7, 8, 9, 40])
def test_a_lower_median_splits_distinct_scores(tasks: int, split: SplitName) -> None:
    tree = TaskTree.build(random_sketches(tasks), split=split)
    for node in inner_nodes(tree):
        low, high = children(tree, node)
        size = len(low) + len(high)
        expected = (size // 2 + 1, math.ceil(size / 2) - 1) if size > 2 else (1, 1)
        assert (len(low), len(high)) == expected
    assert depth_of(tree) <= math.ceil(math.log2(tasks)) + 1


def test_the_paper_s_rule_separates_near_from_far() -> None:
    """On a line at 0, 1, 2, 6, 11 the mean is 4; the lower median of the distances 4, 3, 2, 2, 7 is 3."""
    angles = numpy.array([0, 1, 2, 6, 11]) / 1000
    sketches = numpy.stack([numpy.cos(angles), numpy.sin(angles)], axis=1)[:, None]
    assert children(TaskTree.build(sketches, split="l1_mean"), 0) == [[1, 2, 3], [0, 4]]


def test_the_released_rule_separates_along_the_mean() -> None:
    sketches = numpy.array([[1, 0], [0.6, 0.8], [0.8, 0.6], [0, 1], [0.6, -0.8]])[:, None]
    # inner products with the mean (0.6, 0.32): 0.6, 0.616, 0.672, 0.32, 0.104
    assert children(TaskTree.build(sketches, split="dot_mean"), 0) == [[0, 1, 2], [3, 4]]


def test_the_principal_direction_is_that_of_the_singular_value_decomposition() -> None:
    generator = numpy.random.default_rng(2)
    sketches = generator.normal(size=(51, 1, 10)) * numpy.array([3, *9 * [1]]) + 10 * numpy.eye(10)[1]
    tree = TaskTree.build(sketches, split="pca")
    points = tree.signatures[:, 0] - tree.signatures[:, 0].mean(axis=0)
    scores = points @ numpy.linalg.svd(points)[2][0]
    sides = [scores >= numpy.median(scores), scores <= numpy.median(scores)]
    assert children(tree, 0)[0] in [numpy.flatnonzero(side).tolist() for side in sides]


def share_kept(split: SplitName, levels: int, seeds: int) -> float:
    """The share of same-cluster pairs that three splits leave together."""
    kept: list[bool] = []
    for seed in range(seeds):
        sketches, cluster = clusters(seed, levels)
        tree = TaskTree.build(sketches, split=split)
        path = [tree.path(tree.leaf(task))[::-1] for task in range(64)]
        pairs = [p for p in itertools.combinations(range(64), 2) if cluster[p[0]] == cluster[p[1]]]
        kept += [path[i][3:4] == path[j][3:4] != [] for i, j in pairs]
    assert len(kept) == seeds * 8 * 28
    return float(numpy.mean(kept))


@pytest.mark.parametrize(
    ("split", "least", "most"), [("two_means", 0.95, 1), ("pca", 0.6, 1), ("l1_mean", 0.2, 0.5), ("dot_mean", 0.2, 0.5)]
)
def test_planted_clusters_stay_together_for_three_splits(split: SplitName, least: float, most: float) -> None:
    assert least <= share_kept(split, levels=1, seeds=20) <= most


def test_planted_clusters_are_found_in_blocks_of_levels() -> None:
    assert share_kept("two_means", levels=4, seeds=5) >= 0.95


@pytest.mark.parametrize(("small", "large"), [(1, 1), (1, 7), (2, 9), (3, 25), (40, 100)])
def test_the_first_split_separates_two_clusters_of_any_sizes(small: int, large: int) -> None:
    generator = numpy.random.default_rng(small)
    belongs = generator.permutation(numpy.arange(small + large) < small)
    sketches = generator.normal(size=(2, 1, 32))[belongs.astype(int)]
    sketches += 0.3 * generator.normal(size=sketches.shape)
    sides = children(TaskTree.build(sketches), 0)
    assert sorted(sides) == sorted(numpy.flatnonzero(side).tolist() for side in (belongs, ~belongs))


def test_shallow_splits_look_at_shallow_levels() -> None:
    """The first level separates tasks 0, 1 from 2, 3, the second one 0, 2 from 1, 3."""
    east, north = [1.0, 0.0], [0.0, 1.0]
    sketches = numpy.array([[east, east], [east, north], [north, east], [north, north]])
    assert children(TaskTree.build(sketches), 0) == [[0, 1], [2, 3]]
    assert children(TaskTree.build(sketches[:, ::-1]), 0) == [[0, 2], [1, 3]]


def test_an_outlier_does_not_take_a_branch_of_its_own() -> None:
    sketches = random_sketches(20, levels=1) * 0.01 + numpy.eye(16)[0]
    sketches[4] = -numpy.eye(16)[0]
    tree = TaskTree.build(sketches)
    assert sorted(len(side) for side in children(tree, 0)) == [9, 11]
    assert depth_of(tree) <= 8


@every_split
@pytest.mark.parametrize("tasks", [2, 20, 100])
def test_equal_tasks_are_halved(tasks: int, split: SplitName) -> None:
    tree = TaskTree.build(random_sketches(1).repeat(tasks, axis=0), split=split)
    assert depth_of(tree) == math.ceil(math.log2(tasks))
    numpy.testing.assert_allclose(tree.diameter, 0, atol=1e-7)
