"""The page of scales: its arithmetic, its limits, and that it is made of what is measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.speed.constants import Measured, Taken, measured
from benchmarks.speed.scaling import LIMITS, SHAPES, TASKS, WORKERS, Shape, estimate, interpolated, main, page

HAVE = Measured(1e-9, 1e-9, 1e-9, 1e-10, {10**3: 1e-5, 10**5: 2e-5}, {10**3: 0.01, 10**5: 1.0})
TAKEN = Taken(flops=1e14, network=1e10, tokens=1000, call=1e-3, disk=1e9, rank=4, every=5, rounds=2)
SMALL = Shape("small", 1e9, 10, 1000)


def test_a_step_is_computing_or_gathering_whichever_takes_longer() -> None:
    computing = estimate(SMALL, 8, 1000, HAVE, replace(TAKEN, network=1e12))
    assert computing.step == pytest.approx(4 * 1e9 * 1000 / 1e14)
    assert estimate(SMALL, 8, 1000, HAVE, TAKEN).step == pytest.approx(4e9 / 1e10)


def test_what_is_stored_and_sent_follows_from_the_shapes() -> None:
    assert SMALL.adapter(4) == 10 * 2 * (4 * 1000 + 1000 * 4)
    found = estimate(SMALL, 8, 1000, HAVE, TAKEN)
    sketch = 10 * 256 * 4
    assert found.traffic == pytest.approx(8 * sketch / (5 * found.step))
    assert found.actor_bytes == pytest.approx(2.55 * 1000 * sketch)
    stored = estimate(SMALL, 8, 2000, HAVE, TAKEN).worker_bytes - found.worker_bytes
    assert stored == pytest.approx(1000 * SMALL.adapter(4) * 4 / 8)
    point = 8 * (1e-3 + 1e-9 * 2560) + 2 * (1e-5 + 1e-9 * 2560)
    assert found.actor == pytest.approx(point / (5 * found.step))


def test_sizes_between_and_beyond_the_measured_ones_are_on_their_line() -> None:
    assert interpolated({100: 1.0, 10_000: 100.0}, 1000) == pytest.approx(10)
    assert interpolated({100: 1.0, 10_000: 100.0}, 10**6) == pytest.approx(10**4)


def test_the_page_names_the_first_limit_of_each_kind_with_its_way_out() -> None:
    made = page(HAVE, TAKEN)
    assert made.count("\n| 70B |") == len(WORKERS) + len(TASKS)
    for what, way_out in LIMITS.values():
        assert f"| {what} | " in made and way_out in made
    met = [
        (shape.name, workers, tasks)
        for shape in SHAPES
        for workers in WORKERS
        for tasks in TASKS
        if estimate(shape, workers, tasks, HAVE, TAKEN).actor > 1
    ]
    name, workers, tasks = met[0]
    assert f"| {name} with {workers:,} workers and {tasks:,} tasks |" in made
    endless = replace(TAKEN, call=1e-12, every=10**9)
    assert f"| {LIMITS['actor'][0]} | nowhere in these ranges |" in page(HAVE, endless)


def test_constants_are_measured(tmp_path: Path) -> None:
    found = measured(toy=True)
    assert min(found.sketch, found.distance, found.add, found.copy) > 0
    assert set(found.select) == set(found.build) and min(found.build.values()) > 0


def test_the_command_writes_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.speed.scaling.pin", lambda: None)  # it would keep all later tests on one core
    main(["--toy", "--page", str(tmp_path / "scale.md"), "--worker-memory", "1e10"])
    assert "| worker_memory | 1e+10 | taken |" in (tmp_path / "scale.md").read_text()


def test_a_page_without_a_folder_is_refused_before_anything_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--page", "no/folder/scale.md"])
    assert ended.value.code == 2 and "there is no folder no/folder; make it first" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["0", "-1", "nan", "inf", "many"])
def test_a_constant_that_is_no_positive_number_is_refused(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--toy", f"--disk={wrong}"])
    assert ended.value.code == 2 and f"--disk: {wrong} is no number above 0" in capsys.readouterr().err
