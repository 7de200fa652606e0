"""Sweeps: the space and its checks, and real Tune trials with their record in MLflow."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from ray import tune

from orchestrator.cluster.sweep import domain
from orchestrator.cluster.trial import trial_experiment
from orchestrator.launch import launch_sweep
from orchestrator.run.checkpoint import read_json
from orchestrator.settings.compose import load_experiment
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError
from orchestrator.settings.space import corners, corners_of, samples, space_of
from tests.support import planted
from tests.support.experiments import small_experiment

Make = Callable[..., Experiment]
GRID = ["sweep.space.method.rank=[2,3]", "sweep.space.method.search.confidence={uniform: [0.1, 0.2]}"]


def test_lists_are_a_grid_for_random_search_and_choices_for_one_that_learns() -> None:
    assert domain([4, 8], "random") == {"grid_search": [4, 8]}
    assert domain([4, 8], "optuna").categories == [4, 8]
    drawn = domain({"loguniform": [0.02, 0.5]}, "random")
    assert (drawn.lower, drawn.upper) == (0.02, 0.5)
    assert isinstance(drawn.get_sampler(), tune.search.sample.Float._LogUniform)


def test_the_number_of_trials_is_the_grid_or_a_multiple_of_it(small: Make) -> None:
    space = space_of(small("sweep=rank_sparsity"))
    assert samples(small("sweep=rank_sparsity"), space) == 1
    assert samples(small("sweep.trials=8"), space) == 2
    with pytest.raises(UserError, match=r"sweep.trials=6: the grid has 4 points"):
        samples(small("sweep.trials=6"), space)


@pytest.mark.parametrize(
    "value", [[], 4, {"uniform": [1, 0]}, {"loguniform": [0, 1]}, {"normal": [0, 1]}, {"uniform": [0]}, {}]
)
def test_entries_that_are_no_space_are_refused(value: object) -> None:
    with pytest.raises(UserError, match=r"sweep\.space\.method\.rank="):
        corners("method.rank", value)


def test_every_corner_of_the_space_is_checked(small: Make) -> None:
    with pytest.raises(UserError, match=r"method.sparsity=1.5: should be less than 1"):
        corners_of(small(), {"method.sparsity": {"uniform": [0.5, 1.5]}})


def test_the_methods_own_space_is_the_default(small: Make) -> None:
    assert "method.sparsity" in space_of(small())
    assert space_of(small(*GRID)) == {"method.rank": [2, 3], "method.search.confidence": {"uniform": [0.1, 0.2]}}


def test_a_trial_differs_from_its_sweep_in_its_settings_and_folder_only(small: Make) -> None:
    sweep = small("name=sweep")
    trial = trial_experiment(sweep, {"method.rank": 3}, "ab12_00000")
    assert trial.folder == sweep.folder / "trials" / "sweep-ab12_00000"
    expected = sweep.identity()
    expected["method"]["rank"] = 3
    assert trial.identity() == expected


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Experiment, dict[str, Any]]]:
    """A sweep of two trials over images that were never prepared, on a cluster that starts and ends with it."""
    folder = tmp_path_factory.mktemp("sweep")
    planted.classes(folder / "images", "ant", "bee", "cow")
    settings = ["name=sweep", f"storage={folder / 'runs'}", "train.epochs=1", "train.batch_size=4", *GRID]
    settings += ["benchmark=image_folder", "benchmark.tasks=3", f"benchmark.path={folder / 'images'}"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("EVERGREEN_CACHE", str(folder / "cache"))
        experiment = load_experiment([*settings, "method.search.every=1"])
        yield experiment, launch_sweep(experiment)


@pytest.mark.ray
def test_a_sweep_leaves_its_trials_their_record_and_a_report(swept: tuple[Experiment, dict[str, Any]]) -> None:
    """Two trials in their drivers' processes; the second call finds everything done."""
    experiment, summary = swept
    assert [t["status"] for t in summary["trials"]] == ["finished", "finished"]
    assert sorted(t["settings"]["method.rank"] for t in summary["trials"]) == [2, 3]
    objectives = [t["objective"] for t in summary["trials"]]
    assert objectives == sorted(objectives, reverse=True)
    assert summary["best"] == summary["trials"][0]["id"]
    for trial in summary["trials"]:
        result = read_json(Path(trial["folder"]) / "result.json")
        assert trial["objective"] == pytest.approx(sum(result["validation_matrix"][-1]) / 3)
        assert result["config"]["method"]["rank"] == trial["settings"]["method.rank"]
    records_are_complete(experiment)
    assert "<svg" in (experiment.folder / "report.html").read_text()
    before = (experiment.folder / "sweep.json").stat().st_mtime_ns
    assert launch_sweep(experiment) == summary
    assert (experiment.folder / "sweep.json").stat().st_mtime_ns == before


@pytest.mark.ray
def test_the_trials_of_a_sweep_find_their_images_prepared(swept: tuple[Experiment, dict[str, Any]]) -> None:
    made = [file for file in Path(os.environ["EVERGREEN_CACHE"]).rglob("*") if file.is_file()]
    made = [file for file in made if file.suffix != ".lock"]
    assert len(made) == 4, "images and bad files of two splits"
    last = max(file.stat().st_mtime_ns for file in made)
    for trial in swept[1]["trials"]:
        folder = Path(trial["folder"])
        assert read_json(folder / "result.json")["prepared_rows"] == 0
        assert (folder / "experiment.json").stat().st_mtime_ns > last, "and nothing is written later"


@pytest.mark.ray
def test_asha_stops_weak_trials_that_optuna_draws(user: ProcessPoolExecutor, tmp_path: Path) -> None:
    """Whatever it stops, it stops at a whole number of tasks, and at least one trial ends."""
    settings = ["name=asha", "sweep.scheduler=asha", "sweep.searcher=optuna", "sweep.trials=3", "sweep.concurrent=2"]
    summary = user.submit(launch_sweep, small_experiment(tmp_path, *settings, "train.epochs=1", *GRID)).result()
    statuses = [t["status"] for t in summary["trials"]]
    assert len(statuses) == 3
    assert set(statuses) <= {"finished", "stopped"}
    assert "finished" in statuses
    assert all(0.1 <= t["settings"]["method.search.confidence"] <= 0.2 for t in summary["trials"])
    for trial in summary["trials"]:
        tasks = read_json(Path(trial["folder"]) / "progress.json")["task"]
        assert (tasks == 3) == (trial["status"] == "finished") or trial["status"] == "stopped"


def records_are_complete(experiment: Experiment) -> None:
    """One parent, a child for each trial, with parameters once, metrics by task, and the files."""
    client = MlflowClient(f"sqlite:///{experiment.storage / 'mlflow.db'}")
    found = client.get_experiment_by_name("evergreen")
    runs = client.search_runs([found.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert (len(parents), len(children)) == (1, 2)
    for child in children:
        assert child.data.tags["mlflow.parentRunId"] == parents[0].info.run_id
        assert child.info.status == "FINISHED"
        assert child.data.params["trial.method.rank"] in ("2", "3")
        steps = [m.step for m in client.get_metric_history(child.info.run_id, "validation_accuracy")]
        assert steps == [1, 2, 3]
        files = {artifact.path for artifact in client.list_artifacts(child.info.run_id)}
        assert {"result.json", "report.html", "experiment.json"} <= files
    assert parents[0].data.tags["best_trial"]
