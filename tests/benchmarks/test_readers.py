"""Whatever a reader is given, each row is used or accounted for, and no error but the project's own comes out."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets
import numpy
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.dataset import BenchmarkError, StreamConfig
from benchmarks.formats import ImageFormat
from benchmarks.stream import TaskStream, build_stream
from benchmarks.texts.folder import jsonl_folder
from benchmarks.texts.hub import HubTask, as_split

EXAMPLES = settings(max_examples=100, deadline=None, derandomize=True, database=None)

# --- what is counted ---

LEFT_OUT = ("outside the class folders", "which have no labels", "not read")
COUNTED = (
    re.compile(r"has (\d+) train and (\d+) test (?:images|rows)(?:, and (\d+) of validation)?$"),
    re.compile(r": (\d+) of \d+ files of .* are links to nothing"),
)


def accounted(stream: TaskStream) -> int:
    """Rows used, and rows that the stream says were left out."""
    used = sum(len(split) for task in stream.tasks for split in (task.train, task.validation, task.test))
    notes = sum(note.count for what, note in stream.account.notes.items() if any(word in what for word in LEFT_OUT))
    return used + notes + sum(map(left_out, stream.skipped))


def left_out(line: str) -> int:
    """How many rows a line of ``skipped`` stands for: one, unless it says how many."""
    found = next((match for pattern in COUNTED if (match := pattern.search(line))), None)
    return sum(int(number) for number in found.groups() if number) if found else 1


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for one example, and a cache that no other one has."""
    before = os.environ.get("EVERGREEN_CACHE")
    with TemporaryDirectory() as folder:
        os.environ["EVERGREEN_CACHE"] = f"{folder}/cache"
        try:
            yield Path(folder) / "data"
        finally:
            os.environ.pop("EVERGREEN_CACHE")
            if before is not None:
                os.environ["EVERGREEN_CACHE"] = before


def refused(error: BenchmarkError) -> None:
    """It is one line."""
    assert "\n" not in str(error)
    assert len(str(error)) > 20


def stream_of(path: Path, source: str, **choices: object) -> TaskStream | None:
    """None where the data is refused, in one line."""
    config = StreamConfig(name="mine", source=source, path=path, skip_bad=True, tasks=1, **choices)  # type: ignore[arg-type]
    try:
        return build_stream(config, None, ImageFormat(4))
    except BenchmarkError as error:
        return refused(error)


# --- folders of images ---


def picture(mode: str, kind: str = "png") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (3, 5)).save(file, kind)
    return file.getvalue()


FILES = {
    "a.png": picture("RGB"),
    "b.PNG": picture("RGBA"),
    "c.jpg": picture("CMYK", "jpeg"),
    "d.tif": picture("I;16", "tiff"),
    "e.gif": picture("P", "gif"),
    "f.tiff": picture("F", "tiff"),
    "g.png": picture("RGB")[:40],
    "h.bmp": b"",
    "i.png": b"no picture",
    "j.txt": b"text",
    "k": b"",
    ".l.png": picture("L"),
    "m.png": None,  # a link to nothing
}
NAMES = st.sampled_from(
    [
        "ant",
        "bee",
        "cow",
        "Train",
        "test",
        "val",
        "images",
        "caf\udce9",
        "猫",
        " ",
        "a=b",
        ".x",
        "__MACOSX",
        "%20",
        "-a",
    ]
)
FOLDERS = st.dictionaries(NAMES, st.lists(st.sampled_from(sorted(FILES)), unique=True, max_size=8), max_size=4)


