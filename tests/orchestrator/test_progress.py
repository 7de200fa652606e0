"""What a log shows of runs that go on: plain lines for starts, tasks and every half minute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.pages import progress
from orchestrator.pages.progress import lines, watching
from orchestrator.run.checkpoint import write_json

RUN = Path("some") / "mine"


def now(*accuracies: float, step: int = 0) -> dict[str, Any]:
    """What progress.json holds after so many tasks of three."""
    history = [{"task": task + 1, "test_accuracy": value} for task, value in enumerate(accuracies)]
    return {"task": len(history), "tasks": 3, "step": step, "steps": 8, "loss": 0.5, "history": history}


def test_a_run_tells_its_start_and_each_task_once(capsys: pytest.CaptureFixture[str]) -> None:
    with lines() as show:
        for state in (None, now(step=3), now(1.0), now(1.0, step=2), now(1.0, 0.75, 0.5)):
            show({RUN: state})
    assert capsys.readouterr().err.splitlines() == [
        "mine: starting",
        "mine: task 1/3 learned, accuracy so far 100.0%",
        "mine: task 2/3 learned, accuracy so far 75.0%",
        "mine: task 3/3 learned, accuracy so far 50.0%",
    ]


def test_a_run_that_goes_on_says_where_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    with lines() as show:
        show({RUN: now(0.9, step=4)})
    assert capsys.readouterr().err == "mine: going on: task 2/3 · step 4/8 · loss 0.50 · accuracy 90.0%\n"


def test_between_tasks_a_line_comes_every_half_minute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 29.0, 31.0, 60.0, 62.0, 70.0, 170.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with lines() as show:
        show({RUN: None})
        for step in range(1, 5):
            show({RUN: now(step=step)})
        for _ in range(2):
            show({RUN: now(0.5, 0.5, 0.5)})  # over: nothing more to tell
    told = capsys.readouterr().err.splitlines()
    assert [line.split(" · ")[1] for line in told[1:3]] == ["step 2/8", "step 4/8"]
    assert len(told) == 6 and told[-1].startswith("mine: task 3/3 learned")


def test_a_long_line_is_neither_cut_nor_read_as_markup(capsys: pytest.CaptureFixture[str]) -> None:
    name = "x" * 90 + "[red]"
    with lines() as show:
        show({Path(name): None})
    assert capsys.readouterr().err == f"{name}: starting\n"


def test_all_runs_of_a_sweep_are_followed_to_their_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with watching(lambda: sorted(tmp_path.iterdir())):
        for name in ("a", "b"):
            write_json(tmp_path / name / "progress.json", now(0.5))
    told = capsys.readouterr().err
    assert "a: going on: task 2/3" in told and "b: going on: task 2/3" in told
