"""The record of runs in real MLflow databases: whole, sent once, and mended where something was lost or moved."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas
import pytest
from mlflow import MlflowClient
from mlflow.tracking._tracking_service import utils

from orchestrator.records import record
from orchestrator.records.address import database_file, database_uri
from orchestrator.records.connection import Connection
from orchestrator.records.sync import sync_record
from orchestrator.records.tracking import Tracker
from orchestrator.run.checkpoint import write_json
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError
from tests.support.record import artifacts, records, steps, table

Small = Callable[..., Experiment]
TASKS = 3


@pytest.fixture(scope="module", autouse=True)
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's migrations take seconds: made once, and copied for each test."""
    file = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(database_uri(file)).search_experiments()
    return file


@pytest.fixture
def make(
    small: Small, empty_database: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Small]:
    """Experiments with a record in this test's folder, and none in the folder where the command is started."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    started = tmp_path_factory.mktemp("started")
    monkeypatch.chdir(started)

    def made(*settings: str) -> Experiment:
        experiment = small("tracking.enabled=true", "method=lora", *settings)
        experiment.storage.mkdir(parents=True, exist_ok=True)
        if not (experiment.storage / "mlflow.db").exists():
            shutil.copy(empty_database, experiment.storage / "mlflow.db")
        return experiment

    yield made
    assert list(started.iterdir()) == []


def uri(experiment: Experiment) -> str:
    return database_uri(experiment.storage / "mlflow.db")


def history(tasks: int) -> dict[str, Any]:
    return {
        "task": tasks,
        "history": [
            {"task": t, "test_accuracy": 0.5, "validation_accuracy": t / 10000, "loss": 1.0}
            for t in range(1, tasks + 1)
        ],
    }


def learn(folder: Path, tasks: int) -> None:
    """What a run's own process writes once it has learned ``tasks`` tasks."""
    write_json(folder / "progress.json", history(tasks))


RESULT: dict[str, Any] = {
    "method": "lora",
    "benchmark": "split_digits",
    "config": {"benchmark": {"name": "split_digits", "source": "digits", "path": None}},
    "task_names": ["a", "b", "b"],
    "accuracy_matrix": [[0.9, 0.1, 0.2], [0.8, 0.7, 0.3], [0.6, 0.5, 0.4]],
    "validation_matrix": [[1.0, 0.0, 0.0]] * 3,
    "unmasked_matrix": [],
    "final_average_accuracy": 0.5,
    "forgetting": 0.25,
    "seconds": {"total": 2.0},
    "peak_memory_bytes": 1000,
    "method_report": {"tree": {"nodes": [{"depth": 0, "tasks": None}, {"depth": 1, "tasks": [0, 2]}]}},
    "data": {"sha256": "ab" * 32, "tasks": []},
}


def begun(experiment: Experiment) -> Tracker:
    folder = experiment.folder
    write_json(folder / "experiment.json", experiment.identity())
    tracker = Tracker(experiment)
    tracker.begin(folder, experiment.name, experiment.identity())
    return tracker


def finished(experiment: Experiment, tasks: int = TASKS) -> None:
    tracker = begun(experiment)
    learn(experiment.folder, tasks)
    write_json(experiment.folder / "result.json", RESULT)
    tracker.end(experiment.folder)


def test_a_finished_run_is_recorded_whole(make: Small) -> None:
    experiment = make("name=whole")
    finished(experiment)
    (run,) = records(uri(experiment))
    assert (run.info.run_name, run.info.status) == ("whole", "FINISHED")
    assert run.data.params["method.name"] == "lora" and run.data.params["seed"] == "0"
    assert steps(uri(experiment), run, "validation_accuracy") == [1, 2, 3]
    assert (run.data.metrics["forgetting"], run.data.metrics["peak_memory_bytes"]) == (0.25, 1000)
    assert {"result.json", "experiment.json", "accuracy_matrix.json", "tree.json"} <= artifacts(uri(experiment), run)
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("split_digits", ("ab" * 32)[:36])
    assert json.loads(data.dataset.profile) == RESULT["data"]
    assert run.data.tags["method"] == "lora" and run.data.tags["host"]
    matrix = table(uri(experiment), run, "accuracy_matrix.json")
    assert list(matrix["after"]) == ["1. a", "2. b", "3. b"] and list(matrix["3. b"]) == pytest.approx([0.2, 0.3, 0.4])
    root, leaf = table(uri(experiment), run, "tree.json")["tasks"]
    assert (pandas.isna(root), leaf) == (True, "[0, 2]")