def fill(folder: Path, names: list[str], mark: str) -> int:
    """Write files, each in three copies; how many of them are meant to be images and not hidden."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        for copy in range(3):
            file = folder / f"{name[: name.rfind('.')] or name}{mark}{copy}{name[name.rfind('.') :]}"
            content = FILES[name]
            if content is None:
                file.symlink_to("nothing")
            else:
                file.write_bytes(content)
    hidden = any(part.startswith((".", "__MACOSX")) for part in folder.parts[folder.parts.index("data") :])
    return 0 if hidden else 3 * sum(name not in ("j.txt", "k", ".l.png") for name in names)


@EXAMPLES
@given(
    flat=FOLDERS, nested=FOLDERS, train=FOLDERS, loose=st.lists(st.sampled_from(sorted(FILES)), max_size=2, unique=True)
)
@example({"ant": ["a.png", "b.PNG"], "bee": ["c.jpg", "d.tif"]}, {}, {}, ["a.png"])
@example({}, {}, {"ant": ["a.png", "b.PNG"], "bee": ["c.jpg", "d.tif"]}, ["e.gif"])
def test_every_file_of_a_folder_of_images_is_used_or_accounted_for(
    flat: dict[str, list[str]], nested: dict[str, list[str]], train: dict[str, list[str]], loose: list[str]
) -> None:
    with scratch() as root:
        there = fill(root, loose, "")
        for name, files in flat.items():
            there += fill(root / name, files, "")
        for name, files in nested.items():
            there += fill(root / name / "inner", files, "n")
        for name, files in train.items():
            there += fill(root / "train" / name, files, "t")
            there += fill(root / "test" / name, files[:2], "e")
        stream = stream_of(root, "image_folder")
        assert stream is None or accounted(stream) == there


# --- arrays ---

KINDS = [numpy.uint8, numpy.uint8, numpy.uint16, numpy.float32, numpy.bool_, numpy.int64]
SHAPES = st.sampled_from([(4, 4), (4, 4, 1), (3, 4, 4), (4, 4, 3), (4, 4, 4), (2, 5, 5)])
FORMS = [
    [0, 1],
    [7, -3, 2**40],
    ["ant", "bee", "é"],
    [1.0, 2.0],
    [True, False],
    [b"cow", b"d\xe9g"],
    [1, "a", 2.5],
    [""],
]
LABELS = st.sampled_from(FORMS).flatmap(
    lambda form: st.tuples(*(st.lists(st.sampled_from(form), min_size=size, max_size=16) for size in (4, 2)))
)


def pixels(count: int, kind: type[numpy.generic], shape: tuple[int, ...], offset: int) -> numpy.ndarray:
    values = numpy.arange(count * int(numpy.prod(shape))) % (2 if kind is numpy.bool_ else 200)
    scale = 255 if kind in (numpy.float32, numpy.float64) and not offset else 1
    return (values.reshape(count, *shape) / scale).astype(kind)


@EXAMPLES
@given(
    labels=LABELS,
    kind=st.sampled_from(KINDS),
    shape=SHAPES,
    offset=st.sampled_from([0, 0, 1]),
    missing=st.integers(0, 40),
    column=st.booleans(),
    packed=st.booleans(),
)
@example(([0, 0, 1, 1, 7], [0, 1, 7]), numpy.uint8, (4, 4), 0, 9, False, True)
@example((["é", "é", "ant", "ant"], ["é", "ant"]), numpy.uint16, (4, 4, 3), 0, 9, True, False)
def test_every_row_of_an_array_is_used_or_accounted_for(
    labels: tuple[list[object], list[object]],
    kind: type[numpy.generic],
    shape: tuple[int, ...],
    offset: int,
    missing: int,
    column: bool,
    packed: bool,
) -> None:
    """``missing``: a number of an array that is not there, or has a row too few."""
    train, test = labels
    content = {"x_train": pixels(len(train), kind, shape, offset), "x_test": pixels(len(test), kind, shape, offset)}
    for split, values in (("train", train), ("test", test)):
        found = numpy.array(values)
        content[f"y_{split}"] = found[:, None] if column else found
    name = sorted(content)[missing % 4]
    if missing < 4:
        del content[name]
    elif missing < 8:
        content[name] = content[name][:-1]
    with scratch() as root:
        file = root / "images.npz" if packed else root
        root.mkdir()
        if packed:
            numpy.savez(file, **content)  # type: ignore[arg-type]
        else:
            for key, array in content.items():
                numpy.save(root / f"{key}.npy", array)
        stream = stream_of(file, "array")
        assert stream is None or accounted(stream) == len(train) + len(test)


def zipped() -> bytes:
    file = io.BytesIO()
    numpy.savez(file, x_train=numpy.zeros((2, 4, 4), numpy.uint8), y_train=numpy.zeros(2))
    return file.getvalue()


@EXAMPLES
@given(
    content=st.binary(max_size=60),
    cut=st.integers(0, 60),
    beginning=st.sampled_from([b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00", zipped()]),
)
def test_no_bytes_in_place_of_an_array_end_in_another_error(content: bytes, cut: int, beginning: bytes) -> None:
    with scratch() as root:
        root.mkdir()
        for name in ("images.npz", "x_train.npy"):
            (root / name).write_bytes(beginning[: len(beginning) - cut] + content)
        assert stream_of(root / "images.npz", "array") is None
        assert stream_of(root, "array") is None
        assert stream_of(root / "images.npz", "image_folder") is None


# --- texts ---

ENDINGS = ["jsonl", "ndjson", "json", "csv", "tsv", "parquet", "jsonl.gz", "csv.bz2", "json.xz", "tsv.zst"]
VALUES = st.one_of(
    st.none(),
    st.integers(-3, 3),
    st.sampled_from([10**30, 1.0, 1.5, float("nan"), True, "1", "true", " ", "x", "x ", "X", "\ud800", [], {}]),
    st.text(max_size=4),
)
ROWS = st.dictionaries(st.sampled_from(["text", "label", "prompt", "answer", "more"]), VALUES, max_size=5)
GOOD = [{"text": f"good {number}", "label": 1} for number in range(3)]
LINES = st.one_of(st.builds(json.dumps, ROWS).map(str.encode), st.binary(min_size=1, max_size=12))


def rows_read(root: Path, scenario: str = "task") -> int | None:
    """Rows used and left out; None where the data is refused, in one line."""
    config = StreamConfig(name="mine", source="jsonl_folder", path=root, skip_bad=True, scenario=scenario)  # type: ignore[arg-type]
    try:
        data = jsonl_folder(config)
    except BenchmarkError as error:
        return refused(error)
    return len(data.train) + len(data.test) + len(data.skipped)


def written(root: Path, **files: bytes) -> Path:
    """A task's folder with these files; their endings follow a double underscore."""
    (root / "task").mkdir(parents=True)
    for name, content in files.items():
        (root / "task" / name.replace("__", ".")).write_bytes(content)
    return root


