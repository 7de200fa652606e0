"""Sweeps in this process: what is searched, stopped, confirmed and written down, and how a search goes on."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator import sweep as front
from orchestrator.pages.console import failure_lines
from orchestrator.run import trials
from orchestrator.run.checkpoint import read_json
from orchestrator.run.learner import Learner
from orchestrator.search.objectives import front as pareto
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError
from orchestrator.sweep import launch_sweep
from tests.support.experiments import small_experiment
from tests.support.planted_runs import plant

Make = Callable[..., Experiment]
HERE = ["sweep.concurrent=1", "sweep.confirm=0", "name=swept"]
RATE = "sweep.space.train.learning_rate={loguniform: [1e-5, 1e-1]}"


def near(experiment: Experiment) -> float:
    """Best at a learning rate of 1e-3."""
    return 0.9 - 0.1 * abs(math.log10(experiment.train.learning_rate) + 3)


def lines(experiment: Experiment) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (experiment.folder / "trials.jsonl").read_text().splitlines()]


def test_a_learning_searcher_comes_nearer_to_a_planted_best_than_random_draws(
    small: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, near)
    distance = {}
    for searcher in ("random", "optuna"):
        found = []
        for seed in range(3):
            settings = [f"name={searcher}{seed}", f"seed={seed}", f"sweep.searcher={searcher}", "sweep.trials=25"]
            summary = launch_sweep(small(*HERE[:2], *settings, RATE))
            late = [t["settings"]["train.learning_rate"] for t in summary["trials"] if int(t["id"]) >= 15]
            found += [abs(math.log10(rate) + 3) for rate in late]
        distance[searcher] = sum(found) / len(found)
    assert distance["optuna"] < 0.7 * distance["random"]


def test_the_choice_is_made_on_validation_and_test_scores_cannot_be_seen(
    small: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, near)
    told: list[set[str]] = []
    reported = front.Search.reported

    def listening(self: Any, key: str, metrics: dict[str, Any]) -> Any:
        told.append(set(metrics))
        return reported(self, key, metrics)

    monkeypatch.setattr(front.Search, "reported", listening)
    summary = launch_sweep(small(*HERE, "sweep.space.train.learning_rate=[1e-4, 1e-3, 1e-2]"))
    best = summary["trials"][0]
    assert best["settings"] == {"train.learning_rate": 1e-3} and summary["best"] == best["id"]
    assert best["final_average_accuracy"] == min(t["final_average_accuracy"] for t in summary["trials"])
    assert all(names == {"task", "validation_accuracy", "anytime_validation_accuracy"} for names in told)


def test_a_stopped_trial_says_where_and_why_and_the_best_is_found(
    small: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(monkeypatch, near)
    settings = ["sweep.scheduler=asha", "sweep.space.train.learning_rate=[1e-3, 1e-4, 1e-2, 1e-5]"]
    experiment = small(*HERE, *settings, "benchmark.tasks=5")
    summary = launch_sweep(experiment)
    assert [t["status"] for t in summary["trials"]] == ["finished", "stopped", "stopped", "stopped"]
    assert summary["trials"][0]["settings"] == {"train.learning_rate": 1e-3}
    stopped = {t["id"]: t["stopped"] for t in summary["trials"] if t["stopped"]}
    assert stopped["00001"] | {"text": ""} == {
        "rule": "asha", "tasks": 1, "value": pytest.approx(0.8), "cut_off": 0.9, "among": 2, "text": ""
    }  # fmt: skip
    said = capsys.readouterr().err
    assert f"trial 00001: {stopped['00001']['text']}" in said
    events = [(line["event"], line["trial"]) for line in lines(experiment)]
    assert events[3:7] == [("proposed", 1), ("started", 1), ("stopped", 1), ("ended", 1)]


def test_several_objectives_give_a_front(small: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds are the rank here, and accuracy rises with it up to 4."""
    plant(monkeypatch, lambda experiment: min(experiment.method.rank, 4) / 10)  # type: ignore[attr-defined]
    objectives = "sweep.objectives=[validation_accuracy,seconds]"
    summary = launch_sweep(small(*HERE, objectives, "sweep.space.method.rank=[2,4,8]"))
    ranks = {t["id"]: t["settings"]["method.rank"] for t in summary["trials"]}
    assert sorted(ranks[trial] for trial in summary["front"]) == [2, 4]
    assert ranks[summary["best"]] == 4
    learned = launch_sweep(
        small(*HERE[:2], "name=tpe", objectives, "sweep.searcher=optuna", "sweep.space.method.rank={int: [1, 9]}")
    )
    assert len(learned["front"]) >= 2


