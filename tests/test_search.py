"""The bandit on the tree: its bounds, its direction, and what it saves against a flat search."""

from __future__ import annotations

import functools
import math

import numpy
import pytest

from methods.treelora.search import TreeSearch
from methods.treelora.tree import Floats, TaskTree, directions, distance


def random_sketches(tasks: int, seed: int = 0, levels: int = 3, width: int = 16) -> Floats:
    return numpy.random.default_rng(seed).normal(size=(tasks, levels, width))


def make_search(tasks: int, rounds: int = 500, confidence: float = 0.1, seed: int = 0) -> TreeSearch:
    return TreeSearch(TaskTree.build(random_sketches(tasks)), rounds, confidence, seed)


def noisy_query(step: int) -> Floats:
    return directions(random_sketches(1, seed=1000 + step)[0])


def make_flat(tree: TaskTree) -> None:
    """Infinite diameters tell nothing about what is below."""
    tree.diameter[tree.task < 0] = numpy.inf


@pytest.mark.parametrize("near", [0, 1])
@pytest.mark.parametrize("seed", range(5))
def test_the_nearer_of_two_tasks_is_pulled_and_answered(near: int, seed: int) -> None:
    sketches = random_sketches(2, seed)
    search = TreeSearch(TaskTree.build(sketches), 220, 0.1, seed)
    pulled = [search.pull(directions(sketches[near]))[0] for _ in range(220)]
    assert numpy.mean(numpy.array(pulled[20:]) == near) >= 0.95
    assert search.answer() == near


def test_bounds_are_the_documented_formula() -> None:
    """Two leaves below a root, ten rounds: log(2 * 2 * 10 * (n + 1) (n + 2)) / 2n under the root."""
    search = make_search(2, rounds=10, confidence=0.3)
    first, second = search.tree.leaf(0), search.tree.leaf(1)
    search.update(first, 0.5)
    search.update(first, 0.3)
    search.update(second, 0.8)
    leaves = [
        0.4 - 0.3 * math.sqrt(math.log(40 * 3 * 4) / 4),
        0.8 - 0.3 * math.sqrt(math.log(40 * 2 * 3) / 2),
    ]
    diameter = float(distance(*search.tree.signatures))
    inner = 1.6 / 3 - 0.3 * math.sqrt(math.log(40 * 4 * 5) / 6) - diameter
    assert search.bound[[first, second]] == pytest.approx(leaves, rel=1e-12)
    assert search.bound[0] == pytest.approx(max(min(leaves), inner), rel=1e-12)


