"""What a look at a run says before it is started, and that it leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.check import duration
from tests.orchestrator.test_cli import call, refusal
from tests.support import planted


def test_a_look_at_a_run_counts_what_the_run_will_do_and_starts_none(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two tasks of two classes with 8 train images, of which 1 is held out, and 2 test images each; batches of 5."""
    photos = planted.classes(tmp_path / "photos", "ant", "bee", "cow", "dog")
    (photos / "ant" / "about.txt").write_text("no image")
    settings = [f"benchmark.path={photos}", f"storage={tmp_path / 'runs'}", "train.batch_size=5", "train.epochs=2"]
    assert call("check", "benchmark=image_folder", "benchmark.tasks=2", "method=lora", "head=linear", *settings) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(
        "data of image_folder: 4 classes in 2 tasks; rows: 28 train, 4 validation, 8 test; 7 train"
    )
    assert said[1].startswith("data of image_folder: 1 files left out whose ending is not that of an image")
    assert said[2].startswith("model: micro_vit, ")
    # 3 steps an epoch, 2 epochs, 2 tasks; tests before the stream and after each task, validation of what was learned.
    assert said[3] == f"a run: {3 * 2 * 2} steps of 5 rows, {3 * 8 + 2 + 4} rows scored or fitted"
    assert said[4].startswith("time in this process: about ") and said[5].startswith("memory of this process so far: ")
    assert not (tmp_path / "runs").exists()


def test_what_has_to_be_mended_is_one_line(tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    said = refusal(capsys, "check", "benchmark=image_folder", f"benchmark.path={tmp_path / 'empty'}")
    assert "no class folder with images in it" in said


@pytest.mark.parametrize(("seconds", "words"), [(0.2, "1 s"), (89, "89 s"), (600, "10 minutes"), (7200, "2.0 hours")])
def test_durations_are_told_in_the_unit_that_fits(seconds: float, words: str) -> None:
    assert duration(seconds) == words
