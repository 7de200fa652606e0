"""How records end: of runs, sweeps and studies that are finished, that fail, or that Ctrl-C stops."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from orchestrator.compare import run_study
from orchestrator.launch import launch_run
from orchestrator.records.address import database_uri
from orchestrator.records.sync import sync_record
from orchestrator.records.tracking import Tracker
from orchestrator.run.learner import Learner
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError
from orchestrator.study import Study
from orchestrator.sweep import launch_sweep
from tests.records.test_record import empty_database, make, uri  # noqa: F401
from tests.support.experiments import SMALL
from tests.support.record import artifacts, records, table

Make = Callable[..., Experiment]


@contextmanager
def ending(error: BaseException, task: int, seed: int = 0) -> Iterator[None]:
    """Raise ``error`` where the run of a ``seed`` is in the middle of ``task``."""
    step = Learner.step

    def failing(self: Learner, rows: Tensor, number: int) -> float:
        if (self.task.index, number, self.seed) == (task, 1, seed):
            raise error
        return step(self, rows, number)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Learner, "step", failing)
        yield


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), "KILLED"), (RuntimeError("no"), "FAILED")])
def test_a_run_that_ends_before_its_time_says_how_and_goes_on(make: Make, error: BaseException, status: str) -> None:  # noqa: F811
    experiment = make("name=a")
    with ending(error, task=1), pytest.raises(type(error)):
        launch_run(experiment)
    (stopped,) = records(uri(experiment))
    assert stopped.info.status == status
    launch_run(experiment)
    (finished,) = records(uri(experiment))
    assert (finished.info.run_id, finished.info.status) == (stopped.info.run_id, "FINISHED")


def test_a_sweep_that_is_stopped_says_so_of_its_trial_too(make: Make) -> None:  # noqa: F811
    settings = ["name=s", "sweep.concurrent=1", "sweep.confirm=0", "sweep.space.seed=[0,1]"]
    experiment = make(*settings)
    with ending(KeyboardInterrupt(), task=1, seed=1), pytest.raises(KeyboardInterrupt):
        launch_sweep(experiment)
    parent, *children = records(uri(experiment))
    assert (parent.info.status, [run.info.status for run in children]) == ("KILLED", ["FINISHED", "KILLED"])
    launch_sweep(experiment)
    before = [run.info.run_id for run in (parent, *children)]
    assert [(run.info.run_id, run.info.status) for run in records(uri(experiment))] == [(i, "FINISHED") for i in before]


@pytest.fixture
def study() -> tuple[Study, list[str]]:
    rows = {"one": ["method=lora", "method.rank=1"], "two": ["method=lora", "method.rank=2"]}
    settings = [word for word in SMALL if not word.startswith(("tracking", "method"))] + ["sweep.concurrent=1"]
    return Study(title="Ranks", rows=rows, seeds=[0, 1], settings=settings), settings


def test_a_study_is_a_record_with_its_runs_below_it(
    make: Make,  # noqa: F811
    study: tuple[Study, list[str]],
    tmp_path: Path,
    empty_database: Path,  # noqa: F811
) -> None:
    """Stopped in its third run and gone on with, it is the same record, which can be sent elsewhere as a whole."""
    storage = make("name=unused").storage
    given: Any = (
        Path("ranks.yaml"),
        study[0],
        tmp_path / "page.md",
        [f"storage={storage}"],
        "run.py compare ranks.yaml",
    )
    with ending(KeyboardInterrupt(), task=2, seed=1), pytest.raises(KeyboardInterrupt):
        run_study(*given)
    parent, *_ = records(database_uri(storage / "mlflow.db"))
    assert (parent.info.run_name, parent.info.status) == ("ranks.study", "KILLED")
    run_study(*given)
    there = tmp_path / "there" / "mlflow.db"
    there.parent.mkdir()
    shutil.copy(empty_database, there)
    again = [f"storage={storage}", f"tracking.uri={database_uri(there)}"]
    for address in (database_uri(storage / "mlflow.db"), database_uri(there)):
        parent, *children = records(address)
        assert [run.data.tags["mlflow.parentRunId"] for run in children] == [parent.info.run_id] * 4
        assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
        runs = table(address, parent, "runs.json")
        assert list(runs["row"]) == ["one", "one", "two", "two"] and list(runs["seed"]) == [0, 1, 0, 1]
        scores = sorted(run.data.metrics["final_average_accuracy"] for run in children)
        assert sorted(runs["final_average_accuracy"]) == pytest.approx(scores)
        assert "report.html" in artifacts(address, parent)
        assert sync_record("ranks.study", again).records == 5


def test_a_run_that_was_killed_before_the_end_of_its_record_closes_it(
    make: Make,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    experiment = make("name=run", "method=lora")
    with monkeypatch.context() as patched:
        patched.setattr(Tracker, "end", lambda self, folder, status="FINISHED": None)
        launch_run(experiment)
    assert {run.info.status for run in records(uri(experiment))} == {"RUNNING"}
    launch_run(experiment)
    assert records(uri(experiment))[0].info.status == "FINISHED"


def test_a_study_that_was_killed_before_the_end_of_its_records_closes_them(
    make: Make,  # noqa: F811
    study: tuple[Study, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All results are there; the driver was killed when the last record, and that of the study, were to be ended."""
    storage = make("name=unused").storage
    one = Study(title="Rank", rows={"one": study[0].rows["one"]}, settings=study[0].settings)
    given: Any = (Path("rank.yaml"), one, tmp_path / "page.md", [f"storage={storage}"], "")
    with monkeypatch.context() as patched:
        patched.setattr(Tracker, "end", lambda self, folder, status="FINISHED": None)
        run_study(*given)
    uri = database_uri(storage / "mlflow.db")
    assert {run.info.status for run in records(uri)} == {"RUNNING"}
    before = (storage / "rank-one-seed0" / "result.json").read_bytes()
    run_study(*given)
    assert [run.info.status for run in records(uri)] == ["FINISHED"] * 2
    assert (storage / "rank-one-seed0" / "result.json").read_bytes() == before


def test_a_study_whose_server_does_not_answer_runs_nothing(study: tuple[Study, list[str]], tmp_path: Path) -> None:
    settings = [f"storage={tmp_path / 'runs'}", "tracking.uri=http://127.0.0.1:9"]
    with pytest.raises(UserError, match="the server does not answer"):
        run_study(Path("ranks.yaml"), study[0], tmp_path / "page.md", settings, "")
    left = [place.name for place in tmp_path.rglob("*")]
    assert left == ["runs", "ranks.study", "study.json"]