def test_an_inner_bound_can_exceed_those_of_all_children() -> None:
    search = make_search(2, rounds=10)
    search.tree.diameter[0] = 0.0
    search.update(search.tree.leaf(0), 0.5)
    expected = 0.5 - 0.1 * math.sqrt(math.log(40 * 2 * 3) / 2)
    assert search.bound[search.tree.leaf(1)] == -numpy.inf
    assert search.bound[0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("tasks", [1, 2, 9, 30])
@pytest.mark.parametrize("rounds", [0, 1, 7, 200])
def test_statistics_and_bounds_are_consistent_after_any_number_of_rounds(tasks: int, rounds: int) -> None:
    search = make_search(tasks)
    losses = [search.pull(noisy_query(step))[1] for step in range(rounds)]
    tree = search.tree
    assert sum(search.pulls()) == rounds
    assert search.count[0] == rounds
    assert search.total[0] == pytest.approx(sum(losses))
    for node in range(len(tree.parent)):
        if search.count[node] == 0:
            assert search.bound[node] == -numpy.inf
        if tree.task[node] >= 0:
            assert search.bound[node] <= search.total[node] / max(search.count[node], 1)
            continue
        below = [tree.left[node], tree.right[node]]
        assert search.count[node] == search.count[below].sum()
        assert search.total[node] == pytest.approx(search.total[below].sum())
        assert search.bound[node] >= search.bound[below].min()


@pytest.mark.parametrize("rounds", [1, 7, 200])
def test_updating_a_path_equals_recomputing_everything(rounds: int) -> None:
    search = make_search(12)
    for step in range(rounds):
        search.pull(noisy_query(step))
    fresh = make_search(12)
    fresh.load(search.count.copy(), search.total.copy())
    for name in ("bound", "best", "best_task"):
        numpy.testing.assert_array_equal(getattr(fresh, name), getattr(search, name))
    assert fresh.answer() == search.answer()


@pytest.mark.parametrize("tasks", [2, 5, 16])
def test_without_knowledge_of_diameters_the_search_is_a_flat_one(tasks: int) -> None:
    rounds, confidence = 300, 0.3
    losses = numpy.random.default_rng(tasks).uniform(size=(tasks, rounds))  # of each task's n-th pull
    search = make_search(tasks, rounds, confidence)
    make_flat(search.tree)
    pulled = []
    for _ in range(rounds):
        leaf = search.select()
        task = int(search.tree.task[leaf])
        search.update(leaf, losses[task, search.count[leaf]])
        pulled.append(task)

    expected = list(range(tasks))  # once each, in an order that chance may pick
    count, total = numpy.ones(tasks), losses[:, 0].copy()
    while len(expected) < rounds:
        width = numpy.sqrt(numpy.log(2 * tasks * rounds * (count + 1) * (count + 2)) / (2 * count))
        task = int((total / count - confidence * width).argmin())
        total[task] += losses[task, int(count[task])]
        count[task] += 1
        expected.append(task)
    assert sorted(pulled[:tasks]) == expected[:tasks]
    assert pulled[tasks:] == expected[tasks:]


def test_pulls_depend_on_the_seed_alone() -> None:
    def pulled(seed: int) -> list[int]:
        search = make_search(16, seed=seed)
        return [search.pull(noisy_query(step))[0] for step in range(60)]

    assert pulled(3) == pulled(3)
    assert len({tuple(pulled(seed)) for seed in range(5)}) == 5


@pytest.mark.parametrize("seed", range(10))
def test_without_confidence_width_and_noise_the_first_task_pulled_again_is_the_nearest(seed: int) -> None:
    tree = TaskTree.build(random_sketches(32, seed))
    query = directions(random_sketches(1, seed=100 + seed)[0])
    search = TreeSearch(tree, 60, 0.0, seed)
    nearest = int(distance(tree.signatures, query).argmin())
    pulled: list[int] = []
    while len(set(pulled)) == len(pulled):
        pulled.append(search.pull(query)[0])
    assert pulled[-1] == search.answer() == nearest
    assert {search.pull(query)[0] for _ in range(20)} == {nearest}


def test_before_the_first_round_there_is_no_answer() -> None:
    assert TreeSearch(TaskTree.build(numpy.zeros((0, 1, 1))), 5, 0.1, 0).answer() == -1
    search = make_search(3)
    assert search.answer() == -1
    task, _ = search.pull(noisy_query(0))
    assert search.answer() == task


def oracle_tree(means: Floats) -> TaskTree:
    """A balanced tree over tasks in order, whose diameters are the spread of the mean losses below."""
    count = 2 * len(means) - 1
    parent, left, right, task = (numpy.full(count, -1) for _ in range(4))
    tree = TaskTree(numpy.zeros((len(means), 1, 1)), parent, left, right, task, numpy.zeros(count))
    pending, node = [(0, len(means), -1)], 0
    while pending:
        first, last, above = pending.pop()
        tree.parent[node] = above
        tree.diameter[node] = numpy.ptp(means[first:last])
        if above >= 0:
            side = tree.left if tree.left[above] < 0 else tree.right
            side[above] = node
        if last - first == 1:
            tree.task[node] = first
        else:
            middle = (first + last) // 2
            pending += [(middle, last, node), (first, middle, node)]
        node += 1
    return tree


def regret(tasks: int, rounds: int, seed: int, tree_kind: str) -> float:
    """Mean loss beyond the best task's, summed over rounds; noise 0.1, confidence twice that.

    Groups of eight tasks lie within 0.05; the best group's mean is 0.1, the others' 0.5 to 0.9.
    """
    generator = numpy.random.default_rng(seed)
    groups = generator.uniform(0.5, 0.9, tasks // 8)
    groups[generator.integers(len(groups))] = 0.1
    means = (groups[:, None] + generator.uniform(0, 0.05, (len(groups), 8))).flatten()
    noise = generator.normal(0, 0.1, rounds)
    if tree_kind == "shuffled":
        means = generator.permutation(means)
    tree = oracle_tree(means)
    if tree_kind == "flat":
        make_flat(tree)
    search = TreeSearch(tree, rounds, 0.2, seed)
    for error in noise:
        leaf = search.select()
        search.update(leaf, means[tree.task[leaf]] + error)
    return float(search.pulls() @ (means - means.min()))


@functools.cache
def mean_regret(tasks: int, rounds: int, tree_kind: str) -> float:
    return float(numpy.mean([regret(tasks, rounds, seed, tree_kind) for seed in range(20)]))


@pytest.mark.parametrize(("tasks", "share"), [(16, 0.7), (64, 0.5)])
def test_a_good_tree_saves_regret(tasks: int, share: float) -> None:
    assert mean_regret(tasks, 500, "oracle") <= share * mean_regret(tasks, 500, "flat")


def test_a_wrong_tree_costs_at_most_a_fifth_more_than_none() -> None:
    assert mean_regret(64, 500, "shuffled") <= 1.2 * mean_regret(64, 500, "flat")


def test_regret_grows_more_slowly_than_the_rounds() -> None:
    assert mean_regret(16, 2000, "oracle") < 3.5 * mean_regret(16, 500, "oracle")
