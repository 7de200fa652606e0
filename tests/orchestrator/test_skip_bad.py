"""Bad files and lines from the command line: refused in one line, or left out and named with ``--skip-bad``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.orchestrator.test_cli import call, refusal
from tests.support import planted
from tests.support.tiny import tiny_model

QUICK = ["method=lora", "train.epochs=1", "tracking.enabled=false", "name=a"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    return tmp_path / "runs"


# --- images ---


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two good classes; one without images, one that has test images only, and a file that is no image."""
    root = tmp_path / "images"
    for split, count in (("train", 4), ("test", 2)):
        planted.classes(root / split, "ant", "bee", count=count)
    planted.images(root / "test" / "cow", 2)
    (root / "train" / "dog").mkdir()
    (root / "train" / "ant" / "00.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    return root


def of_images(root: Path, storage: Path) -> list[str]:
    return ["benchmark=image_folder", f"benchmark.path={root}", "benchmark.tasks=2", f"storage={storage}", *QUICK]


def test_a_folder_with_bad_images_is_refused_in_one_line(
    pictures: Path, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refusal(capsys, "train", *of_images(pictures, storage)) == (
        f"benchmark.path={pictures}: class 'cow' has 0 train and 2 test images (1 more like it); "
        "add some or remove the folder, or leave it out with --skip-bad"
    )
    assert not storage.exists()


def test_an_image_that_cannot_be_read_is_refused_with_its_path(
    pictures: Path, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "train" / "dog").rmdir()
    for file in (pictures / "test" / "cow").iterdir():
        file.unlink()
    (pictures / "test" / "cow").rmdir()
    said = refusal(capsys, "train", *of_images(pictures, storage))
    assert said.startswith(f"{pictures / 'train' / 'ant' / '00.png'}: not a readable image (")
    assert said.endswith("); 1 of 8 files are bad: repair or remove them, or leave them out with --skip-bad")
    assert not storage.exists()


def test_with_skip_bad_the_run_ends_and_names_all_that_was_left_out(
    pictures: Path, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("train", "--skip-bad", *of_images(pictures, storage)) == 0
    result = json.loads((storage / "a" / "result.json").read_text())
    assert result["task_names"] == ["ant", "bee"]
    place = f"benchmark.path={pictures}: class"
    assert result["skipped"][:2] == [
        f"{place} 'cow' has 0 train and 2 test images",
        f"{place} 'dog' has 0 train and 0 test images",
    ]
    [broken] = result["skipped"][2:]
    assert broken.startswith(f"{pictures / 'train' / 'ant' / '00.png'}: ")
    assert "3 left out as unreadable" in capsys.readouterr().err


# --- texts ---


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A good task, and one with a line that is no JSON, one in another encoding and one with another label."""
    good = planted.labelled({"yes": "cat", "no": "dog"}, 6)
    planted.text_task(tmp_path / "texts" / "animals", good, good[:4])
    folder = planted.text_task(
        tmp_path / "texts" / "colours", planted.labelled({"good": "red", "bad": "blue"}, 6), good
    )
    planted.write_rows(folder / "test.jsonl", planted.labelled({"good": "red", "bad": "blue"}, 2))
    (folder / "labels.json").write_text('["good", "bad"]')
    lines = (folder / "train.jsonl").read_bytes().splitlines()
    lines[2:2] = [b'{"text": "red", "label": ', '{"text": "très red", "label": "good"}'.encode("latin-1")]
    lines.append(b'{"text": "red", "label": "fair"}')
    (folder / "train.jsonl").write_bytes(b"\n".join(lines))
    tiny_model(tmp_path / "bert", "bert")
    return tmp_path / "texts"


def of_texts(root: Path, storage: Path) -> list[str]:
    chosen = ["benchmark=jsonl_folder", f"benchmark.path={root}", f"backbone.name={root.parent / 'bert'}"]
    chosen += ["benchmark.text.length=32"]
    return [*chosen, f"storage={storage}", *QUICK]


def test_a_bad_line_is_refused_with_file_and_number(
    texts: Path, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = texts / "colours" / "train.jsonl"
    said = refusal(capsys, "train", *of_texts(texts, storage))
    assert said.startswith(f"{file}:3: not JSON (") and "2 more bad rows" in said and "--skip-bad" in said
    assert not storage.exists()


def test_with_skip_bad_the_run_ends_without_the_bad_lines(
    texts: Path, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("train", "--json", *of_texts(texts, storage), "--skip-bad") == 0
    printed = capsys.readouterr()
    result = json.loads((storage / "a" / "result.json").read_text())
    assert json.loads(printed.out) == result
    file = texts / "colours" / "train.jsonl"
    assert [line.split(" (")[0] for line in result["skipped"]] == [
        f"{file}:3: not JSON",
        f"{file}:4: not UTF-8",
        f"{file}:15: label 'fair' is not in the task's list of labels",
    ]
    assert "Traceback" not in printed.err
