"""Importance of settings: what was planted is found, and what cannot be judged is said; and the axes it shares."""

from __future__ import annotations

from typing import Any

import numpy as np
import optuna
import pytest

from orchestrator.pages.importance import FEWEST, importance
from orchestrator.pages.scales import scale_of


def drawn(count: int, **settings: Any) -> list[dict[str, Any]]:
    """Trials with each setting drawn from a list, or between two numbers where it is a tuple."""
    numbers = np.random.default_rng(1)

    def draw(space: Any) -> Any:
        return float(numbers.uniform(*space)) if isinstance(space, tuple) else space[int(numbers.integers(len(space)))]

    return [{name: draw(space) for name, space in settings.items()} for _ in range(count)]


def test_a_setting_that_decides_alone_has_nearly_all_of_it() -> None:
    trials = drawn(60, noise=(0.0, 1.0), kind=["a", "b", "c"], lists=[[1, 2], [3]], flag=[True, False], rank=[2, 4, 8])
    for name, effect in (("kind", {"a": 0.1, "b": 0.5, "c": 0.3}), ("lists", {"[1, 2]": 0.1, "[3]": 0.2})):
        values = [effect[trial[name] if name == "kind" else str(trial[name])] for trial in trials]
        found = importance("value", trials, values)
        assert next(iter(found.shares)) == name and found.shares[name] > 0.95
        assert sum(found.shares.values()) == pytest.approx(1) and len(found.shares) == 5
        assert (found.trials, found.missing, found.left_out) == (60, "", [])


def test_two_effects_have_their_shares_of_the_variance() -> None:
    trials = drawn(400, one=(0.0, 1.0), two=(0.0, 1.0), other=(0.0, 1.0))
    found = importance("value", trials, [3 * trial["one"] + trial["two"] for trial in trials])
    assert found.shares["one"] == pytest.approx(0.9, abs=0.03)
    assert found.shares["two"] == pytest.approx(0.1, abs=0.03)


def test_settings_that_not_all_trials_have_are_left_out_and_named() -> None:
    trials = drawn(20, kind=["a", "b"], rank=[2, 4], strength=(0.0, 1.0))
    for trial in trials:
        if trial["kind"] == "a":
            del trial["strength"]
    found = importance("value", trials, [float(trial["kind"] == "a") for trial in trials])
    assert found.left_out == ["strength"] and set(found.shares) == {"kind", "rank"}


@pytest.mark.parametrize(
    ("trials", "values", "missing"),
    [
        (
            [{"a": 1, "b": 2}] * 3,
            [0.1, 0.2, 0.3],
            f"it takes at least {FEWEST} trials with this value, and there are 3",
        ),
        (drawn(20, a=[1, 2], b=[7]), list(range(20)), "fewer than two settings differ between these trials"),
        (drawn(20, a=[1, 2], b=[1, 2]), [0.5] * 20, "all these trials have the same value"),
        ([], [], f"it takes at least {FEWEST} trials with this value, and there are 0"),
    ],
)
def test_where_nothing_can_be_told_the_reason_is(trials: list[Any], values: list[float], missing: str) -> None:
    found = importance("value", trials, values)
    assert (found.shares, found.missing) == ({}, missing)


def test_optuna_says_as_much_as_before(capsys: pytest.CaptureFixture[str]) -> None:
    before = optuna.logging.get_verbosity()
    importance("value", drawn(20, a=[1, 2], b=[1, 2]), [float(n) for n in range(20)])
    assert optuna.logging.get_verbosity() == before
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("values", "labels", "stepped"),
    [
        ([8, 2, 4, 2], ["2", "4", "8"], True),
        ([1e-5, 1e-2, 1e-3], ["1e-05", "0.0001", "0.001", "0.01"], False),
        ([0.01, 0.4], ["0.01", "0.03", "0.1", "0.3"], False),
        ([0.1, 0.25, 0.5], ["0.1", "0.2", "0.3", "0.4", "0.5"], False),
        ([1, 0.5], ["0.5", "0.6", "0.7", "0.8", "0.9", "1"], False),
        ([True, "auto", None, 4, [1, 2], 2], ["2", "4", "[1, 2]", "auto", "null", "true"], True),
        ([0.5], ["0.5"], False),
        ([float("inf"), 0.5], ["0.5", "inf"], True),
        (list(range(10)), ["0", "2", "4", "6", "8"], False),
    ],
)
def test_axes_of_settings(values: list[Any], labels: list[str], stepped: bool) -> None:
    scale = scale_of(values)
    assert (list(scale.ticks.values()), scale.stepped) == (labels, stepped)
    assert all(0 <= scale.share(value) <= 1 for value in values)
    assert all(0 <= scale.shared(tick) <= 1 for tick in scale.ticks)
    numeric = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    places = [scale.place(value) for value in sorted(numeric)]
    assert places == sorted(places)
