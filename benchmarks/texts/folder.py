"""Source of texts on disk: a folder with one folder a task, each with the rows of its splits in files."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.account import Account
from benchmarks.archives import data_folder, folders, top_folder, walked
from benchmarks.dataset import BenchmarkError, Dataset, StreamConfig, source
from benchmarks.sources import located
from benchmarks.texts.assembled import assembled
from benchmarks.texts.rows import Label, RowError, Split, TextTask, as_labels, as_row
from benchmarks.texts.tables import PACKED, READERS, read_json, read_rows

SPLITS = {"train": "train|training", "test": "test|testing", "validation": "validation|valid|val|dev"}
SHARD = r"(?:-(\d+)-of-(\d+))?"  # as the hub divides large files
ENDING = rf"\.(?:{'|'.join(READERS)})(?:\.(?:{'|'.join(PACKED)}))?"
NAMES = {split: re.compile(f"(?:{words}){SHARD}{ENDING}", re.IGNORECASE) for split, words in SPLITS.items()}
ROWS = re.compile(f".*{ENDING}", re.IGNORECASE)
LABELS, COMMON = "labels.json", "tasks.json"


@source("jsonl_folder")
def jsonl_folder(config: StreamConfig) -> Dataset:
    """``TASK/{train,test}.jsonl`` of ``{"text", "label"}`` or ``{"prompt", "answer"}``, or other files of such rows.

    ``TASK/validation.jsonl`` is the validation split; without a test file it is the test split.
    ``benchmark.path`` is the folder or an archive of it; one folder around all tasks is entered.
    ``benchmark.tasks`` names the tasks in order, else they come by name. The labels of a task are listed in
    ``TASK/labels.json``, or in ``tasks.json`` as ``{TASK: {"labels": [...]}}``, else they follow from its train rows.
    """
    path, root = located(config), data_folder(config)
    shown = root if path.is_dir() else path
    bad: list[str] = []
    tasks = [read_task(root / name, shown / name, bad) for name in chosen(root, path, config)]
    data = assembled(tasks, bad, config.skip_bad)
    note_unread(root, shown, data.account)
    note_outside(top_folder(config), root, path, data.account)
    return data


def task_names(root: Path) -> list[str]:
    return [folder.name for folder in folders(root) if any(split_files(folder, split) for split in SPLITS)]


def split_files(folder: Path, split: str) -> list[Path]:
    return sorted(file for file in folder.iterdir() if NAMES[split].fullmatch(file.name) and file.is_file())


def note_unread(root: Path, shown: Path, account: Account) -> None:
    """Note files of rows that are of no split, folders without any, and splits that stand for another."""
    names = task_names(root)
    for folder in folders(root):
        if folder.name not in names:
            account.note("folders without files of splits, not read", str(shown / folder.name))
            continue
        if not split_files(folder, "test"):
            account.note("tasks without a test file, tested on their validation file", str(shown / folder.name))
        used = {file for split in SPLITS for file in split_files(folder, split)}
        for file in sorted(folder.iterdir()):
            if file not in used and file.name != LABELS and ROWS.fullmatch(file.name):
                account.note("files of no split, not read", str(shown / folder.name / file.name))


def note_outside(top: Path, root: Path, path: Path, account: Account) -> None:
    """Note files of rows that are in no folder of a task, or deeper in one; ``path`` is what the user calls ``top``."""
    for file in sorted(walked(top)):
        inside = file.parent.parent == root  # in a task's folder, or in one without files of splits
        if not inside and file != root / COMMON and ROWS.fullmatch(file.name):
            account.note("files outside the tasks' folders, not read", str(path / file.relative_to(top)))


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
    *validation, tested = [split for split in ("validation", "test") if split_files(folder, split)] or ["test"]
    train, test, *held_out = (read_split(folder, shown, split, bad) for split in ("train", tested, *validation))
    return TextTask(folder.name, train, test, given_labels(folder, shown), held_out[0] if held_out else None)


def read_split(folder: Path, shown: Path, split: str, bad: list[str]) -> Split:
    """The good rows of a split's file, or of all that it is divided into; others are added to ``bad``."""
    files = split_files(folder, split)
    check_one(files, shown, split)
    found = []
    for file in files:
        found += read_rows(file.read_bytes(), file.name, str(shown / file.name))
    place = str(shown / files[0].name)
    if not found:
        raise BenchmarkError(f"{place}: the file is empty; add rows or leave out the task {folder.name!r}")
    rows = []
    for where, fields in found:
        try:
            rows.append(as_row(where, fields))
        except RowError as error:
            bad.append(f"{where}: {error}")
    return Split(place, rows)


def check_one(files: list[Path], shown: Path, split: str) -> None:
    """BenchmarkError unless there is one file, or all of ``train-00000-of-00002`` to the last."""
    shards = [NAMES[split].fullmatch(file.name) for file in files]
    numbers = [(int(shard[1]), int(shard[2])) if shard and shard[1] else (0, 1) for shard in shards]
    if numbers and numbers == [(number, len(files)) for number in range(numbers[0][1])]:
        return
    there = " and ".join(file.name for file in files)
    trouble = f"{there} are both there" if len(files) == 2 else f"{there} are there" if files else ""
    raise BenchmarkError(
        f"{shown}: {trouble or f'no {split}.jsonl (or {split}.json)'}; a task needs one file of each split"
    )


def given_labels(folder: Path, shown: Path) -> list[Label] | None:
    """The list of labels that comes with the data, if any."""
    own, common = folder / LABELS, folder.parent / COMMON
    if own.is_file():
        return labels_in(read_json(own, shown / own.name), shown / own.name)
    tasks = read_json(common, shown.parent / common.name) if common.is_file() else {}
    about = tasks.get(folder.name) if isinstance(tasks, dict) else None
    if not isinstance(about, dict) or "labels" not in about:
        return None
    return labels_in(about["labels"], f"{shown.parent / common.name}: task {folder.name!r}")


def labels_in(value: object, place: str | Path) -> list[Label]:
    try:
        return as_labels(value)
    except RowError as error:
        raise BenchmarkError(f"{place}: {error}") from None
