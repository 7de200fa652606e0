"""The Markdown page of a sweep: what was planted stands out from chance, and every number is that of the trials."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from statistics import fmean
from typing import Any
from xml.etree import ElementTree

import pytest

from orchestrator.run.checkpoint import write_json
from orchestrator.settings.compose import load_experiment
from tests.orchestrator.test_cli import call, refusal
from tests.support.study_pages import cells
from tests.support.sweep_pages import confirmation, make_sweep, make_trial, planted_sweep

TYPED = [
    "sweep=rank_sparsity",
    "benchmark=split_digits",
    "method=treelora",
    "train.epochs=3",
    "sweep.protocol=first_tasks",
]


def made(folder: Path, sweep: dict[str, Any]) -> Path:
    """The page of a sweep whose folder was planted."""
    experiment = load_experiment([*TYPED, f"storage={folder / 'runs'}", "name=demo"], "sweep")
    identity = experiment.identity() | {"sweep": experiment.sweep.search()}
    write_json(experiment.folder / "experiment.json", identity)
    config = experiment.model_dump(mode="json", exclude={"storage"})
    write_json(experiment.folder / "sweep.json", sweep | {"config": config})
    page = folder / "page.md"
    assert call("report", "demo", f"storage={folder / 'runs'}", "--markdown", str(page)) == 0
    return page


@pytest.fixture(scope="module")
def sweep() -> dict[str, Any]:
    return planted_sweep(80, confirmed=confirmation())


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, sweep: dict[str, Any]) -> Path:
    return made(tmp_path_factory.mktemp("page"), sweep)


def table_of(page: Path, heading: str) -> dict[str, list[str]]:
    """First cell -> the others, of the table whose heading begins so."""
    lines = page.read_text().splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    end = next(at for at, line in enumerate([*lines, ""]) if at > start and not line.startswith("|"))
    return {row[0]: row[1:] for row in (cells(line) for line in lines[start + 2 : end])}


def test_what_decides_stands_above_chance_and_the_rest_does_not(page: Path) -> None:
    rows = table_of(page, "setting")
    assert list(rows)[:2] == ["`train.learning_rate`", "`kind`"]
    shares = {name: tuple(int(text.split()[0]) for text in row[:2]) for name, row in rows.items() if row[0] != "–"}
    assert shares["`train.learning_rate`"][0] > shares["`train.learning_rate`"][1]
    assert all(shares[name][0] <= shares[name][1] for name in ("`betas`", "`flip`", "`method.rank`"))
    assert rows["`strength`"][:2] == ["–", "–"], "not all trials have it"


def test_means_are_those_of_the_finished_trials(page: Path, sweep: dict[str, Any]) -> None:
    finished = [trial for trial in sweep["trials"] if trial["status"] == "finished"]
    rows = table_of(page, "setting")
    by_kind = {kind: [t["objective"] for t in finished if t["settings"]["kind"] == kind] for kind in ("l2", "none")}
    assert rows["`kind`"][2] == ", ".join(f"{kind}: {fmean(own):.4g} ({len(own)})" for kind, own in by_kind.items())
    thirds = re.findall(r"(\S+) to (\S+): (\S+) \((\d+)\)", rows["`train.learning_rate`"][2])
    assert len(thirds) == 3 and sum(int(third[3]) for third in thirds) == len(finished)
    whole = sum(float(third[2]) * int(third[3]) for third in thirds) / len(finished)
    assert whole == pytest.approx(fmean(trial["objective"] for trial in finished), abs=1e-3)


def test_the_best_trials_stand_in_their_order(page: Path, sweep: dict[str, Any]) -> None:
    rows = table_of(page, "trial")
    assert list(rows) == [trial["id"] for trial in sweep["trials"][:10]]
    assert [row[0] for row in rows.values()] == [f"{trial['objective']:.4g}" for trial in sweep["trials"][:10]]


def test_only_the_confirmed_number_is_called_the_result(page: Path, tmp_path: Path) -> None:
    assert "**Result: final average accuracy 62.3% ± 1.1 on fresh seeds 11, 12;" in page.read_text()
    without = made(tmp_path, make_sweep([make_trial("00000", "finished", 0.9)])).read_text()
    assert "**Result: none, the choice was not confirmed" in without and "What each setting" not in without


def test_its_command_is_that_of_the_sweep(page: Path) -> None:
    (command,) = re.findall(r"Repeat with `(.*)`", page.read_text())
    program, name, *words = shlex.split(command)
    wanted, found = (load_experiment([*given, "storage=runs"], "sweep") for given in ([*TYPED, "name=demo"], words))
    assert (program, name) == ("run.py", "sweep") and found == wanted


def test_its_picture_lies_beside_it(page: Path) -> None:
    assert f"({page.stem}.svg)" in page.read_text()
    assert ElementTree.parse(page.with_suffix(".svg")).getroot().tag.endswith("svg")


def test_what_has_no_such_page_is_one_line(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = page.parent / "runs"
    write_json(storage / "run" / "experiment.json", {"seed": 0})
    assert "it is a run" in refusal(capsys, "report", "run", f"storage={storage}", "--markdown", "x.md")
    assert "ends in .md" in refusal(capsys, "report", "demo", f"storage={storage}", "--markdown", "x.html")
    missing = str(page.parent / "absent" / "x.md")
    assert "cannot be written" in refusal(capsys, "report", "demo", f"storage={storage}", "--markdown", missing)
