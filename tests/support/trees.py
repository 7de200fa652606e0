"""Sketches to build trees of, and what holds for every tree."""

from __future__ import annotations

import numpy
import pytest
from numpy.typing import NDArray

from methods.treelora.tree.metric import Metric
from methods.treelora.tree.split import SplitName
from methods.treelora.tree.tree import TaskTree

SPLITS: tuple[SplitName, ...] = ("two_means", "pca", "l1_mean", "dot_mean")


METRICS = [Metric("l2"), Metric("l1"), Metric("cos")]


def random_sketches(tasks: int, levels: int = 3, width: int = 16, seed: int = 0) -> NDArray:
    return numpy.random.default_rng(seed).normal(size=(tasks, levels, width))


def clusters(seed: int, levels: int) -> tuple[NDArray, NDArray]:
    """Sketches of 64 tasks in 8 clusters under a binary hierarchy of centres, and each task's cluster."""
    generator = numpy.random.default_rng(seed)
    centres = numpy.zeros((8, 512))
    for depth in range(3):
        parts = generator.normal(size=(2 ** (depth + 1), 512)) / 2**depth
        centres += parts.repeat(4 // 2**depth, axis=0)
    cluster = generator.permutation(numpy.arange(64) % 8)
    points = centres[cluster] + 0.5 * generator.normal(size=(64, 512))
    return numpy.repeat(points[:, None], levels, axis=1), cluster


def crooked() -> NDArray:
    """The first level halves 70 tasks; on the second one a half is wider around its mean than the whole."""
    sketches = numpy.zeros((70, 2, 2))
    sketches[:, 0] = [1.0, 0.0]
    sketches[35:, 0, 1] = 0.01
    sketches[:34, 1, 0] = 1.0
    sketches[34:, 1, 0] = -1.0
    return sketches


def inner_nodes(tree: TaskTree) -> list[int]:
    return numpy.flatnonzero(tree.left >= 0).tolist()


def depth_of(tree: TaskTree) -> int:
    return max(len(tree.path(node)) - 1 for node in range(len(tree.parent)))


def children(tree: TaskTree, node: int) -> list[list[int]]:
    return [tree.members(tree.left[node]), tree.members(tree.right[node])]


def assert_equal_trees(one: TaskTree, other: TaskTree) -> None:
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, value in one.state_dict().items():
        numpy.testing.assert_array_equal(value, other.state_dict()[name], err_msg=name)


def assert_partition(tree: TaskTree, entries: int) -> None:
    """Invariant 1: each entry in one leaf, children partition their parent and are numbered after it."""
    leaves = [node for node in range(len(tree.parent)) if tree.left[node] < 0]
    assert sorted(entry for leaf in leaves for entry in tree.members(leaf)) == list(range(entries))
    assert all(entry in tree.members(tree.leaf(entry)) for entry in range(entries))
    assert tree.members(0) == list(range(entries))
    assert tree.parent[0] == -1
    for node in inner_nodes(tree):
        low, high = children(tree, node)
        assert low
        assert high
        assert sorted(low + high) == tree.members(node)
        assert tree.parent[tree.left[node]] == tree.parent[tree.right[node]] == node
        assert min(tree.left[node], tree.right[node]) > node


def assert_diameters(tree: TaskTree, exact: bool) -> None:
    """Invariant 2: diameters bound distances, exactly in small trees, and never grow downwards."""
    queries = tree.metric.directions(numpy.random.default_rng(9).normal(size=(10, *tree.signatures.shape[1:])))
    for node, diameter in enumerate(tree.diameter):
        members = tree.signatures[tree.members(node)]
        widest = tree.metric.distance(members[:, None], members[None]).max()
        assert widest <= diameter + 1e-6
        if exact:
            assert diameter == pytest.approx(widest, abs=1e-6)
        seen = tree.metric.distance(members[:, None], queries[None])
        assert numpy.ptp(seen, axis=0).max() <= diameter + 1e-6
        assert node == 0 or diameter <= tree.diameter[tree.parent[node]]


SAMPLES = {
    **{f"{tasks} tasks": random_sketches(tasks) for tasks in (1, 2, 3, 10, 33)},
    "one level": random_sketches(20, levels=1),
    "duplicates": random_sketches(4)[[0, 1, 2, 3, 0, 1, 0, 0, 2]],
    "all equal": random_sketches(1).repeat(20, axis=0),
    "zeros": random_sketches(6) * numpy.array([0, 1, 0, 1, 1, 0])[:, None, None],
    "all zero": numpy.zeros((5, 2, 4)),
    "crooked": crooked(),
    "tiny and huge": random_sketches(9) * 10.0 ** numpy.linspace(-30, 30, 9)[:, None, None],
}


every_sample = pytest.mark.parametrize("sketches", SAMPLES.values(), ids=SAMPLES.keys())


every_split = pytest.mark.parametrize("split", SPLITS)


every_metric = pytest.mark.parametrize("metric", METRICS, ids=str)
