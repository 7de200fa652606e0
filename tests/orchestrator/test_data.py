"""Data that change while a run is stopped, or differ between its workers, are refused; the same data go on."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest

from orchestrator.launch import train
from orchestrator.run.checkpoint import VALUES
from orchestrator.run.data import check_data
from orchestrator.run.session import read_stream
from orchestrator.run.sharding import Place
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError
from tests.support.interruption import train_until
from tests.support.pair import WORLD, Pair

Make = Callable[..., Experiment]
STEPS = ["method=lora", "benchmark.tasks=2", "train.epochs=1", "train.batch_size=8", "checkpoint.every=1"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    file = tmp_path / "images.npz"
    write(file)
    return file


def write(file: Path, *pixels: tuple[str, int]) -> None:
    """Four classes, of 20 train and 4 test images each; one bit of the named ones is another."""
    content = {"y_train": numpy.repeat(numpy.arange(4), 20), "y_test": numpy.repeat(numpy.arange(4), 4)}
    generator = numpy.random.default_rng(0)
    for split in ("train", "test"):
        count = len(content[f"y_{split}"])
        content[f"x_{split}"] = generator.integers(0, 256, (count, 8, 8, 3), dtype=numpy.uint8)
    for name, row in pixels:
        content[name][row, 0, 0, 0] ^= 1
    numpy.savez(file, **content)  # type: ignore[arg-type]


def make(small: Make, images: Path, name: str) -> Experiment:
    return small("benchmark=array", f"benchmark.path={images}", *STEPS, f"name={name}")


def test_a_run_goes_on_with_the_data_that_it_began_with_alone(small: Make, images: Path) -> None:
    whole = train(make(small, images, "whole"))
    experiment = make(small, images, "stopped")
    train_until(experiment, task=1, number=2)
    before = sorted(experiment.folder.rglob("*"))
    for changed, split, name in (("x_test", "test", 12), ("x_train", "(train|validation)", 70)):
        write(images, (changed, name))
        with pytest.raises(
            UserError, match=rf"^the {split} split of task 1 \(2, 3\) changed since this run began; put"
        ):
            train(experiment)
    assert sorted(experiment.folder.rglob("*")) == before, "nothing lost, nothing written"
    write(images)
    resumed = train(experiment)
    assert resumed["accuracy_matrix"] == whole["accuracy_matrix"] and resumed["data"] == whole["data"]


def test_the_result_has_the_fingerprint_of_the_data(small: Make, images: Path) -> None:
    experiment = make(small, images, "a")
    data = train(experiment)["data"]
    assert data == read_stream(experiment).fingerprint
    assert [task["name"] for task in data["tasks"]] == ["0, 1", "2, 3"]
    assert [data["tasks"][0][split]["rows"] for split in ("train", "validation", "test")] == [36, 4, 8]


def test_before_the_first_checkpoint_nothing_was_learned_of_the_old_data(small: Make, images: Path) -> None:
    experiment = make(small, images, "a")
    train_until(experiment, task=0, number=0)
    write(images, ("x_test", 0))
    assert train(experiment)["data"] == read_stream(experiment).fingerprint


def test_a_checkpoint_of_an_earlier_version_has_no_fingerprint_and_goes_on(small: Make, images: Path) -> None:
    experiment = make(small, images, "a")
    train_until(experiment, task=0, number=2)
    for file in experiment.folder.glob(f"checkpoints/*/{VALUES}"):
        values = json.loads(file.read_text())
        del values["data"]
        file.write_text(json.dumps(values))
    assert train(experiment)["data"]["tasks"]


def data(**changes: dict[str, Any]) -> dict[str, Any]:
    split = {"rows": 9, "sha256": "ab"}
    return {
        "sha256": "00" * 32,
        "tasks": [{"name": n, "train": split, "validation": split, "test": split} for n in "xy"],
    }


def other(*places: tuple[int, str, dict[str, Any]]) -> dict[str, Any]:
    changed = copy.deepcopy(data()) | {"sha256": "01" * 32}
    for task, split, about in places:
        changed["tasks"][task][split] = about
    return changed


LINES = [
    (other((1, "test", {"rows": 9, "sha256": "cd"})), "the test split of task 1 (y) changed"),
    (other((0, "train", {"rows": 8, "sha256": "cd"})), "the train split of task 0 (x) changed from 9 rows to 8"),
    (
        other((0, "train", {"rows": 9, "sha256": "cd"}), (1, "test", {"rows": 9, "sha256": "cd"})),
        "the train split of task 0 (x) (and 1 more) changed",
    ),
    (data() | {"sha256": "01" * 32, "tasks": data()["tasks"][:1]}, "the data's tasks changed from x; y to x"),
]


@pytest.mark.parametrize(("found", "line"), LINES)
def test_what_changed_is_named(found: dict[str, Any], line: str) -> None:
    check_data(found, found, Place())
    with pytest.raises(UserError) as caught:
        check_data(data(), found, Place())
    assert str(caught.value) == f"{line} since this run began; put the old data back, or begin another with name=…"


def on_two(process: int, folder: Path) -> None:
    """Both begin on the same data, then the second one has others; then it alone does since the run began."""
    place, told = Place(process, WORLD), []
    changed = LINES[0][0]
    for begun, found in (
        (None, data()),
        (None, changed if process else data()),
        (data(), changed if process else data()),
    ):
        try:
            check_data(begun, found, place)
            told.append("")
        except UserError as error:
            told.append(str(error))
    (folder / f"{process}.json").write_text(json.dumps(told))


def test_all_workers_end_where_one_has_other_data(pair: Pair, tmp_path: Path) -> None:
    pair.run(on_two, tmp_path)
    first, second = (json.loads((tmp_path / f"{process}.json").read_text()) for process in range(WORLD))
    assert first[0] == second[0] == ""
    assert first[1].startswith("the workers read different data") and second[1] == first[1] == first[2]
    assert second[2].startswith("the test split of task 1 (y) changed since this run began")