def test_metrics_beyond_what_a_call_takes_are_sent_and_each_once(make: Small) -> None:
    """1,001 tasks are 3,003 metrics; MLflow takes 1,000 in a call."""
    experiment = make("name=long")
    tracker = begun(experiment)
    learn(experiment.folder, 500)
    record.push(tracker.connection, experiment.folder)
    learn(experiment.folder, 1001)
    tracker.keep_up(experiment.folder)
    tracker.end(experiment.folder)
    tracker.end(experiment.folder)
    (run,) = records(uri(experiment))
    assert steps(uri(experiment), run, "validation_accuracy") == list(range(1, 1002))


def test_the_load_of_the_machine_is_recorded(make: Small) -> None:
    experiment = make("name=load")
    tracker = begun(experiment)
    assert tracker.keep_up(experiment.folder) is None
    assert tracker.keep_up(experiment.folder) is None, "too soon for another sample"
    tracker.end(experiment.folder)
    (run,) = records(uri(experiment))
    assert steps(uri(experiment), run, "system/cpu_utilization_percentage") == [0]
    assert run.data.metrics["system/system_memory_usage_megabytes"] > 0


def test_going_on_and_ending_again_stay_one_record(make: Small) -> None:
    experiment = make("name=again")
    learn(experiment.folder, 2)
    begun(experiment).end(experiment.folder, "KILLED")
    assert [run.info.status for run in records(uri(experiment))] == ["KILLED"]
    tracker = begun(experiment)
    assert [run.info.status for run in records(uri(experiment))] == ["RUNNING"]
    learn(experiment.folder, 3)
    write_json(experiment.folder / "result.json", RESULT)
    tracker.end(experiment.folder)
    (run,) = records(uri(experiment))
    assert (run.info.status, steps(uri(experiment), run, "loss")) == ("FINISHED", [1, 2, 3])


def test_a_run_that_never_began_leaves_its_params_to_no_other(make: Small) -> None:
    first = make("name=slip", "seed=1")
    begun(first).end(first.folder, "FAILED")
    finished(make("name=slip", "seed=2"))
    found = records(uri(first))
    assert [(run.data.params["seed"], run.info.status) for run in found] == [("1", "FAILED"), ("2", "FINISHED")]


def test_names_and_values_that_mlflow_refuses_are_recorded(make: Small) -> None:
    experiment = make("name=odd")
    experiment.folder.mkdir()
    settings = {"scores": {"what, (this)?": "x" * 7000}, "empty": {}}
    Tracker(experiment).begin(experiment.folder, "odd", settings)
    (run,) = records(uri(experiment))
    value = run.data.params["scores.what_ _this__"]
    assert (len(value), value[-2:]) == (6000, "x…")


def swept(experiment: Experiment) -> Tracker:
    """A sweep with two trials, one of which is under way."""
    tracker = begun(experiment)
    for number, rank in enumerate((2, 3)):
        folder = trial_folder(experiment, number)
        write_json(folder / "experiment.json", experiment.identity())
        learn(folder, TASKS)
        settings = experiment.identity() | {"trial": {"method.rank": rank}}
        tracker.begin(folder, folder.name, settings, parent=experiment.folder)
    tracker.end(trial_folder(experiment, 0))
    return tracker


def trial_folder(experiment: Experiment, number: int) -> Path:
    return experiment.folder / "trials" / f"{experiment.name}-{number:05d}"


def summary(*statuses: str) -> dict[str, Any]:
    trials = [
        {
            "id": f"{number:05d}",
            "status": status,
            "settings": {"method.rank": number + 2},
            "values": {"validation_accuracy": 0.9, "seconds": 3.0},
            "objective": 0.9,
            "history": [[1, 0.9]],
            "folder": f"trials/s-{number:05d}",
        }
        for number, status in enumerate(statuses)
    ]
    about = {"objective": "validation_accuracy", "protocol": "stream", "best": "00001", "confirmed": None}
    return about | {"trials": trials}


