"""The fingerprint of a stream: it changes with all that is learned or judged, where that changed, and with no more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest

from benchmarks.dataset import StreamConfig
from benchmarks.fingerprint import SPLITS, fingerprint_of
from benchmarks.formats import ImageFormat, TextFormat
from benchmarks.images import decode
from benchmarks.stream import TaskStream, build_stream
from tests.support import planted
from tests.support.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("cache")
Arrays = dict[str, numpy.ndarray]


def arrays() -> Arrays:
    """Four classes in two tasks, with six train and two test images each, every image different."""
    images = numpy.random.default_rng(0).integers(0, 256, (32, 4, 4, 3), dtype=numpy.uint8)
    made = {"x_train": images[:24], "y_train": numpy.repeat(numpy.arange(4), 6)}
    return made | {
        "x_test": images[24:],
        "y_test": numpy.tile(numpy.arange(4), 2),
        "classes": numpy.array(list("abcd")),
    }


def stream_of(folder: Path, content: Arrays, **settings: Any) -> TaskStream:
    numpy.savez(folder / "images.npz", **content)  # type: ignore[arg-type]
    config = {"name": "array", "source": "array", "tasks": 2, "path": folder / "images.npz"} | settings
    return build_stream(StreamConfig.model_validate(config), None, ImageFormat(4))


def changed(before: TaskStream, after: TaskStream) -> set[tuple[int, str]]:
    """Number of the task, and split."""
    pairs = enumerate(zip(before.fingerprint["tasks"], after.fingerprint["tasks"], strict=True))
    found = {(number, split) for number, (one, other) in pairs for split in SPLITS if one[split] != other[split]}
    assert bool(found) == (before.fingerprint["sha256"] != after.fingerprint["sha256"])
    return found


def pixel(content: Arrays) -> None:
    content["x_test"][2, 3, 3, 2] ^= 1  # of class c


def exchanged(content: Arrays) -> None:
    content["x_train"][[0, 6]] = content["x_train"][[6, 0]]  # of classes a and b: the same images, other labels


def order(content: Arrays) -> None:
    content["x_test"][[0, 4]] = content["x_test"][[4, 0]]  # both of class a: batches would be others


def name(content: Arrays) -> None:
    content["classes"] = numpy.array(["a", "b", "c", "e"])


def more(content: Arrays) -> None:
    content["x_test"] = numpy.concatenate([content["x_test"], content["x_test"][:1]])
    content["y_test"] = numpy.concatenate([content["y_test"], content["y_test"][:1]])


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (pixel, {(1, "test")}),
        (order, {(0, "test")}),
        (name, {(1, split) for split in SPLITS}),
        (more, {(0, "test")}),
    ],
)
def test_what_changed_is_told_by_task_and_split(
    tmp_path: Path, change: Callable[[Arrays], None], where: set[tuple[int, str]]
) -> None:
    before, content = stream_of(tmp_path, arrays()), arrays()
    change(content)
    assert changed(before, stream_of(tmp_path, content)) == where
    assert changed(before, stream_of(tmp_path, arrays())) == set(), "the same data again"


def test_the_same_images_under_other_labels_are_other_data(tmp_path: Path) -> None:
    before, content = stream_of(tmp_path, arrays()), arrays()
    exchanged(content)
    found = changed(before, stream_of(tmp_path, content))
    assert found and found <= {(0, "train"), (0, "validation")}


def test_the_first_tasks_have_the_fingerprints_that_they_have_in_the_whole(tmp_path: Path) -> None:
    whole, first = stream_of(tmp_path, arrays()), stream_of(tmp_path, arrays(), first=1)
    assert first.fingerprint["tasks"] == whole.fingerprint["tasks"][:1]
    assert whole.fingerprint["tasks"][0]["train"]["rows"] == len(whole.tasks[0].train) == 10


def test_decoded_images_are_hashed_once_and_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted.classes(tmp_path / "images", "ant", "bee", "cow", "dog")
    config = StreamConfig(name="image_folder", source="image_folder", tasks=2, path=tmp_path / "images")
    found = build_stream(config, None, ImageFormat(8))
    direct = [
        replace(task, **{split: replace(getattr(task, split), digests=None) for split in SPLITS})
        for task in found.tasks
    ]
    assert found.fingerprint == fingerprint_of(direct)
    monkeypatch.delattr(decode, "row_digests")
    again = build_stream(config, 1, ImageFormat(8))  # in another order, too
    monkeypatch.setattr("benchmarks.fingerprint.row_digests", None)
    assert {task["train"]["sha256"] for task in build_stream(config, None, ImageFormat(8)).fingerprint["tasks"]} == {
        task["train"]["sha256"] for task in found.fingerprint["tasks"]
    }
    assert again.fingerprint["sha256"] != found.fingerprint["sha256"]


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_texts_answers_and_references_count_and_padding_does_not(tmp_path: Path, kind: str) -> None:
    """A longer text in the second task makes all rows of tokens longer."""
    model, root, marks = tiny_model(tmp_path / kind, kind), tmp_path / "texts", {"yes": "cat", "no": "dog"}
    form = TextFormat(str(model), answers=kind == "llama")
    rows = planted.labelled(marks, 6) if kind == "bert" else planted.answered(marks, 6)
    text, answer = ("text", "label") if kind == "bert" else ("prompt", "answer")
    for task in ("a", "b"):
        planted.text_task(root / task, rows, rows[:4])
    config = StreamConfig(name="jsonl_folder", source="jsonl_folder", scenario="task", path=root)
    before = build_stream(config, None, form)
    planted.write_rows(root / "b" / "test.jsonl", [rows[0] | {text: "a big cat sees the small dog " * 3}, *rows[1:4]])
    longer = build_stream(config, None, form)
    assert longer.tasks[0].test.inputs.shape[1] > before.tasks[0].test.inputs.shape[1]
    assert changed(before, longer) == {(1, "test")}
    planted.write_rows(root / "b" / "test.jsonl", [rows[0] | {answer: rows[1][answer]}, *rows[1:4]])
    assert changed(before, build_stream(config, None, form)) == {(1, "test")}
