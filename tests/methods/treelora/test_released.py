"""The released code's rule keeps its defects: it prefers what is far, hardly, and counts signatures too often."""

from __future__ import annotations

import math

import numpy
import pytest
from numpy.typing import NDArray

from methods.treelora.search.arms import Look, draw
from methods.treelora.search.released import ReleasedSearch, differences, root_groups, softmax_draw
from methods.treelora.search.search import SearchConfig, Searches
from methods.treelora.tree.tree import TaskTree

LEVELS, WIDTH = 8, 64


def random_sketches(entries: int, seed: int = 0, levels: int = LEVELS) -> NDArray[numpy.float64]:
    return numpy.random.default_rng(seed).normal(size=(entries, levels, WIDTH))


def looked(sketches: NDArray, query: NDArray, looks: int, progress: float = 1.0, seed: int = 0) -> ReleasedSearch:
    search = ReleasedSearch(sketches, looks, seed)
    for _ in range(looks):
        search.look(Look(TaskTree.build(sketches), query, progress), 1)
    return search


@pytest.mark.parametrize("seed", range(3))
def test_of_an_identical_and_an_opposite_entry_the_opposite_is_drawn_more_often(seed: int) -> None:
    """One draw is one level of one look at a whole task: 500 looks at 8 levels once every entry was drawn.

    Scores one apart give the opposite entry the probability e / (1 + e) = 0.73.
    """
    query = random_sketches(1, seed)[0]
    sketches = numpy.stack([query, -query])
    search = looked(sketches, query, 10, seed=seed)
    assert search.pulled.min() > 0
    before = search.pulls()
    for _ in range(500):
        search.look(Look(TaskTree.build(sketches), query, 1.0), 1)
    drawn = search.pulls() - before
    assert drawn.sum() == 4000
    assert 0.65 <= drawn[1] / 4000 <= 0.80


def test_no_entry_is_much_likelier_than_another_whatever_the_distances() -> None:
    """Sixteen levels of eight entries at distances from 0 to 7 times a vector, each level alike."""
    base = random_sketches(1, levels=1)[0].repeat(16, axis=0)
    sketches = numpy.arange(1, 9)[:, None, None] * base
    search = looked(sketches, base, 600)
    shares = search.pulls() / search.pulls().sum()
    assert shares[0] < shares[-1]
    assert shares.max() / shares.min() < 1.15 * math.e


def test_one_look_is_one_pull_a_level() -> None:
    search = looked(random_sketches(5), random_sketches(1, 1)[0], 7)
    assert search.pulled.sum(axis=0).tolist() == [7] * LEVELS
    assert search.pulls().sum() == 7 * LEVELS


@pytest.mark.parametrize("progress", [0.25, 1.0])
def test_losses_are_raw_distances_of_a_prefix_sum_times_the_number_of_levels(progress: float) -> None:
    sketches, query = random_sketches(3), random_sketches(1, 1)[0]
    search = looked(sketches, query, 1, progress)
    for level, entry in enumerate(search.choices(False)):
        expected = LEVELS * numpy.abs(progress * query[level] - sketches[entry, level]).sum()
        assert search.lost[entry, level] == pytest.approx(expected)
        assert search.lost[:, level].sum() == search.lost[entry, level]


def test_scores_are_distance_plus_bonus_plus_their_minimum() -> None:
    """Ten planned looks, at the third: entry 0 was seen twice at a mean distance of 5, entry 1 never."""
    search = ReleasedSearch(random_sketches(2, levels=1), 10, 0)
    search.pulled[0], search.lost[0] = 2, 10
    bonus = math.sqrt(math.log(2 * 10 * 4 * 5))
    first, second = 5 + bonus / math.sqrt(4 + 1e-5), bonus / math.sqrt(1e-5)
    assert search.scores(3)[:, 0] == pytest.approx([2 * first, first + second])


def test_the_groups_come_from_differences_at_the_first_level() -> None:
    """Differences 3, -1, 1, 1 with mean 1: products equal them, the lower median is 1."""
    sketches = numpy.zeros((4, 2, 1))
    sketches[:, 0, 0] = [3, 2, 3, 4]
    assert differences(sketches)[:, 0, 0].tolist() == [3, -1, 1, 1]
    groups = [members.tolist() for members, _ in root_groups(differences(sketches))]
    assert groups == [[0, 2, 3], [1]]