def test_trials_are_children_and_all_is_there_when_the_sweep_ends(make: Small) -> None:
    experiment = make("name=s")
    tracker = swept(experiment)
    tracker.end(trial_folder(experiment, 1))
    write_json(experiment.folder / "sweep.json", summary("finished", "finished"))
    tracker.end(experiment.folder)
    parent, *children = records(uri(experiment))
    assert [run.data.tags["mlflow.parentRunId"] for run in children] == [parent.info.run_id] * 2
    assert sorted(run.data.params["trial.method.rank"] for run in children) == ["2", "3"]
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    assert [steps(uri(experiment), run, "loss") for run in children] == [[1, 2, 3]] * 2
    tags = parent.data.tags
    assert (tags["best_trial"], tags["best.method.rank"], tags["protocol"]) == ("00001", "3", "stream")
    assert parent.data.metrics["best_validation_accuracy"] == 0.9 and parent.data.metrics["best_seconds"] == 3.0
    assert list(table(uri(experiment), parent, "trials.json")["method.rank"]) == [2, 3]


def test_a_sweep_that_is_stopped_closes_the_trials_under_way(make: Small) -> None:
    experiment = make("name=s")
    swept(experiment).end(experiment.folder, "KILLED")
    parent, *children = records(uri(experiment))
    assert parent.info.status == "KILLED"
    assert sorted(run.info.status for run in children) == ["FINISHED", "KILLED"]


def test_sync_makes_the_whole_record_elsewhere(make: Small, tmp_path: Path, empty_database: Path) -> None:
    experiment = make("name=s")
    swept(experiment)
    write_json(experiment.folder / "sweep.json", summary("finished", "stopped"))
    shutil.rmtree(trial_folder(experiment, 1) / "checkpoints", ignore_errors=True)
    (trial_folder(experiment, 1) / "mlflow.json").unlink()  # as of a sweep that was not recorded
    other = database_uri(tmp_path / "other" / "mlflow.db")
    (tmp_path / "other").mkdir()
    shutil.copy(empty_database, tmp_path / "other")
    settings = [f"storage={experiment.storage}", f"tracking.uri={other}"]
    assert sync_record("s", settings).records == 3
    assert sync_record("s", settings).records == 3
    parent, *children = records(other)
    assert [run.data.tags["mlflow.parentRunId"] for run in children] == [parent.info.run_id] * 2
    assert [steps(other, run, "loss") for run in children] == [[1, 2, 3]] * 2
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    assert sorted(run.data.params["trial.method.rank"] for run in children) == ["2", "3"]


def test_sync_leaves_a_record_where_it_is_unless_told_otherwise(
    make: Small, tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.db"
    shutil.copy(empty_database, other)
    elsewhere, beside = database_uri(other), make("name=beside")
    experiment = make("name=there", f"tracking.uri={elsewhere}", "tracking.experiment=mine")
    begun(experiment).end(experiment.folder, "KILLED")
    begun(beside).end(beside.folder, "KILLED")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database_uri(tmp_path / "of-the-environment.db"))
    for one in (experiment, beside):
        learn(one.folder, 3)
        sync_record(one.name, [f"storage={one.storage}"])
    for address, name in ((elsewhere, "mine"), (uri(beside), "evergreen")):
        (run,) = records(address, name)
        assert steps(address, run, "loss") == [1, 2, 3]
    assert {file.name for file in tmp_path.glob("*.db")} == {"other.db"}


def test_sync_of_an_unknown_run_is_refused(make: Small) -> None:
    experiment = make()
    with pytest.raises(UserError, match=r"nothere: no such run in .*; name another, or set storage="):
        sync_record("nothere", [f"storage={experiment.storage}"])


def delete_record(experiment: Experiment) -> None:
    client = MlflowClient(uri(experiment))
    client.delete_run(records(uri(experiment))[0].info.run_id)


def delete_experiment(experiment: Experiment) -> None:
    client = MlflowClient(uri(experiment))
    client.delete_experiment(records(uri(experiment))[0].info.experiment_id)


def delete_database(experiment: Experiment) -> None:
    (experiment.storage / "mlflow.db").unlink()


DELETIONS = {
    "record": (delete_record, "evergreen", "record: that of lost was deleted; a new one is made"),
    "experiment": (delete_experiment, "evergreen-2", "record: the MLflow experiment evergreen was deleted"),
    "database": (delete_database, "evergreen", "was removed; a new one is made"),
}


