"""Which trials a scheduler stops, on numbers whose right answer is known."""

from __future__ import annotations

import random

from orchestrator.search.stopping import bracket, decide, rungs
from orchestrator.settings.config import SweepConfig


def run(sweep: SweepConfig, length: int, curves: dict[int, list[float]], order: list[int]) -> dict[int, int]:
    """Tasks that each trial learns if trials go through their curves one after another in ``order``."""
    values: dict[int, dict[int, float]] = {}
    ended = {}
    for trial in order:
        own = values.setdefault(trial, {})
        for tasks in range(1, length + 1):
            own[tasks] = curves[trial][tasks - 1]
            if decide(sweep, length, trial, tasks, values):
                break
        ended[trial] = tasks
    return ended


HALVES = SweepConfig(scheduler="asha", reduction=2)


def test_asha_keeps_the_best_half_of_those_that_reached_a_rung_so_far() -> None:
    sweep = HALVES
    values = {0: {1: 0.9}, 1: {1: 0.7}, 2: {1: 0.8}}
    assert decide(sweep, 8, 0, 1, {0: values[0]}) is None, "the first one is the best half of itself"
    stop = decide(sweep, 8, 1, 1, values)
    assert stop is not None
    assert (stop.rule, stop.tasks, stop.value, stop.cut_off, stop.among) == ("asha", 1, 0.7, 0.8, 3)
    assert stop.text == ("stopped after task 1: average anytime validation accuracy 0.7000 < 0.8000, the best 2 of 3")
    assert decide(sweep, 8, 2, 1, values) is None, "equal to the cut-off goes on"


def test_what_is_equal_at_a_rung_is_told_apart_by_the_tasks_that_follow() -> None:
    """The first task is learned without a mistake by all four; rungs are at 1 and 3 tasks."""
    sweep = SweepConfig(scheduler="asha")
    values = {0: {1: 1.0, 2: 0.9}, 1: {1: 1.0, 2: 0.8}, 2: {1: 1.0}, 3: {1: 1.0, 2: 0.95, 3: 0.2}}
    assert decide(sweep, 8, 2, 1, values) is None, "equal to all"
    assert decide(sweep, 8, 0, 2, values) is None, "the second of the two that pass"
    stop = decide(sweep, 8, 1, 2, values)
    assert stop is not None and (stop.tasks, stop.value, stop.cut_off, stop.among) == (2, 0.8, 0.9, 4)
    assert stop.text == "stopped after task 2: average anytime validation accuracy 0.8000 < 0.9000, the best 2 of 4"


def test_who_passed_a_rung_early_is_compared_with_those_that_reach_it_later() -> None:
    values = {0: {1: 0.5, 2: 0.5}, 1: {1: 0.9}, 2: {1: 0.8}}
    assert decide(SweepConfig(scheduler="asha"), 8, 0, 1, {0: {1: 0.5}}) is None
    stop = decide(SweepConfig(scheduler="asha"), 8, 0, 2, values)
    assert stop is not None and (stop.tasks, stop.value, stop.cut_off) == (2, 0.5, 0.9)
    assert stop.text.endswith("0.5000 < 0.9000, the best 1 of 3 after task 1")


def test_rungs_are_powers_of_the_reduction_and_never_the_end() -> None:
    assert rungs(HALVES, 8, 0) == [1, 2, 4]
    assert rungs(SweepConfig(scheduler="asha", grace=2, reduction=3), 20, 0) == [2, 6, 18]
    assert rungs(SweepConfig(scheduler="asha", grace=5), 5, 0) == []
    sweep = HALVES
    assert decide(sweep, 8, 1, 3, {0: {3: 1.0}, 1: {2: 0.0, 3: 0.0}}) is None, "who has not reached a rung is no rival"
    assert decide(sweep, 4, 1, 4, {0: {4: 1.0}, 1: {4: 0.0}}) is None, "a trial that has learned all is finished"


def test_trials_are_compared_at_equal_numbers_of_tasks_only() -> None:
    """Accuracy over the tasks seen so far falls with the tasks: compared at any time, the trial ahead would lose."""
    sweep = SweepConfig(scheduler="asha")
    ahead, behind = [0.9, 0.8, 0.7, 0.6, 0.5], [0.85, 0.75, 0.65, 0.55, 0.45]
    assert run(sweep, 5, {0: ahead, 1: behind}, [0, 1]) == {0: 5, 1: 1}


def test_a_planted_best_trial_survives_in_any_order() -> None:
    source = random.Random(0)
    for scheduler in ("asha", "median", "hyperband"):
        learned = 0
        for _ in range(20):
            quality = [source.random() for _ in range(12)]
            curves = {trial: [value - 0.02 * task for task in range(8)] for trial, value in enumerate(quality)}
            order = source.sample(range(12), 12)
            ended = run(SweepConfig(scheduler=scheduler), 8, curves, order)
            assert ended[max(curves, key=lambda trial: curves[trial][0])] == 8
            learned += sum(ended.values())
        assert learned < 0.9 * 20 * 12 * 8, "and something is saved"


def test_the_median_needs_three_others_and_counts_them() -> None:
    sweep = SweepConfig(scheduler="median")
    values = {trial: {2: value} for trial, value in enumerate([0.5, 0.6, 0.7, 0.4])}
    stop = decide(sweep, 9, 3, 2, values)
    assert stop is not None and (stop.cut_off, stop.among) == (0.6, 4)
    assert decide(sweep, 9, 3, 2, {key: values[key] for key in (0, 1, 3)}) is None
    assert decide(SweepConfig(scheduler="median", grace=3), 9, 3, 2, values) is None


def test_hyperband_compares_within_brackets_and_one_bracket_stops_nobody() -> None:
    sweep = SweepConfig(scheduler="hyperband", reduction=2)
    assert [bracket(sweep, 8, trial) for trial in range(5)] == [0, 1, 2, 3, 0]
    assert [rungs(sweep, 8, number) for number in range(4)] == [[1, 2, 4], [2, 4], [4], []]
    values = {0: {1: 0.9}, 1: {1: 0.8}, 4: {1: 0.1}}
    assert decide(sweep, 8, 1, 1, values) is None
    stop = decide(sweep, 8, 4, 1, values)
    assert stop is not None and stop.among == 2, "trial 1 is in another bracket"


def test_a_search_that_goes_on_decides_as_one_that_was_never_stopped() -> None:
    """The rule sees numbers alone: those read from files after a stop give the decision of those that were reported."""
    sweep = HALVES
    values = {0: {1: 0.5, 2: 0.5, 3: 0.4}, 1: {1: 0.6, 2: 0.4}}
    early = {0: {1: 0.5, 2: 0.5}, 1: {1: 0.6, 2: 0.4}}
    assert decide(sweep, 8, 1, 2, values) == decide(sweep, 8, 1, 2, early)
