"""Stored signatures: which become one under a budget, and what each counts in a mean over the tree."""

from __future__ import annotations

import numpy
import pytest
from numpy.typing import NDArray

from methods.treelora.tree.metric import Metric
from methods.treelora.tree.stored import StoredTasks
from methods.treelora.tree.tree import TreeConfig
from tests.support.trees import assert_equal_trees, random_sketches


def stored(sketches: NDArray, **tree: object) -> StoredTasks:
    result = StoredTasks(TreeConfig.model_validate(tree), Metric())
    for task, sketch in enumerate(sketches.astype(numpy.float32)):
        result.add(task, sketch)
    return result


@pytest.mark.parametrize("tree", [{}, {"maintain": "insert"}, {"depth": 2}, {"budget": 4}, {"split": "pca"}], ids=str)
@pytest.mark.parametrize("tasks", [1, 2, 3, 7, 20])
def test_both_branches_of_every_node_count_alike(tasks: int, tree: dict[str, object]) -> None:
    found = stored(random_sketches(tasks), **tree)
    weights, grown = numpy.array(found.weights()), found.tree
    assert len(weights) == len(found.sketches) and weights.sum() == pytest.approx(1)
    for node, (left, right) in enumerate(zip(grown.left, grown.right, strict=True)):
        branches = [weights[grown.members(child)].sum() for child in (left, right) if child >= 0]
        assert branches == pytest.approx([weights[grown.members(node)].sum() / 2] * len(branches))
        if left < 0:
            assert len(set(weights[grown.members(node)])) == 1, "a leaf's entries count alike"


def test_without_tasks_there_are_no_weights() -> None:
    assert stored(random_sketches(0)).weights() == []


def test_the_closest_two_are_joined_in_the_place_of_the_first() -> None:
    sketches = random_sketches(4)
    sketches[3] = 1.01 * sketches[1]
    found = stored(sketches, budget=3)
    assert (found.tasks, found.joined, found.closed) == ([[0], [1, 3], [2]], {3: [1, 3]}, 4)
    assert numpy.allclose(found.sketches[1], 1.005 * sketches[1], atol=1e-6)
    assert numpy.allclose(found.tree.signatures, Metric().directions(found.array()), atol=1e-6)


def test_in_a_joined_entry_every_task_counts_alike() -> None:
    base, *others = random_sketches(3)
    near = [base + 1e-3 * seed * random_sketches(1, seed=seed)[0] for seed in range(4)]
    found = stored(numpy.stack([*others, *near]), budget=3)
    assert found.tasks == [[0], [1], [2, 3, 4, 5]]
    assert numpy.allclose(found.sketches[2], numpy.mean(near, axis=0), atol=1e-5)


@pytest.mark.parametrize("maintain", ["rebuild", "insert"])
@pytest.mark.parametrize("tasks", [0, 1, 6])
def test_a_restored_tree_is_the_same_tree(tasks: int, maintain: str) -> None:
    found = stored(random_sketches(tasks), maintain=maintain)
    other = stored(random_sketches(0), maintain=maintain)
    other.load(found.state_dict(), found.tasks, found.joined)
    assert_equal_trees(other.tree, found.tree)
    assert numpy.array_equal(other.array(), found.array()) and other.closed == tasks