@pytest.mark.parametrize("what", DELETIONS)
def test_what_was_deleted_meanwhile_is_made_anew(what: str, make: Small, capsys: pytest.CaptureFixture[str]) -> None:
    delete, name, line = DELETIONS[what]
    experiment = make("name=lost")
    learn(experiment.folder, 1)
    tracker = begun(experiment)
    delete(experiment)
    learn(experiment.folder, 2)
    tracker.keep_up(experiment.folder)
    tracker.end(experiment.folder)
    assert line in capsys.readouterr().err
    address = f"{uri(experiment)}?timeout=99"  # this process still knows the removed file by the plain one
    (run,) = records(address, name)
    assert (run.info.status, steps(address, run, "loss")) == ("FINISHED", [1, 2])


@pytest.mark.parametrize("name", ["a b", "100%25 of", "what?x=1", "one#two", "Käse"])
def test_any_place_of_storage_works(name: str, make: Small, tmp_path: Path) -> None:
    storage = tmp_path / name
    storage.mkdir()
    experiment = make("name=odd").model_copy(update={"storage": storage})
    shutil.copy(tmp_path / "runs" / "mlflow.db", storage)
    finished(experiment)
    (run,) = records(uri(experiment))
    assert "result.json" in artifacts(uri(experiment), run)
    assert (storage / "mlflow-artifacts" / run.info.run_id / "artifacts" / "result.json").is_file()
    assert {entry.name for entry in tmp_path.iterdir()} == {"runs", name}, "and no folder beside it"


@pytest.mark.parametrize("path", ["/a/b.db", "/a b/c%20d?/e#ü.db"])
def test_the_file_of_an_address_is_found_again(path: str) -> None:
    assert database_file(database_uri(Path(path))) == Path(path)
    assert database_file("http://127.0.0.1:5000") is None


def test_a_moved_folder_goes_on_in_its_own_record(make: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = make("name=moves")
    learn(experiment.folder, 1)
    begun(experiment).end(experiment.folder, "KILLED")
    assert str(tmp_path) not in (experiment.folder / "mlflow.json").read_text()
    shutil.move(experiment.storage, tmp_path / "moved")
    monkeypatch.setattr(utils, "_artifact_repos_cache", OrderedDict())  # the next start is another process
    moved = experiment.model_copy(update={"storage": tmp_path / "moved"})
    finished(moved)
    (run,) = records(uri(moved))
    assert steps(uri(moved), run, "loss") == [1, 2, 3]
    assert {"experiment.json", "result.json"} <= artifacts(uri(moved), run)
    assert not (tmp_path / "runs").exists(), "nothing is written to the old place"


def test_the_old_place_of_another_experiment_stays(make: Small, tmp_path: Path) -> None:
    """Only what Evergreen put beside the database moves with it."""
    experiment = make("name=a")
    other = MlflowClient(uri(experiment)).create_experiment("other", artifact_location="file:///elsewhere/other")
    finished(experiment)
    shutil.move(experiment.storage, tmp_path / "moved")
    moved = experiment.model_copy(update={"storage": tmp_path / "moved"})
    Connection(moved)
    found = MlflowClient(uri(moved)).get_experiment(other)
    assert found.artifact_location == "file:///elsewhere/other"


@pytest.mark.slow
def test_several_runs_that_start_at_once_share_a_new_database(tmp_path: Path) -> None:
    """Each in a process of its own, as MLflow's migrations would collide."""
    code = """
import sys
from pathlib import Path
from tests.support.experiments import small_experiment
from tests.records.test_record import finished
finished(small_experiment(Path(sys.argv[1]), "tracking.enabled=true", "method=lora", f"name={sys.argv[2]}"))
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    started = [subprocess.Popen([*command, f"run{number}"], stderr=subprocess.PIPE) for number in range(3)]
    said = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], said
    found = records(database_uri(tmp_path / "runs" / "mlflow.db"))
    assert sorted(run.info.run_name for run in found) == ["run0", "run1", "run2"]
    assert {run.info.status for run in found} == {"FINISHED"}


REFUSALS = {
    "a server that is down": "http://user:secret@127.0.0.1:9",
    "a file that is no database": "sqlite:////{folder}/text.db",
    "a folder that cannot be": "sqlite:////{folder}/text.db/mlflow.db",
    "an unknown scheme": "ftp://127.0.0.1/x",
}


@pytest.mark.parametrize("what", REFUSALS)
def test_a_record_that_cannot_be_opened_is_refused_in_one_line(what: str, make: Small, tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database " * 100)
    address = REFUSALS[what].format(folder=tmp_path)
    with pytest.raises(UserError, match=r"tracking\.uri=.*: .*tracking\.enabled=false") as caught:
        Tracker(make(f"tracking.uri={address}"))
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
