"""Streams: what is in which split, what the seeds change, and how unusable data is refused."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from benchmarks.dataset import BenchmarkError, Dataset, Examples, StreamConfig, source
from benchmarks.formats import ImageFormat
from benchmarks.sources import data_root
from benchmarks.stream import TaskStream, build_stream
from orchestrator.run.session import read_stream
from orchestrator.settings.compose import load_experiment
from orchestrator.settings.errors import UserError

SPLITS = ("train", "validation", "test")
CIFAR100 = data_root() / "cifar100_100x100_50.npz"


def digits(order_seed: int | None = None, **settings: Any) -> TaskStream:
    config = {"name": "split_digits", "source": "digits", "tasks": 5} | settings
    return build_stream(StreamConfig(**config), order_seed, ImageFormat(32))


def pixels(examples: Examples) -> list[bytes]:
    return [image.numpy().tobytes() for image in examples.batch().inputs]


def by_class(stream: TaskStream) -> dict[tuple[str, str], list[bytes]]:
    """The images of every class and split, by the class's own name."""
    found: dict[tuple[str, str], list[bytes]] = {}
    for task in stream.tasks:
        for split in SPLITS:
            examples: Examples = getattr(task, split)
            for image, label in zip(pixels(examples), examples.batch().labels.tolist(), strict=True):
                found.setdefault((stream.class_names[label], split), []).append(image)
    return found


def counts(stream: TaskStream, split: str) -> list[list[int]]:
    """How many images each class of each task has."""
    parts = [(task.classes, getattr(task, split).batch().labels) for task in stream.tasks]
    return [[int((labels == c).sum()) for c in classes] for classes, labels in parts]


@pytest.fixture(scope="module")
def natural() -> TaskStream:
    return digits()


def test_split_digits_holds_each_of_the_1797_images_once(natural: TaskStream) -> None:
    images = [image for task in natural.tasks for split in SPLITS for image in pixels(getattr(task, split))]
    assert len(images) == 1797
    assert len(set(images)) == 1797, "no image is in two splits or two tasks"
    assert sum(len(task.test) for task in natural.tasks) == 450, "a quarter is test"


def test_validation_is_a_tenth_of_the_train_split_of_every_class(natural: TaskStream) -> None:
    for train, validation in zip(counts(natural, "train"), counts(natural, "validation"), strict=True):
        assert validation == [round(0.1 * (t + v)) for t, v in zip(train, validation, strict=True)]
    larger = digits(validation_share=0.5)
    assert all(
        abs(t - v) <= 1 for t, v in zip(counts(larger, "train")[0], counts(larger, "validation")[0], strict=True)
    )
    assert pixels(larger.tasks[0].test) == pixels(natural.tasks[0].test), "test does not depend on it"


def test_images_are_bytes_in_three_equal_channels(natural: TaskStream) -> None:
    images = natural.tasks[0].train.batch().inputs
    assert images.dtype == torch.uint8 and images.shape[1:] == (3, 32, 32)
    assert torch.equal(images[:, 0], images[:, 2])
    assert int(images.max()) > 240 and int(images.min()) == 0


def test_without_order_seed_classes_come_in_natural_order(natural: TaskStream) -> None:
    assert natural.class_names == [str(digit) for digit in range(10)]
    assert [task.classes for task in natural.tasks] == [range(n, n + 2) for n in range(0, 10, 2)]
    assert [task.name for task in natural.tasks][:2] == ["0, 1", "2, 3"]
    assert [task.index for task in natural.tasks] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("tasks", [1, 3, 4, 10])
