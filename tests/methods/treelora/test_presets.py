"""The three readings of TreeLoRA in ``configs/method``: that they load, run, go on where they stopped, and explain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from methods.treelora import TreeLoRAConfig
from orchestrator.launch import train
from orchestrator.settings.compose import load_experiment
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError
from tests.support.blocks import PRESETS, config_of
from tests.support.experiments import small_experiment
from tests.support.interruption import assert_ends_alike

DIGITS = "benchmark=split_digits"
EVERY_STEP = ["method.search.every=1", "method.search.staleness=0"]
TINY = ["benchmark.classes=6", "benchmark.train_per_class=12", "train.epochs=2", "train.batch_size=8", "head=gaussian"]
STEPS = 6  # of each of the three tasks
every_preset = pytest.mark.parametrize("preset", PRESETS)


# --- settings ---


@every_preset
def test_a_preset_is_its_file(preset: str) -> None:
    found = load_experiment([f"method={preset}", DIGITS])
    assert found.method == config_of(preset) and found.method.name == "treelora"
    assert found.name == f"{preset}-split_digits-seed0"


def test_the_presets_differ() -> None:
    printed, released = config_of("treelora_paper"), config_of("treelora_released")
    assert config_of() == TreeLoRAConfig()
    assert (printed.search.observe, printed.tree.split, printed.regulariser.kind) == ("fresh_grad", "l1_mean", "l1")
    assert (released.search.kind, released.tree.split, released.regulariser.kind) == ("released", "dot_mean", "dot_log")


WRONG = {
    "regulariser.strength=-1": "method.regulariser.strength=-1: should be greater than or equal to 0",
    "tree.depth=0": "method.tree.depth=0: should be greater than or equal to 1",
    "tree.budget=1": "method.tree.budget=1: should be greater than or equal to 2",
    "search.confidence=-0.1": "method.search.confidence=-0.1: should be greater than or equal to 0",
    "search.staleness=2": "method.search.staleness=2: should be less than or equal to 1",
    "sketch.width=0": "method.sketch.width=0: should be greater than 0",
    "rank=0": "method.rank=0: should be greater than 0",
    "search.kind=nope": "method.search.kind=nope: should be 'tree', 'flat', 'exact', 'random', 'latest' or 'released'",
    "search.metric=l1": "search.metric=l1 needs sketch.cauchy=256, or sketch.kind=exact",
    "sketch.cauchy=8": "sketch.cauchy estimates L1 distances: set search.metric=l1, or sketch.cauchy=0",
    "tree.bugdet=2": "method.tree.bugdet: no such setting; did you mean method.tree.budget?",
}


@pytest.mark.parametrize(("setting", "told"), WRONG.items(), ids=WRONG.keys())
def test_a_wrong_value_is_one_line_that_names_the_field(setting: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        load_experiment(["method=treelora", DIGITS, f"method.{setting}"])
    assert told in str(caught.value) and "\n" not in str(caught.value)


# --- runs ---


def tiny(folder: Path, preset: str, *settings: str) -> Experiment:
    return small_experiment(folder, f"method={preset}", *EVERY_STEP, *TINY, *settings)


@pytest.fixture(scope="module", params=PRESETS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, Any, str]:
    """A preset's whole run, shared by the tests that look at it."""
    experiment = tiny(tmp_path_factory.mktemp(request.param), request.param, "name=whole")
    return experiment, train(experiment), request.param


def test_a_run_ends_with_a_tree_and_tells_its_search(whole: tuple[Experiment, Any, str]) -> None:
    _, result, preset = whole
    report = result["method_report"]
    assert set(report) == {"tree", "entries", "distances", "pulls", "chosen", "search"}
    assert sorted(node["tasks"] for node in report["tree"]["nodes"] if node["tasks"]) == [[0], [1], [2]]
    assert report["entries"] == [[0], [1], [2]] and [len(row) for row in report["distances"]] == [3] * 3
    levels = 6 if preset == "treelora_released" else 1
    assert [len(row) for row in report["chosen"]] == [0, levels * (STEPS - 1), levels * (STEPS - 1)]
    pulls = {"treelora": 8 * 5, "treelora_paper": 4, "treelora_released": 3 * 6}[preset]
    assert [sum(row) for row in report["pulls"]] == [0, pulls, pulls]
    assert report["search"]["task"] == 2 and [entry["tasks"] for entry in report["search"]["entries"]] == [[0], [1]]


def test_a_stopped_run_ends_like_an_undisturbed_one(tmp_path: Path, whole: tuple[Experiment, Any, str]) -> None:
    other, result, preset = whole
    experiment = tiny(tmp_path, preset, "name=stopped", "checkpoint.every=2")
    assert_ends_alike(experiment, 2, 3, other, result)
