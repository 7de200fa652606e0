"""The bandit on the tree: bounds by the formula, consistent statistics, and the flat search as its limit."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy
import pytest
from numpy.typing import NDArray

from methods.treelora.search.arms import Arms
from methods.treelora.search.bandit import TreeSearch
from methods.treelora.search.search import FlatSearch
from methods.treelora.tree.tree import TaskTree

LEVELS, WIDTH = 3, 16


def random_sketches(entries: int, seed: int = 0) -> NDArray[numpy.float64]:
    return numpy.random.default_rng(seed).normal(size=(entries, LEVELS, WIDTH))


def make_tree(entries: int, seed: int = 0, depth: int | None = None) -> TaskTree:
    return TaskTree.build(random_sketches(entries, seed), depth=depth)


def make_search(entries: int, rounds: int = 500, confidence: float = 0.1, seed: int = 0, **more: Any) -> TreeSearch:
    return TreeSearch(make_tree(entries), rounds, confidence, seed, **more)


def play(search: Arms, losses: NDArray[numpy.float64]) -> list[int]:
    """Pull with ``losses`` [entries, rounds], of each entry's n-th pull."""
    pulled = []
    for _ in range(losses.shape[1]):
        entry = search.select()
        search.update(entry, float(losses[entry, search.pulled[entry]]))
        pulled.append(entry)
    return pulled


def random_losses(entries: int, rounds: int = 300) -> NDArray[numpy.float64]:
    return numpy.random.default_rng(entries).uniform(size=(entries, rounds))


def with_diameters(tree: TaskTree, diameter: float) -> TaskTree:
    inner = tree.left >= 0
    return dataclasses.replace(tree, diameter=numpy.where(inner, diameter, 0).astype(numpy.float32))


@pytest.mark.parametrize("bonus", ["horizon", "paper"])
def test_bounds_are_the_documented_formula(bonus: str) -> None:
    """Two leaves below a root, of ten planned rounds three are played."""

    def width(n: int) -> float:
        if bonus == "paper":
            return 0.3 * 2 * math.sqrt(math.log(3) / n)
        return 0.3 * math.sqrt(math.log(2 * 2 * 10 * (n + 1) * (n + 2)) / (2 * n))

    search = make_search(2, 10, 0.3, bonus=bonus)
    for entry, loss in ((0, 0.5), (0, 0.3), (1, 0.8)):
        search.update(entry, loss)
    leaves = [0.4 - width(2), 0.8 - width(1)]
    inner = 1.6 / 3 - width(3) - float(search.tree.diameter[0])
    assert search.bounds() == pytest.approx(leaves, rel=1e-12)
    assert search.bound[0] == pytest.approx(max(min(leaves), inner), rel=1e-12)


def test_the_first_round_of_the_papers_bonus_has_no_width() -> None:
    search = make_search(2, bonus="paper")
    search.update(0, 0.5)
    assert search.bounds().tolist() == [0.5, -numpy.inf]


def test_an_inner_bound_can_exceed_those_of_all_children() -> None:
    search = TreeSearch(with_diameters(make_tree(2), 0), 10, 0.1, 0)
    search.update(0, 0.5)
    assert search.bounds()[1] == -numpy.inf
    assert search.bound[0] == pytest.approx(0.5 - 0.1 * math.sqrt(math.log(40 * 2 * 3) / 2), rel=1e-12)


@pytest.mark.parametrize("bonus", ["horizon", "paper"])
@pytest.mark.parametrize("depth", [None, 2])
@pytest.mark.parametrize("entries", [1, 2, 30])
@pytest.mark.parametrize("rounds", [0, 1, 200])
def test_statistics_and_bounds_are_consistent_after_any_number_of_rounds(
    entries: int, rounds: int, depth: int | None, bonus: str
) -> None:
    search = TreeSearch(make_tree(entries, depth=depth), 200, 0.1, 0, bonus=bonus)
    losses = random_losses(entries, rounds)
    play(search, losses)
    tree = search.tree
    assert search.pulls().sum() == search.count[0] == rounds
    for node in range(len(tree.parent)):
        members = tree.members(node)
        assert search.count[node] == search.pulled[members].sum()
        assert search.total[node] == pytest.approx(search.lost[members].sum())
        if search.count[node] == 0:
            assert search.bound[node] == -numpy.inf
        elif tree.left[node] < 0:
            assert search.bound[node] <= search.total[node] / search.count[node]
        else:
            assert search.bound[node] >= search.bound[[tree.left[node], tree.right[node]]].min()


