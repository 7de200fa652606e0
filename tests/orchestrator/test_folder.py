"""Whose a run's folder is: experiments as earlier and later versions wrote them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.run.folder import claim, claim_sweep, is_finished
from orchestrator.settings.compose import load_experiment
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    return [f"storage={tmp_path}", "name=a"]


def begun(experiment: Experiment, edit: Edit, take: Callable[[Experiment], Any] = claim) -> bytes:
    """A folder with work of another version in it, which wrote experiment.json as ``edit`` leaves it."""
    take(experiment)
    file = experiment.folder / "experiment.json"
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))
    (experiment.folder / "checkpoints").mkdir()
    return file.read_bytes()


def without(*keys: str) -> Edit:
    def edit(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return edit


def with_entry(value: Any, *keys: str) -> Edit:
    def edit(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return edit


ABSENT = [
    ("order_seed",),
    ("head",),
    ("benchmark", "first"),
    ("train", "accumulate"),
    ("benchmark", "text", "add_dataset_name"),
    ("method", "search", "staleness"),
]


@pytest.mark.parametrize("keys", ABSENT, ids=".".join)
def test_a_setting_that_is_new_since_a_run_began_has_its_default(settings: list[str], keys: tuple[str, ...]) -> None:
    experiment = load_experiment(settings)
    before = begun(experiment, without(*keys))
    assert not claim(experiment)
    assert (experiment.folder / "experiment.json").read_bytes() == before


OTHERS = [
    (("order_seed",), "order_seed=3", "order_seed=None, not 3"),
    (("benchmark", "first"), "benchmark.first=2", "benchmark.first=None, not 2"),
    (("train", "accumulate"), "train.accumulate=2", "train.accumulate=1, not 2"),
    (("method", "search", "staleness"), "method.search.staleness=0", "method.search.staleness=1, not 0"),
]


@pytest.mark.parametrize(("keys", "setting", "holds"), OTHERS)
def test_another_value_of_a_new_setting_makes_another_run(
    settings: list[str], keys: tuple[str, ...], setting: str, holds: str
) -> None:
    experiment = load_experiment([*settings, setting])
    begun(experiment, without(*keys))
    with pytest.raises(UserError) as caught:
        is_finished(experiment)
    assert str(caught.value) == (
        f"name=a: {experiment.folder} holds a run with {holds}; choose another name=… or remove that folder"
    )


def test_a_run_from_before_there_was_a_first_rate_had_one_for_all_tasks(settings: list[str]) -> None:
    begun(load_experiment(settings), without("train", "first_learning_rate"))
    with pytest.raises(UserError, match=r"holds a run with train.first_learning_rate=None, not 0.001"):
        claim(load_experiment(settings))
    assert not claim(load_experiment([*settings, "train.first_learning_rate=null"]))


UNKNOWN = [
    ((3, "future"), "future: no such setting"),
    ((3, "benchmark", "firsts"), "benchmark.firsts: no such setting; did you mean benchmark.first?"),
    ((3, "method", "search", "width"), "method.search.width: no such setting"),
    (("lorax", "method", "name"), "method=lorax: choose one of "),
    ((-1, "train", "epochs"), "train.epochs=-1: should be greater than 0"),
]


@pytest.mark.parametrize(("entry", "reason"), UNKNOWN)
def test_what_this_version_does_not_know_is_named(settings: list[str], entry: tuple[Any, ...], reason: str) -> None:
    experiment = load_experiment(settings)
    before = begun(experiment, with_entry(*entry))
    with pytest.raises(UserError) as caught:
        claim(experiment)
    said = str(caught.value)
    assert said.startswith(
        f"name=a: {experiment.folder} has an experiment.json that this version cannot read ({reason}"
    )
    assert said.endswith("; choose another name=… or remove that folder") and "\n" not in said
    assert (experiment.folder / "experiment.json").read_bytes() == before


def test_what_is_being_written_of_a_start_is_no_stranger(settings: list[str]) -> None:
    """The driver of a sweep writes the note of a trial's record while the trial makes its folder."""
    experiment = load_experiment(settings)
    experiment.folder.mkdir()
    for name in ("mlflow.json.123.new", "experiment.json.124.new", "lock.json.125", "system.jsonl"):
        (experiment.folder / name).write_text("")
    assert not claim(experiment)


@pytest.mark.parametrize("name", ["mlflow.db", "holiday.png", "experiment.jsonl"])
def test_a_folder_of_something_else_is_left_alone(settings: list[str], name: str) -> None:
    experiment = load_experiment(settings)
    experiment.folder.mkdir()
    (experiment.folder / name).write_text("")
    with pytest.raises(UserError, match="exists and is no run"):
        claim(experiment)


def test_a_list_is_no_experiment(settings: list[str]) -> None:
    experiment = load_experiment(settings)
    begun(experiment, without("head"))
    (experiment.folder / "experiment.json").write_text("[1]")
    with pytest.raises(UserError, match=r"has an experiment.json that this version cannot read \("):
        claim(experiment)


def test_a_sweep_without_a_new_search_setting_goes_on(settings: list[str]) -> None:
    sweep = load_experiment([*settings, "sweep.trials=4"])
    begun(sweep, without("sweep", "searcher"), claim_sweep)
    claim_sweep(sweep)
    with pytest.raises(UserError, match=r"holds a run with sweep.trials=4, not 5"):
        claim_sweep(load_experiment([*settings, "sweep.trials=5"]))


def test_a_runs_folder_is_no_sweeps_and_the_reverse(settings: list[str]) -> None:
    """Not even where the search settings are the defaults, which an earlier version of a sweep might have left out."""
    begun(load_experiment(settings), lambda content: None)
    with pytest.raises(UserError, match=r"holds a run with sweep=None, not \{"):
        claim_sweep(load_experiment(settings))
    other = [*settings, "name=b"]
    begun(load_experiment(other), lambda content: None, claim_sweep)
    with pytest.raises(UserError, match=r"holds a run with sweep=\{.*\}, not None"):
        claim(load_experiment(other))
