"""All kinds of search as one: nearest entries, answers by level, observed losses, and state after a restart."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
from numpy.typing import NDArray

from methods.treelora.search.arms import FEW
from methods.treelora.search.search import SearchConfig, Searches
from methods.treelora.tree.metric import Floats, Metric, MetricName
from methods.treelora.tree.tree import TaskTree

LEVELS, WIDTH = 3, 16
KINDS = ("tree", "flat", "exact", "random", "latest", "released")
FRESH_KINDS = ("tree", "flat", "random", "latest")


def random_sketches(entries: int, seed: int = 0) -> NDArray[numpy.float64]:
    return numpy.random.default_rng(seed).normal(size=(entries, LEVELS, WIDTH))


def make_searches(entries: int, seed: int = 0, **settings: Any) -> Searches:
    config, sketches = SearchConfig(**settings), random_sketches(entries)
    return Searches(config, TaskTree.build(sketches, metric=Metric(config.metric)), sketches, 80, seed)


def query(step: int) -> NDArray[numpy.float64]:
    return random_sketches(1, 1000 + step)[0]


@pytest.mark.parametrize("kind", ["tree", "flat", "exact"])
@pytest.mark.parametrize("metric", ["l1", "l2", "cos"])
@pytest.mark.parametrize("near", [0, 1])
def test_the_nearer_of_two_entries_is_pulled_and_answered(near: int, metric: MetricName, kind: str) -> None:
    for seed in range(3):
        searches = make_searches(2, seed, kind=kind, metric=metric)
        before = numpy.zeros(2)
        for look in range(30):
            searches.look(random_sketches(2)[near], 1.0)
            before = searches.statistics()["pulls"] if look == 2 else before
        pulls = searches.statistics()["pulls"] - before
        assert searches.answer() == [near] * LEVELS
        assert kind == "exact" or pulls[near] >= 0.95 * pulls.sum()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("granularity", ["path", "per_layer"])
def test_a_search_is_the_same_in_any_process_and_goes_on_after_a_restart(kind: str, granularity: str) -> None:
    def look(searches: Searches, steps: range) -> list[list[int]]:
        answers = []
        for step in steps:
            searches.look(query(step), step / 20)
            answers.append(searches.answer())
        return answers

    settings = {"kind": kind, "granularity": granularity, "rounds": 3}
    whole, first, restored = (make_searches(12, 5, **settings) for _ in range(3))
    answers = look(whole, range(1, 21))
    half = look(first, range(1, 8))
    restored.load_state_dict({name: values.copy() for name, values in first.state_dict().items()})
    assert half + look(restored, range(8, 21)) == answers
    for name, values in whole.state_dict().items():
        numpy.testing.assert_array_equal(values, restored.state_dict()[name])
    for name, row in whole.statistics().items():
        numpy.testing.assert_array_equal(row, restored.statistics()[name])


@pytest.mark.parametrize("kind", ["tree", "flat", "random", "released"])
def test_pulls_depend_on_the_seed(kind: str) -> None:
    rows = []
    for seed in range(5):
        searches = make_searches(16, seed, kind=kind)
        for step in range(1, 9):
            searches.look(query(step), step / 8)
        rows.append(tuple(searches.statistics()["mean"]))
    assert len({str(row) for row in rows}) == 5


@pytest.mark.parametrize("kind", ["tree", "flat", "exact"])
def test_each_level_finds_its_own_nearest_entry(kind: str) -> None:
    sketches = random_sketches(12)
    searches = make_searches(12, kind=kind, granularity="per_layer")
    for _ in range(10):
        searches.look(numpy.stack([sketches[7, 0], sketches[2, 1], sketches[9, 2]]), 1.0)
    assert searches.answer() == [7, 2, 9]
    assert searches.statistics()["pulls"].sum() == (10 * 12 * 3 if kind == "exact" else 10 * 8 * 3)


def test_exact_search_gives_the_nearest_at_the_last_look() -> None:
    searches = make_searches(40, kind="exact")
    for step in range(10):
        searches.look(query(step), 1.0)
        tree = searches.tree
        distances = tree.metric.distance(tree.signatures, tree.metric.directions(query(step)))
        assert searches.answer() == [int(distances.argmin())] * LEVELS


def test_random_search_depends_on_the_number_of_looks_alone() -> None:
    one, other = make_searches(8, kind="random"), make_searches(8, kind="random")
    answers = []
    for step in range(400):
        one.look(query(step), 1.0)
        other.look(query(step + 1), 1.0)
        assert one.answer() == other.answer()
        answers.append(one.answer()[0])
    assert min(numpy.bincount(answers, minlength=8)) > 25


def test_the_latest_entry_is_the_last() -> None:
    searches = make_searches(5, kind="latest")
    searches.look(query(0), 1.0)
    assert searches.answer() == [4] * LEVELS
    assert searches.statistics()["pulls"].tolist() == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_zero_sketch_pulls_nothing(kind: str) -> None:
    searches = make_searches(4, kind=kind)
    searches.look(numpy.zeros((LEVELS, WIDTH)), 1.0)
    assert searches.answer() == []
    assert searches.statistics()["pulls"].tolist() == [0] * 4
    assert numpy.isnan(searches.statistics()["mean"]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("granularity", ["path", "per_layer"])
def test_of_no_entries_there_is_no_answer_and_of_one_it_is_that(kind: str, granularity: str) -> None:
    for seed in range(3):
        none, single = (make_searches(n, seed, kind=kind, granularity=granularity) for n in (0, 1))
        for searches in (none, single):
            searches.look(query(0), 1.0)
        assert none.answer() == []
        assert none.statistics()["pulls"].tolist() == []
        assert none.state_dict() == {}
        none.load_state_dict({})
        assert single.answer() == [0] * LEVELS


@pytest.mark.parametrize("entries", [3, FEW, FEW + 1])
def test_a_look_computes_each_distance_once(entries: int) -> None:
    """Those of few entries all at once; of many entries those that were pulled, one by one."""
    calls = []

    class Counting(Metric):
        def by_level(self, left: Floats, right: Floats) -> Floats:
            calls.append(1)
            return super().by_level(left, right)

    sketches = random_sketches(entries)
    tree = TaskTree.build(sketches, metric=Counting())
    searches = Searches(SearchConfig(rounds=200, confidence=0.01, granularity="per_layer"), tree, sketches, 200, 0)
    calls.clear()
    searches.look(query(0), 1.0)
    pulled = numpy.count_nonzero(searches.statistics()["pulls"])
    assert len(calls) == (1 if entries <= FEW else pulled)
    assert pulled > 1


def test_statistics_are_summed_and_averaged_over_levels() -> None:
    searches = make_searches(2, granularity="per_layer", observe="fresh_grad", kind="latest")
    searches.observe(numpy.array([0.2, 0.4, 0.9]))
    found = searches.statistics()
    assert found["pulls"].tolist() == [0, 3]
    assert found["mean"] == pytest.approx([numpy.nan, 0.5], nan_ok=True)
    assert found["bound"] == pytest.approx([-numpy.inf, 0.5])


# Observed losses


@pytest.mark.parametrize("kind", FRESH_KINDS)
@pytest.mark.parametrize("granularity", ["path", "per_layer"])
def test_the_answer_is_the_next_entry_to_observe(kind: str, granularity: str) -> None:
    """The loss goes to the entries of the last answer, which stays until then, also in a restored search."""
    searches = make_searches(6, kind=kind, granularity=granularity, observe="fresh_grad")
    for step in range(30):
        other = make_searches(6, kind=kind, granularity=granularity, observe="fresh_grad")
        other.load_state_dict(searches.state_dict())
        proposed = searches.answer()
        assert other.answer() == searches.answer() == proposed
        before = searches.statistics()["pulls"]
        searches.observe(numpy.linspace(0, 1, LEVELS) / (step + 1))
        expected = numpy.bincount(proposed if granularity == "per_layer" else proposed[:1], minlength=6)
        assert (searches.statistics()["pulls"] - before).tolist() == expected.tolist()


def test_observed_losses_find_the_entry_of_the_smallest_mean() -> None:
    searches = make_searches(8, observe="fresh_grad", diameter_scale=0.1)
    noise = numpy.random.default_rng(0)
    answers = []
    for _ in range(100):
        mean = 0.1 if searches.answer()[0] == 5 else 0.7
        answers.append(searches.answer()[0])
        searches.observe(mean + 0.02 * noise.normal(size=LEVELS))
    assert answers[20:].count(5) >= 76


def test_a_path_observes_the_mean_over_levels() -> None:
    searches = make_searches(3, observe="fresh_grad")
    searches.observe(numpy.array([0.2, 0.4, 0.9]))
    assert numpy.nanmax(searches.statistics()["mean"]) == pytest.approx(0.5)


@pytest.mark.parametrize("value", [numpy.nan, numpy.inf])
def test_an_observed_loss_that_is_not_finite_is_rejected_by_level(value: float) -> None:
    searches = make_searches(3, observe="fresh_grad")
    with pytest.raises(ValueError, match="observed loss of level 1 is not finite"):
        searches.observe(numpy.array([0.2, value, 0.9]))
    assert searches.statistics()["pulls"].sum() == 0


def test_losses_of_another_number_of_levels_are_rejected() -> None:
    with pytest.raises(ValueError, match="2 losses were observed for 3 levels"):
        make_searches(3, observe="fresh_grad").observe(numpy.array([0.2, 0.9]))


@pytest.mark.parametrize("kind", ["exact", "released"])
def test_kinds_that_compare_stored_signatures_take_no_observations(kind: str) -> None:
    with pytest.raises(ValueError, match=f"search.kind={kind} compares stored signatures only"):
        SearchConfig(kind=kind, observe="fresh_grad")


def test_a_search_saved_with_another_granularity_is_rejected() -> None:
    saved = make_searches(3, granularity="per_layer").state_dict()
    with pytest.raises(ValueError, match=r"saved search has 3 sets of 'pulled', this one needs 1; use the search"):
        make_searches(3).load_state_dict(saved)