@pytest.mark.parametrize("order_seed", [None, 5])
def test_labels_are_numbered_by_task_without_gaps(tasks: int, order_seed: int | None) -> None:
    stream = digits(order_seed, tasks=tasks)
    assert stream.classes == 10 and len(stream.tasks) == tasks
    assert [label for task in stream.tasks for label in task.classes] == list(range(10))
    for task in stream.tasks:
        assert len(task.classes) in (10 // tasks, -(-10 // tasks))
        for split in SPLITS:
            assert set(getattr(task, split).batch().labels.tolist()) == set(task.classes)


def test_order_seed_moves_classes_and_nothing_else(natural: TaskStream) -> None:
    one, same, other = digits(1), digits(1), digits(2)
    assert one.class_names == same.class_names
    assert len({tuple(stream.class_names) for stream in (natural, one, other)}) == 3
    assert sorted(one.class_names) == natural.class_names
    assert by_class(one) == by_class(other) == by_class(natural)


def test_a_label_stands_for_its_class_name_in_any_order() -> None:
    stream = digits(1)
    zeros = pixels(next(task for task in digits(tasks=10).tasks if task.name == "0").test)
    label = stream.class_names.index("0")
    task = next(task for task in stream.tasks if label in task.classes)
    assert pixels(task.test.take(task.test.batch().labels == label)) == zeros


def test_the_runs_seed_is_no_input_of_a_stream() -> None:
    assert list(inspect.signature(build_stream).parameters) == ["config", "order_seed", "form"]
    assert "seed" not in StreamConfig.model_fields
    streams = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        numpy.random.seed(seed)
        streams.append(read_stream(load_experiment([f"seed={seed}", "order_seed=3"])))
    for first, second in zip(*(stream.tasks for stream in streams), strict=True):
        assert all(torch.equal(getattr(first, s).batch().inputs, getattr(second, s).batch().inputs) for s in SPLITS)
        assert all(torch.equal(getattr(first, s).batch().labels, getattr(second, s).batch().labels) for s in SPLITS)


def test_a_subset_takes_so_many_images_of_each_class(natural: TaskStream) -> None:
    small = digits(train_per_class=10, test_per_class=3)
    assert counts(small, "train") == [[9, 9]] * 5
    assert counts(small, "validation") == [[1, 1]] * 5
    assert counts(small, "test") == [[3, 3]] * 5
    whole = by_class(natural)
    for (name, split), images in by_class(small).items():
        splits = ["test"] if split == "test" else ["train", "validation"]
        assert set(images) <= {image for s in splits for image in whole[name, s]}
    assert counts(digits(train_per_class=10**6, test_per_class=10**6), "test") == counts(natural, "test")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_two_images_of_a_class_are_enough_to_train_and_to_validate(share: float) -> None:
    small = digits(train_per_class=2, test_per_class=1, validation_share=share)
    assert counts(small, "train") == counts(small, "validation") == counts(small, "test") == [[1, 1]] * 5


def test_all_seen_classes_compete_where_the_task_is_not_known(natural: TaskStream) -> None:
    assert natural.candidates(learned=5, evaluated=0) == [range(10)]
    assert natural.candidates(learned=2, evaluated=0) == [range(4)]
    assert natural.candidates(learned=2, evaluated=1) == [range(4)]
    assert natural.candidates(learned=2, evaluated=3) == [range(8)], "with a task ahead, the classes up to its own"
    assert natural.candidates(learned=0, evaluated=0) == [range(2)]


def test_a_tasks_own_classes_compete_where_the_task_is_known() -> None:
    stream = digits(scenario="task")
    for learned in range(6):
        assert stream.candidates(learned, evaluated=1)[0] == range(2, 4)


def test_a_source_name_that_is_taken_is_refused() -> None:
    def reader(config: StreamConfig) -> Dataset:
        raise NotImplementedError

    with pytest.raises(ValueError, match="source 'digits' is registered twice"):
        source("digits")(reader)


# --- arrays of the user's own ---


def arrays(**changes: Any) -> dict[str, Any]:
    """Four classes with six train and two test images each, every image different."""
    train, test = numpy.repeat(numpy.arange(4), 6), numpy.tile(numpy.arange(4), 2)
    images = numpy.random.default_rng(0).integers(0, 256, (32, 5, 6, 3), dtype=numpy.uint8)
    made = {"x_train": images[:24], "y_train": train, "x_test": images[24:], "y_test": test}
    return {name: value for name, value in (made | changes).items() if value is not None}


def array_stream(file: Path, **settings: Any) -> TaskStream:
    config = {"name": "array", "source": "array", "tasks": 2, "path": file} | settings
    return build_stream(StreamConfig(**config), None, ImageFormat(8))


def refusal(file: Path, **settings: Any) -> str:
    with pytest.raises(BenchmarkError) as caught:
        array_stream(file, **settings)
    return str(caught.value)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "images.npz"


def test_colour_images_of_an_npz_file_keep_their_pixels_and_names(file: Path) -> None:
    names = ["ant", "bee", "cow", "dog"]
    content = arrays(classes=numpy.array(names), extra=numpy.zeros(3))
    numpy.savez(file, **content)
    stream = array_stream(file)
    assert stream.class_names == names and [task.name for task in stream.tasks] == ["ant, bee", "cow, dog"]
    assert [len(getattr(stream.tasks[1], split)) for split in SPLITS] == [10, 2, 4]
    assert stream.tasks[1].test.batch().labels.tolist() == [2, 3, 2, 3]
    expected = torch.from_numpy(content["x_test"][[2, 3, 6, 7]]).permute(0, 3, 1, 2)
    assert torch.equal(stream.tasks[1].test.batch().inputs, expected)


def test_grey_images_get_three_equal_channels(file: Path) -> None:
    content = arrays()
    grey = {name: content[name][..., 0] for name in ("x_train", "x_test")}
    numpy.savez(file, **content | grey)
    images = array_stream(file).tasks[0].test.batch().inputs
    assert images.shape == (4, 3, 5, 6)
    for channel in range(3):
        assert torch.equal(images[:, channel], torch.from_numpy(grey["x_test"][[0, 1, 4, 5]]))


@pytest.mark.parametrize("kind", [numpy.uint8, numpy.int32, numpy.uint16, numpy.int64])
def test_labels_of_any_integer_type_are_read(file: Path, kind: type) -> None:
    content = arrays()
    numpy.savez(file, **content | {name: content[name].astype(kind) for name in ("y_train", "y_test")})
    stream = array_stream(file)
    assert stream.class_names == ["0", "1", "2", "3"], "without names, classes are called by their number"
    assert stream.tasks[0].train.batch().labels.dtype == torch.int64


def test_a_file_of_the_data_folder_is_found_by_its_name(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numpy.savez(file, **arrays())
    monkeypatch.setenv("EVERGREEN_DATA", str(file.parent))
    assert array_stream(Path(file.name)).classes == 4


LABELS = numpy.repeat(numpy.arange(4), 6)
NEEDED = ", and two and one are needed; add some, or leave such classes out with --skip-bad"
DAMAGED: dict[str, tuple[dict[str, Any], str]] = {
    "missing train images": ({"x_train": None}, "the array 'x_train' is missing in it"),
    "missing test labels": ({"y_test": None}, "the array 'y_test' is missing in it"),
    "pixels in 0 to 255 as floats": (
        {"x_train": numpy.full((24, 5, 6, 3), 200, numpy.float32)},
        "x_train is float32 [24, 5, 6, 3], from 200 to 200: which value is white is unknown; store uint8, or floats in "
        "0 to 1",
    ),
    "flat images": (
        {"x_test": numpy.zeros((8, 30), numpy.uint8)},
        "x_test is uint8 [8, 30], not [n, h, w] or [n, h, w, 3]",
    ),
    "labels with fractions": ({"y_train": LABELS + 0.5}, "y_train is float64 [24], not whole numbers or texts [n]"),
    "labels in two columns": (
        {"y_train": numpy.stack([LABELS, LABELS], 1)},
        "y_train is int64 [24, 2], not whole numbers or texts [n]",
    ),
    "texts in one split": (
        {"y_train": LABELS.astype(str)},
        "the labels are texts in one split and numbers in the other",
    ),
    "no labels": ({"y_test": LABELS[:0]}, "y_test is int64 [0], not whole numbers or texts [n]"),
    "lengths that differ": ({"y_train": LABELS[:23]}, "x_train and y_train differ in length"),
    "a class that only the test split has": (
        {"y_test": numpy.array([0, 1, 2, 3, 0, 1, 2, 4])},
        f"class '4' has 0 train and 1 test rows{NEEDED}",
    ),
    "too few names": (
        {"classes": numpy.array(["a", "b", "c"])},
        "3 names in 'classes' and 4 different labels (0, 1, 2 …); give one for each",
    ),
    "one train image": (
        {"y_train": numpy.where(numpy.arange(24) < 23, LABELS.clip(max=2), 3)},
        f"class '3' has 1 train and 2 test rows{NEEDED}",
    ),
    "no test image": (
        {"y_test": numpy.array([0, 1, 2, 0, 0, 1, 2, 0])},
        f"class '3' has 6 train and 0 test rows{NEEDED}",
    ),
}


PIXELS = arrays()


def changed(change: Callable[[numpy.ndarray], numpy.ndarray]) -> dict[str, Any]:
    return {name: change(PIXELS[name]) for name in ("x_train", "x_test")}


SAME_PIXELS: dict[str, tuple[dict[str, Any], str | None]] = {
    "16 bits": (changed(lambda x: x.astype(numpy.uint16) * 257), "images of 16 bits scaled to 8"),
    "floats": (changed(lambda x: x.astype(numpy.float32) / 255), "images of floats from 0 to 1 scaled to 8 bits"),
    "channels first": (changed(lambda x: x.transpose(0, 3, 1, 2)), "images whose channels come first"),
    "opaque alpha": (
        changed(lambda x: numpy.concatenate([x, numpy.full_like(x[..., :1], 255)], 3)),
        "images with alpha laid over white",
    ),
    "labels in a column": ({y: PIXELS[y][:, None] for y in ("y_train", "y_test")}, None),
    "labels as floats": ({y: PIXELS[y].astype(float) for y in ("y_train", "y_test")}, None),
}


@pytest.mark.parametrize("form", SAME_PIXELS)
def test_an_array_in_another_form_is_the_same_stream(file: Path, form: str) -> None:
    numpy.savez(file, **arrays())
    expected = array_stream(file)
    changes, done = SAME_PIXELS[form]
    numpy.savez(file, **arrays(**changes))
    found = array_stream(file)
    assert found.fingerprint == expected.fingerprint
    lines = [f"{count} {done} (first: benchmark.path={file}: x_train)" for count in ([32] if done else [])]
    assert found.account.lines() == lines


@pytest.mark.parametrize(
    ("values", "names", "expected"),
    [
        ([1, 2, 3, 5], None, ["1", "2", "3", "5"]),
        ([-1, 0, 1, 4_000_000_000], None, ["-1", "0", "1", "4000000000"]),
        (["b", "a", "d", "c"], None, ["a", "b", "c", "d"]),
        ([b"b", b"a", b"d", b"c"], None, ["a", "b", "c", "d"]),
        ([10, 20, 30, 40], ["ten", "twenty", "thirty", "forty"], ["ten", "twenty", "thirty", "forty"]),
        ([0, 1, 2, 4], [b"a", b"b", b"c", b"d", b"e"], ["a", "b", "c", "e"]),
    ],
)
def test_whichever_labels_there_are_they_are_the_classes(
    file: Path, values: list[Any], names: list[Any] | None, expected: list[str]
) -> None:
    given = numpy.array(values)
    made = arrays(classes=None if names is None else numpy.array(names))
    numpy.savez(file, **made | {y: given[made[y]] for y in ("y_train", "y_test")})
    stream = array_stream(file)
    assert stream.class_names == expected
    assert [len(task.test) for task in stream.tasks] == [4, 4]


def test_a_folder_of_npy_files_is_read_as_an_npz_file(file: Path, tmp_path: Path) -> None:
    numpy.savez(file, **arrays())
    for name, values in arrays().items():
        numpy.save(tmp_path / f"{name}.npy", values)
    assert array_stream(tmp_path).fingerprint == array_stream(file).fingerprint
    (tmp_path / "y_test.npy").unlink()
    assert refusal(tmp_path) == f"benchmark.path={tmp_path}: the array 'y_test' is missing in it"


def test_a_long_tail_is_named_at_once_and_left_out_where_that_is_asked_for(file: Path) -> None:
    tail = numpy.concatenate([LABELS[:20], [5, 6, 7, 8]])
    numpy.savez(file, **arrays(y_train=tail))
    small = [f"class '{label}' has {train} train and {test} test rows" for label, train, test in TAIL]
    assert refusal(file) == f"benchmark.path={file}: {', '.join(small[:3])} (and 1 more classes){NEEDED}"
    stream = array_stream(file, skip_bad=True)
    assert stream.class_names == ["0", "1", "2", "3"]
    assert stream.skipped == [f"benchmark.path={file}: {reason}" for reason in small]
    assert sum(len(task.train) + len(task.validation) for task in stream.tasks) == 20


TAIL = [(label, 1, 0) for label in (5, 6, 7, 8)]


@pytest.mark.parametrize("damage", DAMAGED)
def test_arrays_that_cannot_be_used_are_refused_with_the_reason(file: Path, damage: str) -> None:
    changes, reason = DAMAGED[damage]
    numpy.savez(file, **arrays(**changes))
    assert refusal(file) == f"benchmark.path={file}: {reason}"


@pytest.mark.parametrize("content", ["text", "nothing", "a single array", "pickled objects", "half a file"])
def test_a_file_that_is_no_npz_of_plain_arrays_is_refused(file: Path, content: str) -> None:
    numpy.savez(file, **arrays(classes=numpy.array([{}] * 4) if content == "pickled objects" else None))
    if content == "half a file":
        file.write_bytes(file.read_bytes()[:2000])
    elif content == "a single array":
        with file.open("wb") as opened:
            numpy.save(opened, LABELS)
    elif content in ("text", "nothing"):
        file.write_text("x_train,y_train" if content == "text" else "")
    assert refusal(file).startswith(f"benchmark.path={file}: not an npz file of plain arrays (")


def test_a_missing_file_names_both_places_and_how_to_change_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    monkeypatch.setenv("EVERGREEN_DATA", str(data))
    assert refusal(tmp_path / "absent.npz") == (
        f"benchmark.path={tmp_path / 'absent.npz'}: not found, nor in the data folder {data}; put it there, "
        "or set EVERGREEN_DATA to the folder that has it"
    )


def test_a_path_has_to_be_given(file: Path) -> None:
    config = StreamConfig(name="array", source="array", tasks=2)
    with pytest.raises(
        BenchmarkError, match=r"^benchmark.path: name the file or folder to read, as in benchmark.path="
    ):
        build_stream(config, None, ImageFormat(8))


def test_more_tasks_than_classes_are_refused(file: Path) -> None:
    numpy.savez(file, **arrays())
    assert refusal(file, tasks=5) == "benchmark.tasks=5: array has only 4 classes; say 4 or fewer"
    assert [task.name for task in array_stream(file, tasks=4).tasks] == ["0", "1", "2", "3"]


def test_an_unknown_source_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        BenchmarkError, match=r"^benchmark.source=films: choose one of array, cifar100, .*, jsonl_folder"
    ):
        digits(source="films")


def test_a_run_hears_of_bad_data_as_a_user_error(file: Path) -> None:
    experiment = load_experiment(["benchmark=array", f"benchmark.path={file}"])
    with pytest.raises(UserError, match=r"^benchmark.path=.*: not found"):
        read_stream(experiment)


@pytest.mark.realdata
@pytest.mark.skipif(not CIFAR100.is_file(), reason=f"{CIFAR100} is absent; EVERGREEN_DATA names the data folder")
def test_split_cifar100_is_ten_tasks_of_ten_classes_without_a_shared_image() -> None:
    stream = read_stream(load_experiment(["benchmark=cifar100_subset", "order_seed=1"]))
    assert len(stream.tasks) == 10 and len(set(stream.class_names)) == 100
    assert {"apple", "worm", "aquarium_fish"} <= set(stream.class_names)
    assert stream.class_names != sorted(stream.class_names)
    for split, size in (("train", 90), ("validation", 10), ("test", 50)):
        assert counts(stream, split) == [[size] * 10] * 10
    images = [image for task in stream.tasks for split in SPLITS for image in pixels(getattr(task, split))]
    assert len(set(images)) == len(images) == 15_000


@pytest.mark.parametrize("name", ["split_digits", "split_cifar100", "cl_order1"])
def test_a_path_for_a_source_that_reads_none_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^benchmark\.path=.*: .* reads data of its own; leave it out"):
        read_stream(load_experiment([f"benchmark={name}", f"benchmark.path={tmp_path}", "backbone=micro_vit"]))
