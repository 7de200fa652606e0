"""``benchmark.first``: the first tasks of a stream are read and learned as the whole stream has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.dataset import BenchmarkError, StreamConfig
from benchmarks.formats import ImageFormat
from benchmarks.stream import TaskStream, build_stream
from orchestrator.launch import train
from orchestrator.run.checkpoint import TENSORS
from orchestrator.run.session import read_stream
from orchestrator.settings.compose import load_experiment
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError
from tests.support import planted
from tests.support.tiny import tiny_model

Make = Callable[..., Experiment]
SPLITS = ("train", "validation", "test")
FEW = ["benchmark.tasks=4", "benchmark.train_per_class=8", "benchmark.test_per_class=6", "train.epochs=1"]


def digits(order_seed: int | None = None, **settings: object) -> TaskStream:
    config = {"name": "split_digits", "source": "digits", "tasks": 5} | settings
    return build_stream(StreamConfig.model_validate(config), order_seed, ImageFormat(32))


def assert_begins_like(first: TaskStream, whole: TaskStream) -> None:
    """The same rows, labels and classes, bit for bit, and a model of the same size."""
    for one, other in zip(first.tasks, whole.tasks, strict=False):
        assert (one.index, one.name, one.classes, one.options) == (
            other.index,
            other.name,
            other.classes,
            other.options,
        )
        for split in SPLITS:
            batch, same = getattr(one, split).batch(), getattr(other, split).batch()
            assert torch.equal(batch.inputs, same.inputs) and torch.equal(batch.labels, same.labels)
    assert (first.class_names, first.parts, first.length) == (whole.class_names, whole.parts, whole.length)


@pytest.mark.parametrize("order_seed", [None, 3])
@pytest.mark.parametrize("settings", [{}, {"tasks": 4, "classes": 7, "train_per_class": 9, "scenario": "task"}])
def test_the_first_tasks_are_those_of_the_whole_stream(order_seed: int | None, settings: dict[str, object]) -> None:
    first, whole = digits(order_seed, first=3, **settings), digits(order_seed, **settings)
    assert len(first.tasks) == 3 and len(whole.tasks) > 3
    assert_begins_like(first, whole)


# Where the head or the adapters were made for fewer classes or tasks, their first weights would be others.
RUNS = {
    "random heads": ["method=lora", "head=linear", "head.start=random"],
    "covariance": ["method=treelora", "method.search.every=1", "head=gaussian"],
    "magnitudes": ["method=sdlora", "head=cosine"],
    "ridge": ["method=gorp", "head=ranpac", "head.projection=48"],
}


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_over_the_first_tasks_measures_what_the_whole_run_did_by_then(small: Make, kind: str) -> None:
    settings = [*FEW, *RUNS[kind], "order_seed=1"]
    experiments = small(*settings, "name=whole"), small(*settings, "name=first", "benchmark.first=3")
    whole, first = map(train, experiments)
    for matrix in ("accuracy_matrix", "validation_matrix"):
        assert first[matrix] == [row[:3] for row in whole[matrix][:3]]
    assert first["initial_accuracy"] == whole["initial_accuracy"][:3]
    assert first["trainable_parameters"] == whole["trainable_parameters"]
    one, other = (load_file(experiment.folder / "checkpoints" / "000003" / TENSORS) for experiment in experiments)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_texts_of_later_tasks_do_not_change_what_is_read_of_the_first(tmp_path: Path) -> None:
    """Rows of tokens are as long as the longest text, which a later task has."""
    marks = {"yes": "cat", "no": "dog"}
    for name, words in (("a", 1), ("b", 1), ("c", 9)):
        rows = [row | {"text": " ".join([str(row["text"])] * words)} for row in planted.labelled(marks, 12)]
        planted.text_task(tmp_path / "texts" / name, rows, rows[:6])
    settings = [f"backbone.name={tiny_model(tmp_path / 'bert', 'bert')}", f"benchmark.path={tmp_path / 'texts'}"]
    settings += ["benchmark=jsonl_folder", "method=lora", "train.epochs=1", "train.batch_size=5"]
    settings += ["benchmark.text.length=60", "tracking.enabled=false", f"storage={tmp_path / 'runs'}"]
    whole = train(load_experiment([*settings, "name=whole"]))
    first = train(load_experiment([*settings, "name=first", "benchmark.first=2"]))
    assert first["accuracy_matrix"] == [row[:2] for row in whole["accuracy_matrix"][:2]]


@pytest.mark.usefixtures("cache")
def test_later_tasks_are_not_prepared(tmp_path: Path) -> None:
    """A picture of a later task that cannot be read does no harm, and those that can are not decoded."""
    planted.classes(tmp_path / "images", "ant", "bee", "cow", "dog")
    settings = ["benchmark=image_folder", f"benchmark.path={tmp_path / 'images'}", "benchmark.tasks=2"]
    whole = read_stream(load_experiment(settings))
    next((tmp_path / "images" / "dog").iterdir()).write_bytes(b"no picture")
    first = read_stream(load_experiment([*settings, "benchmark.first=1"]))
    assert first.fresh == whole.fresh / 2
    assert_begins_like(first, whole)
    with pytest.raises(UserError, match="not a readable image"):
        read_stream(load_experiment(settings))


@pytest.mark.usefixtures("cache")
def test_the_first_domains_keep_all_classes(tmp_path: Path) -> None:
    for domain in ("art", "photo", "sketch"):
        planted.classes(tmp_path / "images" / domain, "ant", "bee")
    settings = ["benchmark=image_folder", f"benchmark.path={tmp_path / 'images'}", "benchmark.scenario=domain"]
    first = read_stream(load_experiment([*settings, "benchmark.first=2"]))
    assert_begins_like(first, read_stream(load_experiment(settings)))
    assert [task.name for task in first.tasks] == ["art", "photo"] and first.parts == [2] and first.length == 3


@pytest.mark.parametrize("first", [0, -1, 6])
def test_more_tasks_than_there_are_and_none_are_refused(first: int) -> None:
    with pytest.raises(BenchmarkError) as caught:
        digits(first=first)
    assert str(caught.value) == f"benchmark.first={first}: split_digits has 5 tasks; say 1 to 5"


def test_the_first_tasks_are_another_run_and_are_named_so() -> None:
    first, whole = load_experiment(["benchmark.first=3"]), load_experiment([])
    assert first.identity() != whole.identity()
    assert first.name == "treelora-split_digits-first3-seed0"
    assert first.benchmark.subset == {"first": 3}
