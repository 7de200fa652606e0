"""What the bandit on the tree saves in regret, on planted means with noise, over fixed seeds.

Groups of eight entries lie within 0.05; the best group's mean is 0.1, the others' 0.5 to 0.9. Noise is Gaussian with
standard deviation 0.1, the width of the bounds 0.2 sqrt(log t / n).
"""

from __future__ import annotations

import functools

import numpy
import pytest

from methods.treelora.search.arms import Arms, Floats
from methods.treelora.search.bandit import TreeSearch
from methods.treelora.search.search import FlatSearch, RandomSearch, SearchConfig, Searches
from methods.treelora.tree.metric import Metric
from methods.treelora.tree.tree import TaskTree

NOISE = 0.1
SEEDS = 6


def oracle_tree(means: Floats) -> TaskTree:
    """A balanced tree over entries in order, whose diameters are the true spread of the means below."""
    nodes = [(0, len(means), -1)]
    left, right = [], []
    for node, (start, stop, _) in enumerate(nodes):  # grows while it is read
        split = stop - start > 1
        left.append(len(nodes) if split else -1)
        right.append(len(nodes) + 1 if split else -1)
        if split:
            middle = (start + stop) // 2
            nodes += [(start, middle, node), (middle, stop, node)]
    start, stop, parent = (numpy.array(column, dtype=numpy.int32) for column in zip(*nodes, strict=True))
    return TaskTree(
        signatures=numpy.zeros((len(means), 1, 1), dtype=numpy.float32),
        metric=Metric(),
        parent=parent,
        left=numpy.array(left, dtype=numpy.int32),
        right=numpy.array(right, dtype=numpy.int32),
        start=start,
        stop=stop,
        diameter=numpy.array([numpy.ptp(means[a:b]) for a, b, _ in nodes], dtype=numpy.float32),
        order=numpy.arange(len(means), dtype=numpy.int32),
    )


def planted_means(entries: int, generator: numpy.random.Generator) -> tuple[Floats, int]:
    """Mean losses [entries] and the number of the best group."""
    groups = generator.uniform(0.5, 0.9, entries // 8)
    best = int(generator.integers(len(groups)))
    groups[best] = 0.1
    return (groups[:, None] + generator.uniform(0, 0.05, (len(groups), 8))).flatten(), best


def made_search(kind: str, means: Floats, rounds: int, seed: int) -> Arms:
    if kind == "flat":
        return FlatSearch(len(means), rounds, NOISE, seed, bonus="paper")
    if kind == "random":
        return RandomSearch(len(means), seed)
    return TreeSearch(oracle_tree(means), rounds, NOISE, seed, bonus="paper")


@functools.cache
def outcome(kind: str, entries: int, rounds: int, seed: int) -> tuple[float, float]:
    """Mean loss beyond the best entry's, summed over rounds, and the share of pulls in the best group."""
    generator = numpy.random.default_rng(seed)
    means, best = planted_means(entries, generator)
    noise = generator.normal(0, NOISE, rounds)
    shuffled = generator.permutation(entries) if kind == "wrong tree" else numpy.arange(entries)
    search = made_search(kind, means[shuffled], rounds, seed)
    for error in noise.tolist():
        entry = search.select()
        search.update(entry, float(means[shuffled[entry]]) + error)
    pulls = search.pulls()[numpy.argsort(shuffled)]
    return float(pulls @ (means - means.min())), float(pulls[8 * best : 8 * best + 8].sum() / rounds)


def regret(kind: str, entries: int, rounds: int = 500) -> float:
    return float(numpy.mean([outcome(kind, entries, rounds, seed)[0] for seed in range(SEEDS)]))


@pytest.mark.parametrize(("entries", "share"), [(16, 0.7), (64, 0.5), (256, 0.25)])
def test_a_good_tree_saves_regret(entries: int, share: float) -> None:
    assert regret("tree", entries) <= share * regret("flat", entries)


def test_nine_pulls_of_ten_are_in_the_best_group_of_many() -> None:
    shares = [outcome("tree", 256, 500, seed)[1] for seed in range(SEEDS)]
    assert numpy.mean(shares) >= 0.9


def test_regret_grows_more_slowly_than_the_number_of_entries() -> None:
    assert regret("tree", 256) < 3 * regret("tree", 16)


def test_regret_grows_more_slowly_than_the_number_of_rounds() -> None:
    assert regret("tree", 16, 2000) < 3.5 * regret("tree", 16, 500)


@pytest.mark.parametrize("entries", [16, 64])
def test_a_wrong_tree_costs_at_most_a_fifth_more_than_none(entries: int) -> None:
    assert regret("wrong tree", entries) <= 1.2 * regret("flat", entries)


@pytest.mark.parametrize("entries", [16, 64, 256])
def test_the_search_beats_chance_but_not_the_truth(entries: int) -> None:
    """Exact comparison has no regret."""
    assert 0 < regret("tree", entries) < 0.2 * regret("random", entries)


@pytest.mark.parametrize("kind", ["tree", "flat"])
def test_with_stored_signatures_the_answer_is_the_nearest_entry(kind: str) -> None:
    """Ten noisy looks at one of 24 entries; the others are further by more than three times the noise of a loss."""
    right = []
    for seed in range(20):
        generator = numpy.random.default_rng(seed)
        sketches = generator.normal(size=(24, 2, 16))
        nearest = int(generator.integers(24))
        found = {}
        for name in (kind, "exact"):
            config = SearchConfig(kind=name, rounds=8)
            search = Searches(config, TaskTree.build(sketches), sketches, 80, seed)
            noise = numpy.random.default_rng(1000 + seed)
            for _ in range(10):
                search.look(sketches[nearest] + NOISE * noise.normal(size=(2, 16)), 1.0)
            found[name] = search.answer()
        assert found["exact"] == [nearest] * 2
        right.append(found[kind] == found["exact"])
    assert numpy.mean(right) >= 0.95
