"""What a run's numbers come from stays the same while it is stopped, and on its workers; a change is refused, or
accepted and written down.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest

from orchestrator.launch import train
from orchestrator.run import identity
from orchestrator.run.identity import check_identity
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


def make(small: Make, images: Path, name: str, *settings: str) -> Experiment:
    return small("benchmark=array", f"benchmark.path={images}", *STEPS, f"name={name}", *settings)


def test_a_run_goes_on_with_the_data_that_it_began_with_alone(small: Make, images: Path) -> None:
    undisturbed = train(make(small, images, "whole"))
    experiment = make(small, images, "stopped")
    train_until(experiment, task=1, number=2)
    before = sorted(experiment.folder.rglob("*"))
    for changed, split, name in (("x_test", "test", 12), ("x_train", "(train|validation)", 70)):
        write(images, (changed, name))
        with pytest.raises(
            UserError, match=rf"^the {split} split of task 1 \(2, 3\) changed since this run began: put"
        ):
            train(experiment)
    assert sorted(experiment.folder.rglob("*")) == before, "nothing lost, nothing written"
    write(images)
    resumed = train(experiment)
    assert resumed["accuracy_matrix"] == undisturbed["accuracy_matrix"] and resumed["data"] == undisturbed["data"]


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
    assert check_identity(whole(found), whole(found), Place()) == []
    with pytest.raises(UserError) as caught:
        check_identity(whole(data()), whole(found), Place())
    assert str(caught.value).startswith(f"{line} since this run began: put that back, ")
    assert str(caught.value).endswith("or begin another run with name=…")


def whole(content: dict[str, Any], **others: dict[str, str]) -> dict[str, Any]:
    return {
        "data": content,
        "weights": {"a": "1"},
        "code": {"b.py": "1", "c.py": "1"},
        "versions": {"torch": "2"},
    } | others


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"weights": {"a": "2"}}, "the weights in a changed"),
        ({"weights": {}}, "the weights in a changed"),
        ({"code": {"b.py": "2", "d.py": "1"}}, "the code in b.py and 2 more changed"),
        ({"versions": {"torch": "3"}}, "torch changed from 2 to 3"),
        ({"versions": {"torch": "2", "device": "cuda"}}, "device changed from None to cuda"),
    ],
)
def test_a_change_is_refused_or_accepted_and_told(changed: dict[str, dict[str, str]], line: str) -> None:
    begun, found = whole(data()), whole(data(), **changed)
    with pytest.raises(UserError, match=rf"^{line} since this run began: .*--accept-change.*name=…$"):
        check_identity(begun, found, Place())
    assert check_identity(begun, found, Place(), accepted=True) == [line]


def test_other_versions_of_what_computes_nothing_are_no_change() -> None:
    begun = whole(data(), versions={"torch": "2", "ray": "2.60", "mlflow": "3"})
    assert check_identity(begun, whole(data(), versions={"torch": "2", "ray": "2.61", "mlflow": "4"}), Place()) == []


def test_other_tasks_cannot_be_accepted() -> None:
    fewer = data() | {"sha256": "01" * 32, "tasks": data()["tasks"][:1]}
    with pytest.raises(UserError, match="tasks changed from x; y to x since this run began: put that back, or begin"):
        check_identity(whole(data()), whole(fewer), Place(), accepted=True)


def test_what_was_accepted_stands_in_the_result_and_the_run_ends(
    small: Make, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = make(small, images, "a")
    train_until(experiment, task=1, number=2)
    write(images, ("x_test", 12))
    code = identity.code()
    changed = {name: digest if name != "methods/lora.py" else "0" for name, digest in code.items()}
    monkeypatch.setattr(identity, "code", lambda: changed)
    accepting = make(small, images, "a", "checkpoint.accept_change=true")
    result = train(accepting)
    first, second = result["changes"]
    assert first == {"task": 1, "step": 2, "what": "the test split of task 1 (2, 3) changed"}
    assert second == {"task": 1, "step": 2, "what": "the code in methods/lora.py changed"}
    assert result["data"] == read_stream(experiment).fingerprint
    assert train(experiment) == result, "it is the same run, and finished"


def test_code_and_weights_are_those_that_make_the_numbers(small: Make, images: Path) -> None:
    result = train(make(small, images, "a"))
    assert list(result["weights"]) == ["micro_vit.safetensors"]
    names = set(identity.code())
    assert {"methods/lora.py", "benchmarks/texts/folder.py", "orchestrator/run/loop.py"} <= names
    assert not any(name.startswith(("orchestrator/pages", "benchmarks/speed")) for name in names)


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
            check_identity(whole(begun) if begun else None, whole(found), place)
            told.append("")
        except UserError as error:
            told.append(str(error))
    (folder / f"{process}.json").write_text(json.dumps(told))


def test_all_workers_end_where_one_has_other_data(pair: Pair, tmp_path: Path) -> None:
    pair.run(on_two, tmp_path)
    first, second = (json.loads((tmp_path / f"{process}.json").read_text()) for process in range(WORLD))
    assert first[0] == second[0] == ""
    assert first[1].startswith("the workers have different data, weights or code") and second[1] == first[1] == first[2]
    assert second[2].startswith("the test split of task 1 (y) changed since this run began")
