"""A tree that grows entry by entry keeps the invariants; a restored one grows alike."""

from __future__ import annotations

import numpy
import pytest
from numpy.typing import NDArray

from methods.treelora.tree.metric import Metric
from methods.treelora.tree.tree import TaskTree
from tests.support.trees import (
    METRICS,
    assert_diameters,
    assert_equal_trees,
    assert_partition,
    clusters,
    depth_of,
    every_metric,
    every_sample,
    random_sketches,
)


def inserted(sketches: NDArray, metric: Metric = METRICS[0], depth: int | None = None) -> TaskTree:
    """The tree that grows one sketch at a time."""
    tree = TaskTree.build(sketches[:1], metric=metric, depth=depth)
    for sketch in sketches[1:]:
        tree = tree.insert(sketch)
    return tree


@every_sample
@every_metric
def test_inserting_keeps_the_partition_and_exact_diameters(sketches: NDArray, metric: Metric) -> None:
    tree = inserted(sketches, metric)
    assert len(tree.parent) == 2 * len(sketches) - 1
    assert_partition(tree, len(sketches))
    assert_diameters(tree, exact=True)


def test_inserting_leaves_the_old_tree_and_its_numbers_alone() -> None:
    sketches = random_sketches(12)
    tree = TaskTree.build(sketches[:11])
    before = tree.state_dict()
    grown = tree.insert(sketches[11])
    for name, value in before.items():
        numpy.testing.assert_array_equal(tree.state_dict()[name], value)
    for node in range(len(tree.parent)):
        assert set(grown.members(node)) - {11} == set(tree.members(node))


def test_an_inserted_task_joins_the_side_of_its_cluster() -> None:
    sketches, cluster = clusters(0, levels=2)
    tree = TaskTree.build(sketches[:60])
    for task in range(60, 64):
        tree = tree.insert(sketches[task])
        path = tree.path(tree.leaf(task))[::-1]
        assert all(cluster[other] == cluster[task] for other in tree.members(path[3]))


def test_an_inserted_tree_depends_on_the_order_while_a_rebuilt_one_does_not() -> None:
    sketches = random_sketches(20)
    one, other = inserted(sketches), inserted(sketches[::-1])
    mirrored = {tuple(sorted(19 - entry for entry in other.members(n))) for n in range(39)}
    assert {tuple(one.members(n)) for n in range(39)} != mirrored
    assert_equal_trees(one, inserted(sketches))


@pytest.mark.parametrize("depth", [1, 3])
def test_inserting_respects_the_depth_limit(depth: int) -> None:
    tree = inserted(random_sketches(30), depth=depth)
    assert_partition(tree, 30)
    assert_diameters(tree, exact=True)
    assert depth_of(tree) == depth


@every_metric
def test_a_bound_of_a_large_tree_stays_sound_when_it_grows(metric: Metric, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("methods.treelora.tree.diameter.EXACT", 10)
    tree = TaskTree.build(random_sketches(30), metric=metric)
    for sketch in random_sketches(10, seed=1):
        tree = tree.insert(sketch)
    assert_diameters(tree, exact=False)


@pytest.mark.parametrize("depth", [None, 2])
def test_a_restored_tree_is_the_same_and_grows_alike(depth: int | None) -> None:
    sketches = random_sketches(15)
    tree = inserted(sketches[:14], depth=depth)
    again = TaskTree.restored(sketches[:14], tree.state_dict(), Metric())
    assert_equal_trees(tree, again)
    numpy.testing.assert_array_equal(tree.signatures, again.signatures)
    assert_equal_trees(tree.insert(sketches[14]), again.insert(sketches[14]))


def test_a_saved_tree_of_other_sketches_is_refused() -> None:
    state = TaskTree.build(random_sketches(4)).state_dict()
    with pytest.raises(ValueError, match="4 entries, but there are 3"):
        TaskTree.restored(random_sketches(3), state, Metric())


def test_a_sketch_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"task 4 has levels and width \(3, 8\), but the tree's have \(3, 16\)"):
        TaskTree.build(random_sketches(4)).insert(random_sketches(1, width=8)[0])
