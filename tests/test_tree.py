"""The task tree: a partition with sound diameters that finds planted clusters."""

from __future__ import annotations

import itertools
import math

import numpy
import pytest

from methods.treelora.tree import Floats, TaskTree, directions, distance


def random_sketches(tasks: int, levels: int = 3, width: int = 16, seed: int = 0) -> Floats:
    return numpy.random.default_rng(seed).normal(size=(tasks, levels, width))


def clusters(seed: int, levels: int) -> tuple[Floats, Floats]:
    """Signatures of 64 tasks in 8 clusters under a binary hierarchy of centres, and each task's cluster."""
    generator = numpy.random.default_rng(seed)
    centres = numpy.zeros((8, 512))
    for depth in range(3):
        parts = generator.normal(size=(2 ** (depth + 1), 512)) / 2**depth
        centres += parts.repeat(4 // 2**depth, axis=0)
    cluster = generator.permutation(numpy.arange(64) % 8)
    points = centres[cluster] + 0.5 * generator.normal(size=(64, 512))
    return numpy.repeat(points[:, None], levels, axis=1), cluster


def inner_nodes(tree: TaskTree) -> list[int]:
    return [node for node in range(len(tree.parent)) if tree.task[node] < 0]


def depth_of(tree: TaskTree) -> int:
    return max(len(tree.path(tree.leaf(task))) - 1 for task in range(tree.tasks))


def children(tree: TaskTree, node: int) -> list[list[int]]:
    return [tree.members(tree.left[node]), tree.members(tree.right[node])]


def crooked() -> Floats:
    """The first level halves 140 tasks; on the second one a half is wider around its mean than the whole."""
    sketches = numpy.zeros((140, 2, 2))
    sketches[:, 0] = [1.0, 0.0]
    sketches[70:, 0, 1] = 0.01
    sketches[:69, 1, 0] = 1.0
    sketches[69:, 1, 0] = -1.0
    return sketches


def assert_equal_trees(one: TaskTree, other: TaskTree) -> None:
    for name in ("parent", "left", "right", "task", "diameter"):
        numpy.testing.assert_array_equal(getattr(one, name), getattr(other, name))


SAMPLES = {
    **{f"{tasks} tasks": random_sketches(tasks) for tasks in (1, 2, 3, 10, 64, 65, 150)},
    "one level": random_sketches(20, levels=1),
    "clusters": clusters(0, levels=4)[0],
    "duplicates": random_sketches(4)[[0, 1, 2, 3, 0, 1, 0, 0, 2]],
    "all equal": random_sketches(1).repeat(20, axis=0),
    "zeros": random_sketches(6) * numpy.array([0, 1, 0, 1, 1, 0])[:, None, None],
    "all zero": numpy.zeros((5, 2, 4)),
    "crooked": crooked(),
    "tiny and huge": random_sketches(9) * 10.0 ** numpy.linspace(-30, 30, 9)[:, None, None],
}
every_sample = pytest.mark.parametrize("sketches", SAMPLES.values(), ids=SAMPLES.keys())


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ([[1, 0]], [[3, 0]], 0.0),
        ([[1, 0]], [[-2, 0]], 1.0),
        ([[1, 0]], [[0, 5]], math.sqrt(2) / 2),
        ([[1, 0]], [[0, 0]], 0.5),
        ([[0, 0]], [[0, 0]], 0.0),
        ([[1, 0], [1, 0]], [[1, 0], [-1, 0]], 0.5),
    ],
)
def test_distances_of_known_directions(left: list[Floats], right: list[Floats], expected: float) -> None:
    one, other = directions(numpy.array(left, float)), directions(numpy.array(right, float))
    assert distance(one, other) == pytest.approx(expected, abs=1e-15)
    assert distance(other, one) == distance(one, other)


@every_sample
def test_every_task_has_one_leaf_and_children_partition_their_parent(sketches: Floats) -> None:
    tree = TaskTree.build(sketches)
    tasks = list(range(len(sketches)))
    assert sorted(tree.task[tree.task >= 0]) == tasks
    assert tree.members(0) == tasks
    assert len(tree.parent) == 2 * len(tasks) - 1
    for node in inner_nodes(tree):
        low, high = children(tree, node)
        assert low
        assert high
        assert sorted(low + high) == tree.members(node)
        assert low[0] < high[0]
        assert tree.parent[tree.left[node]] == tree.parent[tree.right[node]] == node
        assert min(tree.left[node], tree.right[node]) > node  # the search counts on it


