"""Files of rows in every format, packing and encoding; and whatever a file has, each of its rows is accounted for."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from benchmarks.dataset import StreamConfig
from benchmarks.formats import TextFormat
from benchmarks.stream import build_stream
from tests.benchmarks.test_texts import NEWS, SUMS, plain, read, refusal, written

Rows = list[dict[str, Any]]


def lines(rows: Rows) -> bytes:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()


def table(rows: Rows, delimiter: str = ",") -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def columnar(rows: Rows) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


def zstandard(content: bytes) -> bytes:
    return bytes(pyarrow.Codec("zstd").compress(content))


FORMATS: dict[str, Callable[[Rows], bytes]] = {
    "jsonl": lines,
    "ndjson": lines,
    "json": lambda rows: json.dumps(rows).encode(),
    "csv": table,
    "CSV": lambda rows: table(rows, ";"),
    "tsv": lambda rows: table(rows, "\t"),
    "parquet": columnar,
}
PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".XZ": lzma.compress,
    ".zst": zstandard,
}
ODD = [
    {"text": 'a "goal", and\na line', "label": "sport"},
    {"text": "a\u2028b; c\t d", "label": "7 up"},
    {"text": "é\x85", "label": "politics"},
]
KINDS = {"labelled": ODD, "free": SUMS}


def replaced(folder: Path, *files: tuple[str, bytes]) -> Path:
    """A task of these files."""
    folder.mkdir(parents=True)
    for name, content in files:
        (folder / name).write_bytes(content)
    return folder.parent


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("ending", FORMATS)
def test_the_same_rows_are_the_same_data_in_every_format(tmp_path: Path, ending: str, packing: str, kind: str) -> None:
    rows = KINDS[kind]
    pack, file = PACKINGS[packing], FORMATS[ending]
    expected = plain(read(written(tmp_path / "expected", {"task": rows})))
    found = replaced(
        tmp_path / "found" / "task",
        (f"Train.{ending}{packing}", pack(file(rows))),
        (f"testing.{ending}{packing}", pack(file(rows[1:]))),
    )
    assert plain(read(found)) == expected


def test_a_split_that_the_hub_divides_into_files_is_read_whole(tmp_path: Path) -> None:
    parts = [(f"train-0000{n}-of-00003.parquet", columnar([row])) for n, row in enumerate(NEWS)]
    rest = [("test.csv", table(NEWS[1:]))]
    assert plain(read(replaced(tmp_path / "found" / "task", *parts, *rest))) == plain(
        read(written(tmp_path / "expected", {"task": NEWS}))
    )
    folder = replaced(tmp_path / "lost" / "task", *parts[:2], *rest)
    assert refusal(folder) == (
        f"{folder}/task: train-00000-of-00003.parquet and train-00001-of-00003.parquet are both there; "
        "a task needs one file of each split"
    )


ENCODINGS = ["utf-8", "utf-8-sig", "utf-16"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv"])
def test_utf_16_is_read_by_its_mark(tmp_path: Path, ending: str, encoding: str) -> None:
    content = FORMATS[ending](ODD).decode().encode(encoding)
    folder = replaced(tmp_path / "found" / "task", (f"train.{ending}", content), ("test.jsonl", lines(ODD)))
    assert read(folder).train.items == [row["text"] for row in ODD]


BROKEN: dict[str, tuple[bytes, str]] = {
    "jsonl": ("\n".join(map(json.dumps, NEWS)).encode("utf-16-le"), ":1: not UTF-8, likely UTF-16 without its mark; "),
    "csv": (b'text,label\na,b\n"c,d\ne,f\n', ":3: the quotes do not fit (unexpected end of data); write a quote "),
    "tsv": (b"sentence\tlabel\na\tb\n", ": the columns are sentence, label; they need to have text and label, or "),
    "parquet": (b"PAR1 cut", ": cannot be read as Parquet ("),
    "jsonl.gz": (gzip.compress(lines(NEWS))[:-20], ": cannot be decompressed ("),
    "jsonl.bz2": (bz2.compress(lines(NEWS))[:-20], ": cannot be decompressed ("),
    "jsonl.xz": (b"no", ": cannot be decompressed ("),
    "jsonl.zst": (b"no such bytes", ": cannot be decompressed ("),
    "json": (b"\xff\xfe[", ": not whole UTF-16 ("),
}


@pytest.mark.parametrize("ending", BROKEN)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, ending: str) -> None:
    content, reason = BROKEN[ending]
    folder = replaced(tmp_path / "task", (f"train.{ending}", content), ("test.jsonl", lines(NEWS)))
    assert refusal(folder, skip_bad=True).startswith(f"{folder}/task/train.{ending}{reason}")


def test_bad_rows_of_a_table_are_named_by_line(tmp_path: Path) -> None:
    content = b'text,label\na,x\n"two\nlines",x\nb\ncaf\xe9,x\n,x\nc,\n\nd,x\n'
    folder = replaced(tmp_path / "task", ("train.csv", content), ("test.csv", b"label,text,more\nx,z,\n"))
    data = read(folder, skip_bad=True)
    assert data.train.items == ["a", "two\nlines", "d"]
    assert [line.removeprefix(f"{folder}/task/train.csv:") for line in data.skipped] == [
        "5: 1 cells for 2 columns",
        "6: not UTF-8, likely Windows-1252",
        "7: the text is empty",
        "8: the label is empty",
    ]


@pytest.mark.parametrize(
    ("text", "encoding", "guess"),
    [("naïve café", "cp1252", "Windows-1252"), ("привет мир", "cp1251", "GB18030"), ("你好世界", "gb18030", "GB18030")],
)
def test_the_likely_encoding_is_named(tmp_path: Path, text: str, encoding: str, guess: str) -> None:
    content = json.dumps({"text": text, "label": "x"}, ensure_ascii=False).encode(encoding)
    folder = replaced(tmp_path / "task", ("train.jsonl", content), ("test.jsonl", lines(NEWS)))
    assert guess in refusal(folder)


def test_what_is_not_read_is_noted(tmp_path: Path) -> None:
    folder = written(tmp_path / "mine", {"news": NEWS, "other": NEWS})
    for name in ("other/train.jsonl", "other/test.jsonl"):
        (folder / name).rename((folder / name).with_suffix(".txt"))
    (folder / "news" / "train_more.jsonl").write_bytes(lines(NEWS))
    (folder / "all.csv").write_bytes(table(NEWS))
    assert read(folder).account.lines()[:3] == [
        f"1 files of no split, not read (first: {folder}/news/train_more.jsonl)",
        f"1 folders without files of splits, not read (first: {folder}/other)",
        f"1 files outside the tasks' folders, not read (first: {folder}/all.csv)",
    ]


# --- the validation split ---


def test_a_validation_file_is_the_validation_split(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    """A task without one has rows of its train split held out; one without a test file is tested on it."""
    rows = [{"text": f"{label} {n}", "label": label} for n in range(20) for label in ("x", "y")]
    folder = written(tmp_path / "mine", {"both": rows, "none": rows, "only": rows})
    (folder / "both" / "Valid.csv").write_bytes(table(rows[:6]))
    (folder / "only" / "test.jsonl").rename(folder / "only" / "dev.jsonl")
    config = StreamConfig(name="mine", source="jsonl_folder", path=folder)
    stream = build_stream(config, None, TextFormat(str(tiny_models["bert"]), answers=False))
    sizes = [(len(task.train), len(task.validation), len(task.test)) for task in stream.tasks]
    assert [task.name for task in stream.tasks] == ["both", "none", "only"]
    assert sizes == [(40, 6, 39), (36, 4, 39), (36, 4, 39)]
    line = f"1 tasks without a test file, tested on their validation file (first: {folder}/only)"
    assert line in stream.account.lines()


def test_a_validation_file_counts_as_the_others_do(tmp_path: Path) -> None:
    folder = written(tmp_path / "mine", {"news": NEWS})
    file = folder / "news" / "validation.jsonl"
    file.write_bytes(lines([NEWS[0], {"text": "a", "label": "new"}]))
    assert refusal(folder) == f"{file}:2: label 'new' is in no train row of the task; correct this, or leave " + (
        "bad rows out with --skip-bad"
    )
    data = read(folder, skip_bad=True)
    assert data.train.held_out is not None and data.train.held_out.tolist() == [*[False] * len(NEWS), True]
    assert data.skipped == [f"{file}:2: label 'new' is in no train row of the task"]
    file.write_bytes(lines([{"text": "a", "label": "new"}]))
    assert refusal(folder, skip_bad=True).startswith(f"{file}: no usable row is in it; ")


# --- what editors and programs leave ---


def test_blanks_without_a_width_are_blanks(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "x\u200b"}, {"text": "c", "label": "\ufeffx"}]
    data = read(written(tmp_path / "mine", {"news": rows}))
    assert data.class_names == ["x"]
    assert data.account.notes["labels written in another way than the rest"].count == 2 + 2
    empty = written(tmp_path / "empty", {"news": [{"text": " \u200b\u2060", "label": "x"}, *NEWS]})
    assert refusal(empty).startswith(f"{empty}/news/train.jsonl:1: the text is empty")


@pytest.mark.parametrize(("ending", "place"), [("jsonl", ":1"), ("json", ": entry 1")])
def test_a_field_that_is_there_twice_is_no_row(tmp_path: Path, ending: str, place: str) -> None:
    row = '{"text": "a", "label": "x", "label": "y"}'
    content = (row if ending == "jsonl" else f"[{row}]").encode()
    folder = replaced(tmp_path / "task", (f"train.{ending}", content), ("test.jsonl", lines(NEWS)))
    assert refusal(folder).startswith(f"{folder}/task/train.{ending}{place}: the field 'label' is there twice")


def test_a_pointer_of_git_lfs_is_called_one(tmp_path: Path) -> None:
    content = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    folder = replaced(tmp_path / "task", ("train.jsonl", content), ("test.jsonl", lines(NEWS)))
    assert (
        refusal(folder)
        == f"{folder}/task/train.jsonl: only Git LFS's pointer to it is here; fetch it with git lfs pull"
    )