def test_the_front_leaves_out_what_another_beats() -> None:
    values = {"a": {"seconds": 1.0, "validation_accuracy": 0.5}, "b": {"seconds": 2.0, "validation_accuracy": 0.5}}
    values["c"] = {"seconds": 3.0, "validation_accuracy": 0.9}
    assert pareto(values, ["validation_accuracy", "seconds"]) == ["a", "c"]


def test_budgets_end_a_search_and_more_of_them_go_on(small: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = plant(monkeypatch, near)
    settings = [*HERE, "sweep.space.train.learning_rate=[1e-5, 1e-4, 1e-3]"]
    summary = launch_sweep(small(*settings, "sweep.budget.trials=2"))
    assert len(summary["trials"]) == 2 and summary["complete"]
    assert launch_sweep(small(*settings, "sweep.budget.trials=2")) == summary and len(ran) == 2
    assert len(launch_sweep(small(*settings))["trials"]) == 3 and len(ran) == 3
    none = launch_sweep(small(*HERE[:2], "name=late", "sweep.budget.seconds=1e-9", "sweep.space.method.rank=[2]"))
    assert none["trials"] == [] and none["best"] is None


def test_a_trial_that_fails_fails_alone_and_says_how_to_repeat_it(small: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(experiment: Experiment) -> float:
        if experiment.method.rank == 4:  # type: ignore[attr-defined]
            raise ZeroDivisionError("planted")
        if experiment.method.rank == 5:  # type: ignore[attr-defined]
            raise UserError("method.rank=5: not today")
        return 0.5

    plant(monkeypatch, failing)
    experiment = small(*HERE, "sweep.space.method.rank=[3,4,5]")
    summary = launch_sweep(experiment)
    failed = {t["settings"]["method.rank"]: t for t in summary["trials"] if t["status"] == "failed"}
    assert failed[4]["error"] == "ZeroDivisionError: planted (all of it in its error.log)"
    assert failed[5]["error"] == "method.rank=5: not today"
    assert "Traceback" in (experiment.folder / failed[4]["folder"] / "error.log").read_text()
    assert summary["best"] == "00000" and not summary["complete"]
    said = "\n".join(failure_lines(summary))
    assert failed[4]["error"] in said and failed[4]["repeat"] in said
    plant(monkeypatch, lambda experiment: 0.6)
    again = launch_sweep(experiment)
    assert [t["attempts"] for t in sorted(again["trials"], key=lambda t: t["id"])] == [1, 2, 2]
    assert again["complete"] and all(t["error"] is None for t in again["trials"])


class Killed(BaseException):
    """Stands for the end of the process."""


def test_a_search_that_is_killed_and_moved_ends_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real runs, killed in the middle of a trial, between two lines of the ledger, and moved to another place."""
    space = ["sweep.space.method.rank={int: [2, 5]}", "sweep.space.method.sparsity={uniform: [0, 0.5]}"]
    settings = [*HERE[:1], "name=swept", "sweep.trials=3", "sweep.searcher=optuna", "sweep.confirm=1", *space]
    settings += ["train.epochs=1", "benchmark.tasks=2", "benchmark.train_per_class=8"]
    whole = launch_sweep(small_experiment(tmp_path / "whole", *settings))
    step, seen = Learner.step, [0]

    def killing(self: Learner, rows: Any, number: int) -> float:
        seen[0] += 1
        if seen[0] in (5, 15):
            raise Killed
        return step(self, rows, number)

    stopped = tmp_path / "stopped"
    with monkeypatch.context() as patched:
        patched.setattr(Learner, "step", killing)
        with pytest.raises(Killed):
            launch_sweep(small_experiment(stopped, *settings))
        with pytest.raises(Killed):
            launch_sweep(small_experiment(stopped, *settings))
    ledger = stopped / "runs" / "swept" / "trials.jsonl"
    ledger.write_text(ledger.read_text() + '{"event": "pro')  # a kill in the middle of a line
    moved = tmp_path / "moved"
    shutil.move(stopped, moved)
    ended = launch_sweep(small_experiment(moved, *settings))

    def essence(summary: dict[str, Any]) -> list[Any]:
        kept = ("id", "settings", "values", "history", "final_average_accuracy", "folder")
        return [{key: trial[key] for key in kept} for trial in summary["trials"]]

    assert essence(ended) == essence(whole)
    assert ended["confirmed"] == whole["confirmed"] and ended["confirmed"]["seeds"] == [1]
    assert sum(line["event"] == "proposed" for line in map(json.loads, ledger_lines(moved))) == 3
    for file in (moved / "runs").rglob("*.json*"):
        assert str(tmp_path) not in file.read_text(), f"{file} holds a path of its own place"


def ledger_lines(folder: Path) -> list[str]:
    return (folder / "runs" / "swept" / "trials.jsonl").read_text().splitlines()


def test_the_choice_is_confirmed_on_fresh_seeds_whose_test_scores_are_the_result(
    small: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = plant(monkeypatch, lambda experiment: near(experiment) - 0.01 * experiment.seed)
    settings = ["sweep.confirm=2", "name=swept", "seed=3", "sweep.space.train.learning_rate=[1e-4, 1e-3]"]
    experiment = small("sweep.concurrent=1", *settings)
    summary = launch_sweep(experiment)
    confirmed = summary["confirmed"]
    assert confirmed["seeds"] == [4, 5] and confirmed["settings"] == {"train.learning_rate": 1e-3}
    assert confirmed["folders"] == ["confirm/swept-seed4", "confirm/swept-seed5"]
    scores = [1 - (0.9 - 0.04 - 0.06), 1 - (0.9 - 0.05 - 0.06)]
    assert confirmed["final_average_accuracy"] == pytest.approx(scores)
    assert confirmed["mean"] == pytest.approx(sum(scores) / 2)
    assert confirmed["standard_error"] == pytest.approx(0.005)
    assert ran == ["swept-00000", "swept-00001", "swept-seed4", "swept-seed5"] and summary["complete"]
    rate = read_json(experiment.folder / "confirm" / "swept-seed4" / "experiment.json")["train"]["learning_rate"]
    assert rate == 1e-3


BAD = {
    "sweep.searcher=magic": "sweep.searcher=magic: should be 'grid', 'random' or 'optuna'",
    "sweep.scheduler=fifo": "sweep.scheduler=fifo: should be ",
    "sweep.protocol=test": "sweep.protocol=test: should be ",
    "sweep.objectives=[test_accuracy]": "sweep.objectives=test_accuracy: should be ",
    "sweep.objectives=[seconds,seconds]": "name each one once",
    "sweep.protocol=transfer": "sweep.transfer names the other stream",
    'sweep.transfer=["benchmark=omniglot"]': "sweep.transfer names the other stream",
    "sweep.space.method.rnk=[1,2]": "sweep.space.method.rnk: no such setting",
    "sweep.trials=3": "sweep.trials=3: the grid has 2 points",
}


@pytest.mark.parametrize("mistake", BAD)
def test_a_mistake_in_a_sweep_is_one_line_and_starts_nothing(
    small: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mistake: str
) -> None:
    monkeypatch.setattr(trials, "run_here", None)
    with pytest.raises(UserError) as refused:
        launch_sweep(small(*HERE, "sweep.space.method.rank=[2,3]", mistake))
    assert BAD[mistake] in str(refused.value)
    assert not (tmp_path / "runs").exists()


def test_a_name_of_another_search_is_refused(small: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, near)
    launch_sweep(small(*HERE, "sweep.space.method.rank=[2]"))
    with pytest.raises(UserError, match=r"holds a run with sweep.space.method.rank=\[2\], not \[3\]"):
        launch_sweep(small(*HERE, "sweep.space.method.rank=[3]"))
    assert launch_sweep(small(*HERE, "sweep.space.method.rank=[2]", "sweep.retries=5"))["complete"]