@pytest.mark.parametrize("bonus", ["horizon", "paper"])
@pytest.mark.parametrize("rounds", [1, 7, 200])
def test_updating_a_path_equals_recomputing_everything(rounds: int, bonus: str) -> None:
    search, fresh = make_search(12, bonus=bonus), make_search(12, bonus=bonus)
    play(search, random_losses(12, rounds))
    fresh.load(search.state())
    numpy.testing.assert_allclose(fresh.bound, search.bound, rtol=1e-12)
    assert fresh.answer() == search.answer()


@pytest.mark.parametrize("bonus", ["horizon", "paper"])
@pytest.mark.parametrize("entries", [2, 5, 16])
def test_without_knowledge_of_diameters_the_tree_search_is_the_flat_one(entries: int, bonus: str) -> None:
    """Both pull every entry once first, in an order that chance may pick."""
    tree = with_diameters(make_tree(entries), numpy.inf)
    losses = random_losses(entries)
    pulled = play(TreeSearch(tree, 300, 0.3, 0, bonus=bonus), losses)
    expected = play(FlatSearch(entries, 300, 0.3, 0, bonus=bonus), losses)
    assert sorted(pulled[:entries]) == sorted(expected[:entries]) == list(range(entries))
    assert pulled[entries:] == expected[entries:]


def test_a_branch_of_identical_entries_is_searched_as_one() -> None:
    """Two branches of two entries, without noise, against two entries."""
    tree = with_diameters(TaskTree.build(numpy.eye(2).repeat(2, axis=0)[:, None]), 0)
    means = numpy.array([0.4, 0.4, 0.5, 0.5])
    search = TreeSearch(tree, 300, 0.3, 0, bonus="paper")
    flat = FlatSearch(2, 300, 0.3, 0, bonus="paper")
    branches = [entry // 2 for entry in play(search, means[:, None].repeat(300, axis=1))]
    expected = play(flat, means[::2, None].repeat(300, axis=1))
    assert branches[2:] == expected[2:]
    assert 0 < sum(branches) < 300


def test_a_leaf_of_several_entries_pulls_the_least_pulled_one() -> None:
    search = TreeSearch(make_tree(9, depth=1), 200, 0.1, 0)
    by_hand = numpy.zeros(9, dtype=int)
    for entry, loss in zip(play(search, random_losses(9, 100)), range(100), strict=True):
        members = search.tree.members(search.home[entry])
        least = min(members, key=lambda member: (by_hand[member], member))
        assert entry == least, loss
        by_hand[entry] += 1
    assert max(map(len, [search.tree.members(n) for n in (1, 2)])) > 1


def test_the_scale_of_diameters_leaves_infinite_ones_alone() -> None:
    tree = make_tree(2)
    for diameter, expected in ((0.5, 0.125), (numpy.inf, numpy.inf)):
        search = TreeSearch(with_diameters(tree, diameter), 10, 0, 0, diameter_scale=0.25)
        search.update(0, 0.5)
        assert search.bound[0] == 0.5 - expected
    search = TreeSearch(with_diameters(tree, numpy.inf), 10, 0, 0, diameter_scale=0)
    search.update(0, 0.5)
    assert search.bound[0] == -numpy.inf


def test_a_level_has_its_own_diameters() -> None:
    tree = make_tree(6)
    search = TreeSearch(tree, 10, 0.0, 0, level=1)
    search.update(0, 0.5)
    assert search.bound[0] == pytest.approx(0.5 - tree.diameters(1)[0]) != pytest.approx(0.5 - tree.diameter[0])


def test_before_the_first_round_there_is_no_answer() -> None:
    search = make_search(3)
    assert search.answer() == -1
    assert numpy.isnan(search.means()).all()
    search.update(2, 0.9)
    assert search.answer() == 2


def test_equal_means_are_answered_by_the_lowest_entry() -> None:
    search = make_search(4)
    for entry in (3, 1, 2):
        search.update(entry, 0.5)
    assert search.answer() == 1


def test_a_restored_search_must_fit_the_tree() -> None:
    with pytest.raises(ValueError, match=r"saved search has shape \[3\] for 'pulled', this one needs shape \[4\]"):
        make_search(4).load(make_search(3).state())