@EXAMPLES
@given(lines=st.lists(LINES, max_size=9), scenario=st.sampled_from(["task", "domain"]), held_out=st.booleans())
def test_every_line_is_used_or_left_out_and_counted(lines: list[bytes], scenario: str, held_out: bool) -> None:
    content = b"\n".join([json.dumps(row).encode() for row in GOOD] + lines)
    files = {"train__jsonl": content, "test__jsonl": content} | ({"validation__jsonl": content} if held_out else {})
    with scratch() as root:
        there = sum(bool(line.strip()) for line in content.split(b"\n"))
        assert rows_read(written(root, **files), scenario) in (None, len(files) * there)


@EXAMPLES
@given(
    cells=st.lists(st.lists(st.text('abé ,;\t\n"1\u200b\x00\x85', max_size=4), min_size=1, max_size=3), max_size=8),
    form=st.sampled_from([("csv", ","), ("csv", ";"), ("tsv", "\t")]),
)
def test_every_row_of_a_table_is_used_or_left_out_and_counted(cells: list[list[str]], form: tuple[str, str]) -> None:
    ending, delimiter = form
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerows([["text", "label"], ["good", "1"], ["better", "1"], *cells])
    content = file.getvalue().encode()
    with scratch() as root:
        found = rows_read(written(root, **{f"train__{ending}": content, f"test__{ending}": content}))
        assert found == 2 * (2 + len(cells))


@EXAMPLES
@given(
    ending=st.sampled_from(ENDINGS),
    beginning=st.sampled_from([b"", b"text,label\n", b"[", b"\xff\xfe", b"PAR1", b'{"text": "a", "label": 1}\n']),
    content=st.binary(max_size=60),
    packed=st.booleans(),
)
def test_no_bytes_in_place_of_rows_end_in_another_error(
    ending: str, beginning: bytes, content: bytes, packed: bool
) -> None:
    whole = beginning + content
    files = {f"train__{ending.replace('.', '__')}": gzip.compress(whole) if packed else whole}
    with scratch() as root:
        rows_read(written(root, **files, test__jsonl=json.dumps(GOOD[0]).encode()))


@EXAMPLES
@given(
    rows=st.lists(st.fixed_dictionaries({"text": st.text(max_size=4), "label": st.sampled_from(["a", "", "b", None])}))
)
def test_every_row_of_the_hub_is_used_or_left_out_and_counted(rows: list[dict[str, str | None]]) -> None:
    task = HubTask(dataset="some", text="{text}", label="label")
    bad: list[str] = []
    split = as_split(datasets.Dataset.from_list(rows or [{"text": "", "label": ""}]), "some train", task, bad)
    assert len(split.rows) + len(bad) == max(1, len(rows))