def test_the_similarity_is_the_lower_median_at_the_second_level() -> None:
    """In the first group 1, 2, 6 have the mean 3, hence products 3, 6, 18; a group of one has none."""
    points = numpy.zeros((4, 2, 1))
    points[:, 0, 0], points[:, 1, 0] = [3, -1, 1, 1], [1, 9, 2, 6]
    assert [similarity for _, similarity in root_groups(points)] == [6.0, None]
    assert [similarity for _, similarity in root_groups(points[:, :1])] == [None, None]


@pytest.mark.parametrize(("entries", "sizes"), [(1, []), (2, [1, 1]), (3, [2, 1]), (5, [3, 2]), (8, [5, 3])])
def test_the_sizes_of_the_groups_follow_from_the_number_of_entries(entries: int, sizes: list[int]) -> None:
    """The lower median leaves half and one more; the larger of two has everything, which is halved by number."""
    assert [len(members) for members, _ in root_groups(random_sketches(entries))] == sizes


def test_entries_that_cannot_be_told_apart_are_halved_by_number() -> None:
    groups = [members.tolist() for members, _ in root_groups(numpy.ones((5, 2, 3)))]
    assert groups == [[0, 1], [2, 3, 4]]


@pytest.mark.parametrize(("similarity", "factor"), [(0.5, 0.5), (7.0, 1.5), (-2.0, -2.0), (None, 1), (0.0, 1)])
def test_the_group_of_the_first_draw_is_weighted_by_its_similarity(similarity: float | None, factor: float) -> None:
    """The sum of entry 2 is so large that it is drawn for certain."""
    search = ReleasedSearch(random_sketches(3), 10, 0)
    search.groups = [(numpy.array([0, 2]), similarity), (numpy.array([1]), 99.0)]
    scores = numpy.array([1.0, 2.0, 1000.0])[:, None].repeat(LEVELS, axis=1)
    assert search.weighted(scores, 1)[:, 0].tolist() == [factor, 2.0, 1000 * factor]


def test_draws_have_the_probabilities_of_softmax() -> None:
    scores = numpy.log([1.0, 2.0, 5.0]) + 1e4
    counts = numpy.bincount([softmax_draw(scores, draw(0, n)) for n in range(8000)])
    assert counts == pytest.approx([1000, 2000, 5000], abs=150)
    assert softmax_draw(scores, 0) == 0
    assert softmax_draw(scores, 2**64 - 1) == 2


def test_random_bits_are_fair_and_depend_on_the_whole_key() -> None:
    bits = [draw(3, n) for n in range(4000)]
    for place in range(64):
        assert sum(word >> place & 1 for word in bits) == pytest.approx(2000, abs=160)
    assert len({draw(a, b) for a in range(50) for b in range(50)}) == 2500
    assert draw(1, 2) != draw(2, 1) != draw(-2, 1)
    assert draw(0) == 0xE220A8397B1DCDAF  # the first output of splitmix64 with seed 0


def test_there_is_an_entry_for_each_level_after_the_first_look() -> None:
    sketches = random_sketches(6)
    searches = Searches(SearchConfig(kind="released"), TaskTree.build(sketches), sketches, 80, 0)
    assert searches.answer() == []
    searches.look(random_sketches(1, 1)[0], 0.5)
    assert len(searches.answer()) == LEVELS
    assert len(set(searches.answer())) > 1
    found = searches.statistics()
    assert found["pulls"].tolist() == numpy.bincount(searches.answer(), minlength=6).tolist()
    assert (numpy.isnan(found["mean"]) == (found["pulls"] == 0)).all()


def test_scores_that_are_all_equal_leave_the_choice_to_chance() -> None:
    """The first look of a task: every entry has the same bonus."""
    sketches = random_sketches(2, levels=1)
    first = [looked(sketches, sketches[0], 1, seed=seed).choices(False)[0] for seed in range(400)]
    assert 160 < sum(first) < 240
