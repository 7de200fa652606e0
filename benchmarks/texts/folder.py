"""Source of texts on disk: a folder with one folder a task, each with train and test rows as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.archives import data_folder, folders
from benchmarks.dataset import BenchmarkError, Dataset, StreamConfig, source
from benchmarks.sources import located
from benchmarks.texts.assembled import assembled
from benchmarks.texts.rows import Label, RowError, Split, TextTask, as_labels, as_row

BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # Windows editors write it, and json refuses it


@source("jsonl_folder")
def jsonl_folder(config: StreamConfig) -> Dataset:
    """``TASK/{train,test}.jsonl`` of ``{"text", "label"}`` or ``{"prompt", "answer"}``, or ``.json`` with one list.

    ``benchmark.path`` is the folder or an archive of it; one folder around all tasks is entered.
    ``benchmark.tasks`` names the tasks in order, else they come by name. The labels of a task are listed in
    ``TASK/labels.json``, or in ``tasks.json`` as ``{TASK: {"labels": [...]}}``, else they follow from its train rows.
    """
    path, root = located(config), data_folder(config)
    shown = root if path.is_dir() else path
    bad: list[str] = []
    tasks = [read_task(root / name, shown / name, bad) for name in chosen(root, path, config)]
    return assembled(tasks, bad, config.skip_bad)


def task_names(root: Path) -> list[str]:
    return [folder.name for folder in folders(root) if split_files(folder, "train") + split_files(folder, "test")]


def split_files(folder: Path, split: str) -> list[Path]:
    return [file for ending in ("jsonl", "json") if (file := folder / f"{split}.{ending}").is_file()]


def chosen(root: Path, path: Path, config: StreamConfig) -> list[str]:
    """The tasks to read, in order."""
    names = task_names(root)
    if not names:
        raise BenchmarkError(
            f"benchmark.path={path}: no task in it; each task is a folder with train.jsonl and test.jsonl"
        )
    wanted = list(config.tasks) if isinstance(config.tasks, tuple) else names
    for name in wanted:
        if name not in names:
            raise BenchmarkError(f"benchmark.tasks: no task {name!r} in {path}; there are {', '.join(names)}")
    return wanted


def read_task(folder: Path, shown: Path, bad: list[str]) -> TextTask:
    """``shown`` is the folder's name in messages: inside an archive, a path below the archive's."""
    train, test = (read_split(folder, shown, split, bad) for split in ("train", "test"))
    return TextTask(folder.name, train, test, given_labels(folder, shown))


def read_split(folder: Path, shown: Path, split: str, bad: list[str]) -> Split:
    """The good rows of one file; place and reason of each other row are added to ``bad``."""
    files = split_files(folder, split)
    if len(files) != 1:
        trouble = f"{split}.jsonl and {split}.json are both there" if files else f"no {split}.jsonl (or {split}.json)"
        raise BenchmarkError(f"{shown}: {trouble}; a task needs one file of each split")
    place = str(shown / files[0].name)
    content = files[0].read_bytes().removeprefix(BYTE_ORDER_MARK)
    places = json_list(content, place) if files[0].suffix == ".json" else json_lines(content, place)
    if not places:
        raise BenchmarkError(f"{place}: the file is empty; add rows or leave out the task {folder.name!r}")
    rows = []
    for where, found in places:
        try:
            rows.append(as_row(where, parsed(found) if isinstance(found, bytes) else found))
        except RowError as error:
            bad.append(f"{where}: {error}")
    return Split(place, rows)


def json_lines(content: bytes, place: str) -> list[tuple[str, object]]:
    """Every line that is not blank, with its number."""
    # As bytes: text splits at U+2028 too, which JSON allows inside a string, and one bad byte would spoil all lines.
    lines = enumerate(content.split(b"\n"), 1)
    return [(f"{place}:{number}", line) for number, line in lines if line.strip()]


def json_list(content: bytes, place: str) -> list[tuple[str, object]]:
    """The entries of one JSON list, with their numbers."""
    if not content.strip():
        return []
    entries = whole(content, place)
    if not isinstance(entries, list):
        raise BenchmarkError(f"{place}: not a JSON list; put one line for each row into a .jsonl file instead")
    return [(f"{place}: entry {number}", entry) for number, entry in enumerate(entries, 1)]


def parsed(line: bytes) -> object:
    """One line of JSON; RowError says what is wrong."""
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise RowError(f"not UTF-8 (byte {error.start + 1} of the line)") from None
    except json.JSONDecodeError as error:
        raise RowError(f"not JSON ({error.msg} at column {error.colno})") from None
    # A number of over 4,300 digits, or brackets nested too deep.
    except (ValueError, RecursionError) as error:
        raise RowError(f"not JSON ({error})") from None


def whole(content: bytes, place: str) -> Any:
    """A whole file of JSON; BenchmarkError names the line."""
    try:
        return json.loads(content.decode())
    except UnicodeDecodeError as error:
        line, reason = content[: error.start].count(b"\n") + 1, "not UTF-8"
    except json.JSONDecodeError as error:
        line, reason = error.lineno, f"not JSON ({error.msg})"
    except (ValueError, RecursionError) as error:
        line, reason = 1, f"not JSON ({error})"
    raise BenchmarkError(f"{place}:{line}: {reason}; correct the file")


def given_labels(folder: Path, shown: Path) -> list[Label] | None:
    """The list of labels that comes with the data, if any."""
    own, common = folder / "labels.json", folder.parent / "tasks.json"
    if own.is_file():
        return labels_in(read_json(own, shown / own.name), shown / own.name)
    tasks = read_json(common, shown.parent / common.name) if common.is_file() else {}
    about = tasks.get(folder.name) if isinstance(tasks, dict) else None
    if not isinstance(about, dict) or "labels" not in about:
        return None
    return labels_in(about["labels"], f"{shown.parent / common.name}: task {folder.name!r}")


def read_json(file: Path, shown: Path) -> Any:
    return whole(file.read_bytes().removeprefix(BYTE_ORDER_MARK), str(shown))


def labels_in(value: object, place: str | Path) -> list[Label]:
    try:
        return as_labels(value)
    except RowError as error:
        raise BenchmarkError(f"{place}: {error}") from None
