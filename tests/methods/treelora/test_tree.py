"""The task tree: a partition with sound diameters, the same for the same sketches."""

from __future__ import annotations

import numpy
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from methods.treelora.tree.metric import Metric
from methods.treelora.tree.split import SplitName
from methods.treelora.tree.tree import TaskTree, TreeConfig
from tests.support.trees import (
    assert_diameters,
    assert_equal_trees,
    assert_partition,
    crooked,
    depth_of,
    every_metric,
    every_sample,
    every_split,
    random_sketches,
)


@every_sample
@every_split
def test_every_entry_has_one_leaf_and_children_partition_their_parent(sketches: NDArray, split: SplitName) -> None:
    tree = TaskTree.build(sketches, split=split)
    assert len(tree.parent) == 2 * len(sketches) - 1
    assert_partition(tree, len(sketches))


@every_sample
@every_metric
def test_a_diameter_bounds_all_distances_and_never_grows_downwards(sketches: NDArray, metric: Metric) -> None:
    assert_diameters(TaskTree.build(sketches, metric=metric), exact=True)


@every_metric
@pytest.mark.parametrize("block", [20, 4096])
def test_diameters_of_larger_trees_are_sound_and_the_same_in_blocks(
    metric: Metric, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = TaskTree.build(crooked(), metric=metric)
    monkeypatch.setattr("methods.treelora.tree.diameter.EXACT", 10)
    monkeypatch.setattr("methods.treelora.tree.diameter.BLOCK", block)
    bounded = TaskTree.build(random_sketches(100), metric=metric)
    assert_diameters(bounded, exact=False)
    assert_diameters(TaskTree.build(crooked(), metric=metric), exact=False)
    assert (TaskTree.build(crooked(), metric=metric).diameter >= tree.diameter - 1e-6).all()


def test_a_bound_is_twice_the_largest_distance_to_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("methods.treelora.tree.diameter.EXACT", 1)
    square = numpy.array([[1, 0], [0, 1], [0.6, 0.8]])[:, None]
    tree = TaskTree.build(square)
    mean = square.mean(axis=0)
    expected = 2 * max(numpy.linalg.norm(point - mean) / 2 for point in square)
    assert tree.diameter[0] == pytest.approx(expected, abs=1e-6)


def test_diameters_of_one_level_are_those_of_a_tree_with_that_level() -> None:
    sketches = random_sketches(30)
    tree = TaskTree.build(sketches)
    for level in range(3):
        one = TaskTree.restored(sketches[:, level : level + 1], tree.state_dict(), Metric())
        for node, bound in enumerate(tree.diameters(level)):
            members = one.signatures[tree.members(node)]
            widest = max(one.metric.distance(members, m).max() for m in members)
            assert bound == pytest.approx(widest, abs=1e-6)


def test_the_cauchy_estimate_bounds_small_trees_only(monkeypatch: pytest.MonkeyPatch) -> None:
    metric = Metric("l1", cauchy=8)
    tree = TaskTree.build(random_sketches(20), metric=metric)
    widest = metric.distance(tree.signatures[:, None], tree.signatures[None]).max()
    assert tree.diameter[0] == pytest.approx(widest, abs=1e-6)
    monkeypatch.setattr("methods.treelora.tree.diameter.EXACT", 10)
    assert numpy.isinf(TaskTree.build(random_sketches(20), metric=metric).diameter).all()


def test_cauchy_columns_do_not_shape_the_tree() -> None:
    sketches = random_sketches(20)
    plain = TaskTree.build(sketches[..., :8])
    tree = TaskTree.build(sketches, metric=Metric("l1", cauchy=8))
    numpy.testing.assert_array_equal(tree.order, plain.order)
    numpy.testing.assert_array_equal(tree.parent, plain.parent)


@every_sample
@every_split
def test_the_same_sketches_give_the_same_tree_at_any_scale(sketches: NDArray, split: SplitName) -> None:
    tree = TaskTree.build(sketches, split=split)
    assert_equal_trees(tree, TaskTree.build(sketches.copy(), split=split))
    scales = 2.0 ** numpy.random.default_rng(1).integers(-40, 40, size=(*sketches.shape[:2], 1))
    assert_equal_trees(tree, TaskTree.build(sketches * scales, split=split))


@every_split
def test_the_order_of_entries_changes_their_numbers_only(split: SplitName) -> None:
    sketches = random_sketches(40)
    shuffled = numpy.random.default_rng(5).permutation(40)
    groups = [
        {frozenset(numbers[tree.members(node)].tolist()) for node in range(len(tree.parent))}
        for tree, numbers in (
            (TaskTree.build(sketches, split=split), numpy.arange(40)),
            (TaskTree.build(sketches[shuffled], split=split), shuffled),
        )
    ]
    assert groups[0] == groups[1]


@every_split
@pytest.mark.parametrize("depth", [1, 2, 3, 20])
@pytest.mark.parametrize("block", [10, 4096])
def test_a_depth_limit_leaves_several_entries_in_a_leaf(
    split: SplitName, depth: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("methods.treelora.tree.grow.BLOCK", block)
    sketches = random_sketches(40)
    tree, full = TaskTree.build(sketches, split=split, depth=depth), TaskTree.build(sketches, split=split)
    assert_partition(tree, 40)
    assert depth_of(tree) == min(depth, depth_of(full))
    shallow = [tuple(full.members(n)) for n in range(len(full.parent)) if len(full.path(n)) <= depth + 1]
    assert sorted(tuple(tree.members(n)) for n in range(len(tree.parent))) == sorted(shallow)


def test_no_task_gives_no_node() -> None:
    tree = TaskTree.build(numpy.zeros((0, 3, 8)))
    assert (tree.entries, len(tree.parent), tree.nodes(), str(tree)) == (0, 0, [], "")


def test_one_task_is_root_and_leaf() -> None:
    expected = [{"id": 0, "parent": None, "entries": [0], "diameter": 0.0}]
    assert TaskTree.build(random_sketches(1)).nodes() == expected
    assert TaskTree.build(numpy.zeros((0, 1, 1))).insert(random_sketches(1)[0]).nodes() == expected


@pytest.mark.parametrize("value", [numpy.nan, numpy.inf, -numpy.inf])
def test_a_sketch_that_is_not_finite_is_rejected_by_name(value: float) -> None:
    sketches = random_sketches(5)
    sketches[3, 1, 7] = value
    with pytest.raises(ValueError, match="task 3 is not finite at level 1"):
        TaskTree.build(sketches)
    with pytest.raises(ValueError, match="task 3 is not finite at level 1"):
        TaskTree.build(sketches[:3]).insert(sketches[3])


def test_a_tree_is_drawn_with_one_line_a_node() -> None:
    east, north = [1.0, 0.0], [0.0, 1.0]
    tree = TaskTree.build(numpy.array([[east], [north], [east], [[1.0, 0.1]]]), depth=2)
    drawing = ["0.707", "├── 0.050", "│   ├── 0, 2", "│   └── 3", "└── 1"]
    assert str(tree).splitlines() == drawing


@pytest.mark.parametrize("setting", [{"split": "median"}, {"maintain": "merge"}, {"depth": 0}, {"budget": 1}, {"x": 1}])
def test_settings_outside_their_range_are_rejected(setting: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TreeConfig.model_validate(setting)
