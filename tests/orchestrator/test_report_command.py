"""``run.py report``: pages and tables made again from folders, moved ones too, and what it refuses in one line."""

from __future__ import annotations

import csv
import json
import re
import shutil
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from orchestrator.pages.console import failure_lines, result_line, sweep_summary, sweep_table
from orchestrator.run.checkpoint import write_json
from orchestrator.settings.compose import load_experiment
from tests.orchestrator.test_cli import TINY, call, contents, refusal
from tests.support.sweep_pages import confirmation, make_sweep, make_trial, planted_sweep


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    storage = tmp_path_factory.mktemp("report") / "runs"
    assert call("train", f"storage={storage}", "name=mine", *TINY) == 0
    return storage / "mine"


def made_sweep(folder: Path, sweep: dict[str, Any] | None) -> Path:
    write_json(folder / "experiment.json", {"seed": 0, "sweep": {"trials": 3}})
    if sweep:
        write_json(folder / "sweep.json", sweep)
    return folder


def rows_of(printed: str) -> list[dict[str, str]]:
    return list(csv.DictReader(StringIO(printed)))


def test_the_page_of_a_run_is_made_again_where_its_folder_is_now(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = shutil.copytree(trained, tmp_path / "elsewhere" / "renamed")
    before = contents(moved)
    (moved / "report.html").unlink()
    capsys.readouterr()
    assert call("report", "renamed", f"storage={moved.parent}") == 0
    assert capsys.readouterr().out == f"{moved}/report.html\n"
    after = contents(moved)
    assert {name: found[0] for name, found in after.items()} == {name: found[0] for name, found in before.items()}
    assert call("report", str(moved)) == 0, "a path names it too"


def test_the_table_of_a_run_has_a_row_for_each_task(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(trained)
    capsys.readouterr()
    assert call("report", "mine", f"storage={trained.parent}", "--csv") == 0
    rows = rows_of(capsys.readouterr().out)
    result = json.loads((trained / "result.json").read_text())
    assert [row["task"] for row in rows] == ["1", "2"]
    assert float(rows[-1]["test_accuracy"]) == result["final_average_accuracy"]
    assert float(rows[0]["validation_accuracy"]) == result["validation_matrix"][0][0]
    assert contents(trained) == before


def test_the_page_of_a_sweep_shows_its_best_trial_where_the_folder_is_now(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = made_sweep(tmp_path / "before" / "demo", make_sweep([make_trial("00000", "finished", 0.7)]))
    shutil.copytree(trained, folder / "trials" / "demo-00000")
    moved = folder.rename(tmp_path / "after")
    capsys.readouterr()
    assert call("report", "after", f"storage={tmp_path}") == 0
    assert capsys.readouterr().out == f"{moved}/report.html\n"
    html = (moved / "report.html").read_text()
    assert "Best trial 00000" in html and "Headline numbers" in html
    assert call("report", "after/trials/demo-00000", f"storage={tmp_path}") == 0, "a trial is a run"


def test_a_sweep_under_way_has_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trials = [make_trial("00000", "running", None, history=[[1, 0.8]]), make_trial("00001", "waiting", None)]
    folder = made_sweep(tmp_path / "demo", make_sweep(trials))
    assert call("report", "demo", f"storage={tmp_path}") == 0
    assert "The search is under way" in " ".join((folder / "report.html").read_text().split())


def test_the_table_of_a_sweep_has_a_row_for_each_trial(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = planted_sweep(12, objectives={"validation_accuracy": "max", "seconds": "min"})
    sweep["trials"] += [make_trial("00012", "failed", None, settings={}, attempts=3, error='no "room", at\nall')]
    made_sweep(tmp_path / "demo", sweep)
    capsys.readouterr()
    assert call("report", "demo", f"storage={tmp_path}", "--csv") == 0
    rows = rows_of(capsys.readouterr().out)
    assert [row["id"] for row in rows] == [trial["id"] for trial in sweep["trials"]]
    assert list(rows[0])[:4] == ["id", "status", "config/betas", "config/flip"]
    assert not (tmp_path / "demo" / "report.html").exists(), "a table is no page"
    for row, trial in zip(rows, sweep["trials"], strict=True):
        for key, value in trial["settings"].items():
            assert row[f"config/{key}"] == (value if isinstance(value, str) else json.dumps(value))
        assert row["validation_accuracy"] == ("" if trial["objective"] is None else repr(trial["objective"]))
        assert (row["attempts"], row["tasks"]) == (str(trial["attempts"]), str(len(trial["history"])))
        assert row["error"] == (trial["error"] or "")
    assert {row["config/strength"] for row in rows if row["config/kind"] != "l2"} == {""}


REFUSED = {
    "unknown": ({}, "demo: no such run or sweep in {storage}; name another, or set storage=…"),
    "not begun": ({"experiment": {}}, "demo: no result yet (nothing learned); its train command goes on from there"),
    "under way": (
        {"experiment": {}, "progress": {"task": 1, "tasks": 3, "step": 2, "steps": 8, "loss": None, "history": []}},
        "demo: no result yet (task 2/3 · step 2/8); its train command goes on from there",
    ),
    "failed": (
        {"experiment": {}, "error": "method.rank=9: too high"},
        "demo: no result yet (nothing learned; it ended with: method.rank=9: too high); its train command goes on "
        "from there",
    ),
    "sweep without a trial": (
        {"experiment": {"sweep": {}}},
        "demo: no trial of this sweep has ended yet, so there is nothing to report; try again later",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_nothing_to_report_is_one_line_and_left_alone(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, expected = REFUSED[case]
    for name, content in files.items():
        write_json(tmp_path / "demo" / f"{name}.json", content)
    before = contents(tmp_path)
    assert refusal(capsys, "report", "demo", f"storage={tmp_path}") == expected.format(storage=tmp_path)
    assert contents(tmp_path) == before


def test_a_run_without_a_learned_task_has_no_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(tmp_path / "demo" / "experiment.json", {})
    said = refusal(capsys, "report", "demo", f"storage={tmp_path}", "--csv")
    assert said == "demo: no task learned yet (nothing learned); try again later"


def test_a_damaged_sweep_names_file_and_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made_sweep(tmp_path / "demo", None)
    (folder / "sweep.json").write_text('{\n"trials": ]')
    said = refusal(capsys, "report", "demo", f"storage={tmp_path}")
    assert said.startswith(f"{folder}/sweep.json:2: not JSON")


# --- what the end of a sweep prints ---

LONG = {"method.search.confidence": 0.25, "method.regulariser.strength": 1e-3, "train.learning_rate": 3e-4}


def printed(*parts: Any, width: int = 80) -> str:
    console = Console(file=StringIO(), width=width)
    console.print(*parts, sep="\n", crop=False)
    return console.file.getvalue()  # type: ignore[attr-defined]


MANY = {"head.projection": 2000, "benchmark.order": "natural", "a.strength": [0.1, 0.25]}


@pytest.mark.parametrize("extra", [{}, MANY])
def test_no_heading_or_number_of_the_table_is_cut_at_80_columns(extra: dict[str, Any]) -> None:
    cut = make_trial("00002", "stopped", 0.55, settings=LONG | extra)
    text = printed(sweep_table(make_sweep([make_trial("00003", "finished", 0.7, settings=LONG | extra), cut])))
    lines = text.splitlines()
    row = next(line.split() for line in lines if "00003" in line)
    given = "0.25 0.001 0.0003" + (" 2000 natural [0.1, 0.25]" if extra else "")
    assert " ".join(row) == f"00003 {given} 70.0% 51.2% 3.5% 42 finished"
    assert "…" not in text and "confidence" in text and "learning_" in text and "strength" in text
    assert extra or max(map(len, lines)) <= 80, "wider only where it has to be"


def test_settings_of_one_name_are_told_apart_and_stops_have_their_reason() -> None:
    cut = make_trial("00002", "stopped", 0.55, settings={"a.rank": 1, "b.rank": 2, "c": "[/x]"})
    text = printed(sweep_table(make_sweep([cut])))
    assert text.count("rank") == 2 and "a." in text and "b." in text and "[/x]" in text
    assert re.search(r"stopped at 1 *\n +0\.550<0\.600", text)


def test_failures_can_be_repeated_alone() -> None:
    lost = make_trial("00001", "failed", None, attempts=3)
    assert failure_lines(make_sweep([lost])) == [
        "trial 00001 failed on node-1, attempts: 3: OutOfMemoryError: too large",
        "  alone: run.py train name=demo-00001",
    ]


def test_only_a_confirmed_choice_is_called_a_result(tmp_path: Path) -> None:
    lost = make_trial("00001", "failed", None, error="[/x] is no markup")
    sweep = make_sweep([make_trial("00003", "finished", 0.7), lost])
    assert result_line(sweep).startswith("result: none, the choice was not confirmed")
    assert result_line(sweep | {"confirmed": confirmation()}) == (
        "result: final average accuracy 62.3% ± 1.1 on fresh seeds 11, 12; stream: split_digits in its natural order; "
        "chosen on the validation splits of all 4 tasks"
    )
    experiment = load_experiment([f"storage={tmp_path}", "name=demo"], "sweep")
    text = printed(*sweep_summary(experiment, sweep, "sqlite:///x"), width=300)
    assert "best settings: method.rank=4 (trials/demo-00003)" in text
    assert "trial 00001 failed on node-1, attempts: 1: [/x] is no markup" in text
    assert f"report: {tmp_path}/demo/report.html" in text
