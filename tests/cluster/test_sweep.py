"""Sweeps as Tune trials: searcher, scheduler, confirmation and record on a cluster; tests/orchestrator has the rest."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from orchestrator.run.checkpoint import read_json
from orchestrator.settings.compose import load_experiment
from orchestrator.settings.config import Experiment
from orchestrator.sweep import launch_sweep
from tests.support import planted
from tests.support.experiments import small_experiment

SPACE = ["sweep.space.method.rank=[2,3]", "sweep.space.method.search.confidence={uniform: [0.1, 0.2]}"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Experiment, dict[str, Any]]]:
    """A sweep of two trials over images that were never prepared, on a cluster that starts and ends with it."""
    folder = tmp_path_factory.mktemp("sweep")
    planted.classes(folder / "images", "ant", "bee", "cow")
    settings = ["name=sweep", f"storage={folder / 'runs'}", "train.epochs=1", "train.batch_size=4", *SPACE]
    settings += ["benchmark=image_folder", "benchmark.tasks=3", f"benchmark.path={folder / 'images'}"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("EVERGREEN_CACHE", str(folder / "cache"))
        experiment = load_experiment([*settings, "method.search.every=1", "sweep.confirm=1"])
        yield experiment, launch_sweep(experiment)


@pytest.mark.ray
def test_a_sweep_leaves_its_trials_their_record_and_a_report(swept: tuple[Experiment, dict[str, Any]]) -> None:
    """The second call finds everything done."""
    experiment, summary = swept
    assert [t["status"] for t in summary["trials"]] == ["finished", "finished"]
    assert sorted(t["settings"]["method.rank"] for t in summary["trials"]) == [2, 3]
    for trial in summary["trials"]:
        result = read_json(experiment.folder / trial["folder"] / "result.json")
        assert trial["values"]["validation_accuracy"] == pytest.approx(sum(result["validation_matrix"][-1]) / 3)
        assert result["config"]["method"]["rank"] == trial["settings"]["method.rank"]
    assert summary["confirmed"]["seeds"] == [1] and summary["complete"]
    records_are_complete(experiment)
    assert "<svg" in (experiment.folder / "report.html").read_text()
    assert not (experiment.folder / "tune").exists(), "what Tune notes down is pickled, and nothing reads it"
    before = (experiment.folder / "sweep.json").stat().st_mtime_ns
    assert launch_sweep(experiment) == summary
    assert (experiment.folder / "sweep.json").stat().st_mtime_ns == before


@pytest.mark.ray
def test_the_trials_of_a_sweep_find_their_images_prepared(swept: tuple[Experiment, dict[str, Any]]) -> None:
    made = [file for file in Path(os.environ["EVERGREEN_CACHE"]).rglob("*") if file.is_file()]
    made = [file for file in made if file.suffix != ".lock"]
    assert len(made) == 8, "images, digests, bad files and notes of two splits"
    last = max(file.stat().st_mtime_ns for file in made)
    for trial in swept[1]["trials"]:
        folder = swept[0].folder / trial["folder"]
        assert read_json(folder / "result.json")["prepared_rows"] == 0
        assert (folder / "experiment.json").stat().st_mtime_ns > last, "and nothing is written later"


@pytest.mark.ray
def test_asha_stops_weak_trials_that_optuna_draws(user: ProcessPoolExecutor, tmp_path: Path) -> None:
    """Trials that run at the same time, of which each stop names its rung and every stopped one keeps its numbers."""
    settings = ["name=asha", "sweep.scheduler=asha", "sweep.searcher=optuna", "sweep.trials=4", "sweep.concurrent=2"]
    settings += ["sweep.confirm=0", "train.epochs=1", "sweep.space.train.learning_rate={loguniform: [1e-9, 1e-2]}"]
    experiment = small_experiment(tmp_path, *settings)
    summary = user.submit(launch_sweep, experiment).result()
    assert len(summary["trials"]) == 4 and summary["complete"]
    assert "finished" in {t["status"] for t in summary["trials"]} <= {"finished", "stopped"}
    for trial in summary["trials"]:
        tasks = read_json(experiment.folder / trial["folder"] / "progress.json")["task"]
        assert len(trial["history"]) == tasks == (trial["stopped"]["tasks"] if trial["stopped"] else 3)
        assert not trial["stopped"] or trial["stopped"]["value"] < trial["stopped"]["cut_off"]
    events = [json.loads(line)["event"] for line in (experiment.folder / "trials.jsonl").read_text().splitlines()]
    assert events.count("proposed") == events.count("started") == events.count("ended") == 4


def records_are_complete(experiment: Experiment) -> None:
    """One parent, a child for each trial and confirmation, with parameters once, metrics by task, and the files."""
    client = MlflowClient(f"sqlite:///{experiment.storage / 'mlflow.db'}")
    found = client.get_experiment_by_name("evergreen")
    runs = client.search_runs([found.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert (len(parents), len(children)) == (1, 3)
    for child in children:
        assert child.data.tags["mlflow.parentRunId"] == parents[0].info.run_id
        assert child.info.status == "FINISHED"
        steps = [m.step for m in client.get_metric_history(child.info.run_id, "validation_accuracy")]
        assert steps == [1, 2, 3]
        files = {artifact.path for artifact in client.list_artifacts(child.info.run_id)}
        assert {"result.json", "experiment.json"} <= files
    assert sorted(child.data.params.get("trial.method.rank", "confirmation") for child in children)[:2] == ["2", "3"]
    assert parents[0].data.tags["best_trial"]