@every_sample
def test_a_diameter_bounds_all_distances_and_never_grows_downwards(sketches: Floats) -> None:
    tree = TaskTree.build(sketches)
    queries = directions(numpy.random.default_rng(9).normal(size=(20, *sketches.shape[1:])))
    for node, diameter in enumerate(tree.diameter):
        members = tree.signatures[tree.members(node)]
        widest = max(distance(members, one).max() for one in members)
        assert widest <= diameter + 1e-12
        if len(sketches) <= 64:
            assert diameter == pytest.approx(widest, abs=1e-12)
        for query in queries:
            assert numpy.ptp(distance(members, query)) <= diameter + 1e-6
        if node > 0:
            assert diameter <= tree.diameter[tree.parent[node]]


@every_sample
def test_the_same_sketches_give_the_same_tree_at_any_scale(sketches: Floats) -> None:
    tree = TaskTree.build(sketches)
    assert_equal_trees(tree, TaskTree.build(sketches.copy()))
    scales = 2.0 ** numpy.random.default_rng(1).integers(-40, 40, size=(*sketches.shape[:2], 1))
    assert_equal_trees(tree, TaskTree.build(sketches * scales))


@pytest.mark.parametrize("tasks", [2, 20, 100])
def test_equal_tasks_are_halved(tasks: int) -> None:
    tree = TaskTree.build(random_sketches(1).repeat(tasks, axis=0))
    assert depth_of(tree) == math.ceil(math.log2(tasks))
    numpy.testing.assert_allclose(tree.diameter, 0, atol=1e-12)


def test_no_task_gives_no_node() -> None:
    tree = TaskTree.build(numpy.zeros((0, 3, 8)))
    assert (tree.tasks, len(tree.parent), tree.nodes()) == (0, 0, [])


def test_one_task_is_root_and_leaf() -> None:
    expected = [{"id": 0, "parent": None, "task": 0, "diameter": 0.0}]
    assert TaskTree.build(random_sketches(1)).nodes() == expected


@pytest.mark.parametrize("value", [numpy.nan, numpy.inf, -numpy.inf])
def test_a_sketch_that_is_not_finite_is_rejected_by_name(value: float) -> None:
    sketches = random_sketches(5)
    sketches[3, 1, 7] = value
    with pytest.raises(ValueError, match="task 3 is not finite at level 1"):
        TaskTree.build(sketches)


@pytest.mark.parametrize("levels", [1, 4])
def test_planted_clusters_stay_together_for_three_splits(levels: int) -> None:
    kept = []
    for seed in range(10):
        sketches, cluster = clusters(seed, levels)
        tree = TaskTree.build(sketches)
        path = [tree.path(tree.leaf(task))[::-1] for task in range(64)]
        pairs = [p for p in itertools.combinations(range(64), 2) if cluster[p[0]] == cluster[p[1]]]
        kept += [path[i][3:4] == path[j][3:4] != [] for i, j in pairs]
    assert len(kept) == 10 * 8 * 28
    assert numpy.mean(kept) >= 0.95


@pytest.mark.parametrize(("small", "large"), [(1, 1), (1, 7), (2, 9), (3, 25), (40, 100)])
def test_the_first_split_separates_two_clusters_of_any_sizes(small: int, large: int) -> None:
    generator = numpy.random.default_rng(small)
    belongs = generator.permutation(numpy.arange(small + large) < small)
    sketches = generator.normal(size=(2, 1, 32))[belongs.astype(int)]
    sketches += 0.3 * generator.normal(size=sketches.shape)
    sides = children(TaskTree.build(sketches), 0)
    assert sorted(sides) == sorted(numpy.flatnonzero(side).tolist() for side in (belongs, ~belongs))


@pytest.mark.parametrize("seed", range(5))
def test_each_task_is_nearer_to_the_mean_of_its_own_side(seed: int) -> None:
    tree = TaskTree.build(random_sketches(40, levels=1, width=4, seed=seed))
    points = tree.signatures[:, 0]
    low, high = children(tree, 0)
    gap = [numpy.linalg.norm(points - points[side].mean(axis=0), axis=1) for side in (low, high)]
    assert numpy.flatnonzero(gap[0] < gap[1]).tolist() == low


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
    assert [len(side) for side in children(tree, 0)] == [10, 10]
    assert depth_of(tree) <= 8
