"""The space of a sweep: every form of an entry, conditions, and what is refused before anything starts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.search.searchers import grid_of, number_of_trials, propose
from orchestrator.search.space import Entry, check_space, space_of
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError

Make = Callable[..., Experiment]


def spaced(small: Make, space: dict[str, Any], *settings: str) -> Experiment:
    made = small(*settings)
    return made.model_copy(update={"sweep": made.sweep.model_copy(update={"space": space})})


def drawn(experiment: Experiment, count: int) -> list[dict[str, Any]]:
    entries = space_of(experiment)
    return [propose(experiment, entries, number, []) for number in range(count)]


@pytest.mark.parametrize("searcher", ["random", "optuna"])
def test_draws_stay_in_their_ranges_and_whole_numbers_are_whole(small: Make, searcher: str) -> None:
    space = {
        "method.rank": {"logint": [1, 16]},
        "train.batch_size": {"uniform": [4, 8]},
        "train.epochs": {"int": [1, 9, 4]},
        "method.sparsity": {"uniform": [0.0, 0.9]},
        "train.learning_rate": {"loguniform": [1e-5, 1e-2]},
        "method.adapter": {"choice": ["shared", "per_task_fresh"]},
    }
    found = drawn(spaced(small, space, f"sweep.searcher={searcher}"), 24)
    assert {type(one["train.batch_size"]) for one in found} == {int}
    assert {one["train.epochs"] for one in found} == {1, 5, 9}
    assert all(1 <= one["method.rank"] <= 16 and 4 <= one["train.batch_size"] <= 8 for one in found)
    assert all(0 <= one["method.sparsity"] <= 0.9 for one in found)
    logarithms = [math.log10(one["train.learning_rate"]) for one in found]
    assert min(logarithms) < -4 and max(logarithms) > -3, "spread over the decades"
    assert {one["method.adapter"] for one in found} == {"shared", "per_task_fresh"}


def test_a_small_logint_range_draws_both_ends_as_often_as_their_logarithms_say(small: Make) -> None:
    counts = {1: 0, 2: 0, 3: 0}
    for one in drawn(spaced(small, {"method.rank": {"logint": [1, 3]}}), 3000):
        counts[one["method.rank"]] += 1
    widths = {n: math.log((n + 0.5) / (n - 0.5)) / math.log(7) for n in counts}
    assert all(abs(counts[n] / 3000 - widths[n]) < 0.04 for n in counts)


def test_a_trial_draws_the_same_wherever_the_search_goes_on(small: Make) -> None:
    experiment = spaced(small, {"method.rank": [2, 4], "train.learning_rate": {"loguniform": [1e-5, 1e-2]}})
    entries = space_of(experiment)
    assert propose(experiment, entries, 5, []) == drawn(experiment, 6)[5]
    assert [one["method.rank"] for one in drawn(experiment, 4)] == [2, 4, 2, 4]
    other = experiment.model_copy(update={"seed": 1})
    assert drawn(other, 6)[5] != drawn(experiment, 6)[5]


CONDITIONAL = {
    "method.regulariser.kind": ["none", "l1"],
    "method.regulariser.strength": {"choice": [0.1, 1.0], "unless": {"method.regulariser.kind": "none"}},
}


def test_an_entry_counts_only_where_its_condition_holds(small: Make) -> None:
    experiment = spaced(small, CONDITIONAL, "sweep.searcher=grid")
    points = grid_of(experiment, space_of(experiment))
    assert points == [
        {"method.regulariser.kind": "none"},
        {"method.regulariser.kind": "l1", "method.regulariser.strength": 0.1},
        {"method.regulariser.kind": "l1", "method.regulariser.strength": 1.0},
    ]
    assert number_of_trials(experiment, space_of(experiment)) == 3
    for one in drawn(spaced(small, CONDITIONAL), 8):
        assert ("method.regulariser.strength" in one) == (one["method.regulariser.kind"] != "none")


def test_the_order_of_entries_does_not_matter_for_conditions(small: Make) -> None:
    turned = dict(reversed(CONDITIONAL.items()))
    keys = [entry.key for entry in space_of(spaced(small, turned))]
    assert keys == ["method.regulariser.kind", "method.regulariser.strength"]


def test_a_value_brings_its_own_settings(small: Make) -> None:
    space = {"method.rank": {"grid": [2, 8], "with": {"8": {"train.epochs": 1, "method": {"sparsity": 0.5}}}}}
    experiment = spaced(small, space)
    first, second = drawn(experiment, 2)
    assert first == {"method.rank": 2}
    assert second == {"method.rank": 8, "train.epochs": 1, "method.sparsity": 0.5}
    assert [one.train.epochs for one in check_space(experiment, space_of(experiment))] == [2, 1]


def test_the_seed_may_be_a_dimension(small: Make) -> None:
    experiment = spaced(small, {"seed": [0, 1, 2]})
    assert [one.seed for one in check_space(experiment, space_of(experiment))] == [0, 1, 2]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no values": ({"method.rank": []}, "method.rank=[]: write"),
    "a number": ({"method.rank": 4}, "method.rank=4: write"),
    "falling": ({"method.sparsity": {"uniform": [1, 0]}}, "method.sparsity={'uniform': [1, 0]}: write"),
    "logarithm of 0": ({"method.sparsity": {"loguniform": [0, 1]}}, "method.sparsity="),
    "unknown kind": ({"method.sparsity": {"normal": [0, 1]}}, "method.sparsity="),
    "two kinds": ({"method.rank": {"int": [1, 2], "choice": [1]}}, "method.rank="),
    "a fraction of a rank": ({"method.rank": {"uniform": [1.5, 4]}}, "takes whole numbers"),
    "twice": ({"method.rank": [4, 4]}, "name each value once"),
    "out of range": ({"method.sparsity": {"uniform": [0.5, 1.5]}}, "method.sparsity=1.5: should be less than 1"),
    "no setting": ({"method.rnk": [2]}, "method.rnk: no such setting; did you mean method.rank?"),
    "where it lies": ({"storage": ["a", "b"]}, "storage: the same for all trials"),
    "the search itself": ({"sweep.trials": [1, 2]}, "sweep.trials: the same for all trials"),
    "a condition on nothing": (
        {"method.rank": {"choice": [2], "when": {"method.kind": "x"}}},
        "names method.kind, which is no setting",
    ),
    "a condition that never holds": (
        {"method.rank": {"choice": [2], "when": {"method.adapter": "per_task_fresh"}}},
        "its condition never holds",
    ),
    "a condition on no value": (
        {"method.rank": {"choice": [2], "when": {"train.epochs": 7}}, "train.epochs": [1, 2]},
        "its condition on train.epochs holds for none of its values",
    ),
    "a circle": (
        {
            "method.rank": {"choice": [2], "when": {"train.epochs": 1}},
            "train.epochs": {"choice": [1], "when": {"method.rank": 2}},
        },
        "go in a circle",
    ),
    "with a value that is none": ({"method.rank": {"choice": [2], "with": {"3": {"seed": 1}}}}, "method.rank.with="),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_wrong_entry_is_refused(small: Make, mistake: str) -> None:
    space, expected = WRONG[mistake]
    experiment = spaced(small, space)
    with pytest.raises(UserError) as refused:
        check_space(experiment, space_of(experiment))
    assert expected in str(refused.value)


def test_every_method_has_a_space_whose_ends_are_experiments(small: Make) -> None:
    for method in ("treelora", "lora", "sdlora", "gorp"):
        experiment = small(f"method={method}")
        assert check_space(experiment, space_of(experiment))


def test_searchers_refuse_numbers_that_do_not_fit(small: Make) -> None:
    both = {"method.rank": [2, 4], "method.sparsity": {"uniform": [0, 0.5]}}
    assert number_of_trials(spaced(small, both), space_of(spaced(small, both))) == 2
    experiment = spaced(small, both, "sweep.trials=3")
    with pytest.raises(UserError, match=r"sweep.trials=3: the grid has 2 points; choose a multiple"):
        number_of_trials(experiment, space_of(experiment))
    experiment = spaced(small, both, "sweep.searcher=grid")
    with pytest.raises(UserError, match=r"sweep.space.method.sparsity: searcher grid needs"):
        number_of_trials(experiment, space_of(experiment))
    stepped = spaced(small, {"method.sparsity": {"uniform": [0, 0.5, 0.25]}}, "sweep.searcher=grid")
    assert [point["method.sparsity"] for point in grid_of(stepped, space_of(stepped))] == [0, 0.25, 0.5]


def test_entries_know_their_points() -> None:
    assert Entry("a", "int", [2, 9, 3]).points() == [2, 5, 8]
    assert Entry("a", "uniform", [0, 0.3, 0.1]).points() == [0, 0.1, 0.2, 0.3]
    assert Entry("a", "loguniform", [1, 2]).points() is None
