"""The performance suite runs at toy size; what it measures is for a quiet machine, not for a test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.speed import profiles
from benchmarks.speed.__main__ import CASES, main
from benchmarks.speed.measure import Measurement, medians

# Whole commands with a cluster of their own, each of them 15 s at any size.
SWEEPS = ("sweep-overhead", "trial-overhead", "early-stopping", "worker-memory", "workers", "tree-actor", "compile")


@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case in SWEEPS)) for case in CASES])
def test_every_case_measures_something_beside_a_reference(case: str) -> None:
    for measurement in CASES[case](True):
        record = measurement.record()
        assert list(record) == ["case", "value", "reach", "detail", "holds"]
        assert record["case"] == case
        assert record["holds"] == (record["value"] <= record["reach"])
        assert any(isinstance(value, float | dict) for value in record["detail"].values())


def test_a_value_holds_up_to_its_reach() -> None:
    assert Measurement("one", 3.0, 3.0, {}).record()["holds"]
    assert not Measurement("one", 3.1, 3.0, {}).record()["holds"]


def test_candidates_take_turns() -> None:
    calls: list[str] = []
    found = medians({"left": lambda: calls.append("left"), "right": lambda: calls.append("right")}, 3)
    assert calls == ["left", "right"] * 3
    assert found.keys() == {"left", "right"}
    assert min(found.values()) > 0


def test_the_records_of_one_case_are_written_as_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.speed.__main__.pin", lambda: None)  # it would keep all later tests on one core
    file = tmp_path / "speed.json"
    page = tmp_path / "speed.md"
    main(["--toy", "--only", "treelora-step-vitb", "--json", str(file), "--page", str(page)])
    (record,) = json.loads(file.read_text())
    assert f"| treelora-step-vitb | ms per training step | {record['value']:.3g} | 0.4 |" in page.read_text()
    assert record["case"] == "treelora-step-vitb"
    assert record["detail"]["released_rule"] > 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--only", "nope"], "treelora-step-7b"),
        (["--json", "no/folder/x.json"], "no/folder"),
        (["--page", "no/folder/x.md"], "no/folder"),
    ],
)
def test_a_wrong_option_is_refused_with_the_way_out(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert named in capsys.readouterr().err


def test_a_profile_names_operations_and_what_was_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiles, "pin", lambda: None)
    file = tmp_path / "profiles.md"
    profiles.main(["--toy", "--page", str(file)])
    text = file.read_text()
    for name, (_, learned) in profiles.PATHS.items():
        part = text.split(f"## {name}\n")[1].split("\n## ")[0]
        assert "| `aten::" in part and learned in part
