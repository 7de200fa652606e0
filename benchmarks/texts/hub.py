"""Source of texts from the Hugging Face hub: each task is one of its data sets."""

from __future__ import annotations

from collections.abc import Iterator
from string import Formatter
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from benchmarks.dataset import BenchmarkError, Dataset, StreamConfig, source
from benchmarks.sources import data_root, refuse_path
from benchmarks.texts.assembled import assembled
from benchmarks.texts.rows import Label, RowError, Split, TextTask, as_labels, as_row

if TYPE_CHECKING:
    import datasets

SETTING = "benchmark.options.tasks"


class HubTask(BaseModel):
    """One task, ``benchmark.options.tasks.<task>.<field>``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str = Field(description="name on the hub, or a folder of files (absolute, or in the data folder)")
    config: str | None = Field(None, description="configuration of the data set, where it has several")
    train: str = Field("train", description="split to learn from")
    test: str = Field("test", description="split to test on")
    text: str = Field(description="a text, with columns in braces: {question} {answer}")
    label: str = Field(description="column of the label")
    labels: tuple[str, ...] | None = Field(None, description="words of the labels; an integer label counts into them")


@source("hub_texts")
def hub_texts(config: StreamConfig) -> Dataset:
    """``benchmark.options.tasks`` describes the tasks (``HubTask``), ``benchmark.tasks`` chooses and orders them."""
    refuse_path(config)
    bad: list[str] = []
    tasks = [read_task(name, task, bad) for name, task in chosen(config).items()]
    return assembled(tasks, bad, config.skip_bad)


def chosen(config: StreamConfig) -> dict[str, HubTask]:
    """The tasks to read, in order."""
    described = config.options.get("tasks")
    if not isinstance(described, dict) or not described:
        raise BenchmarkError(f"{SETTING}: describe the tasks as {{TASK: {{dataset: …, text: …, label: …}}}}")
    wanted = list(config.tasks) if isinstance(config.tasks, tuple) else list(described)
    for name in wanted:
        if name not in described:
            raise BenchmarkError(f"benchmark.tasks: no task {name!r} in {SETTING}; there are {', '.join(described)}")
    return {name: checked(name, described[name]) for name in wanted}


def checked(name: str, described: object) -> HubTask:
    try:
        return HubTask.model_validate(described)
    except ValidationError as error:
        finding = error.errors()[0]
        place = ".".join([SETTING, name, *map(str, finding["loc"])])
        raise BenchmarkError(f"{place}: {finding['msg']}; the fields are {', '.join(HubTask.model_fields)}") from None


def read_task(name: str, task: HubTask, bad: list[str]) -> TextTask:
    train, test = load(name, task)
    for column in (*text_columns(name, task), task.label):
        if column not in train.column_names or column not in test.column_names:
            there = ", ".join(train.column_names)
            raise BenchmarkError(f"{SETTING}.{name}: no column {column!r} in {task.dataset}; there are {there}")
    return TextTask(
        name,
        as_split(train, f"{task.dataset} {task.train}", task, bad),
        as_split(test, f"{task.dataset} {task.test}", task, bad),
        given_labels(name, task, train),
    )


def load(name: str, task: HubTask) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Both splits. Nothing of a data set is executed: this library only reads files."""
    import datasets  # slow, and only this source needs it

    folder = data_root() / task.dataset
    try:
        train, test = datasets.load_dataset(
            str(folder) if folder.is_dir() else task.dataset, task.config, split=[task.train, task.test]
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise BenchmarkError(
            f"{SETTING}.{name}: {task.dataset} cannot be loaded ({str(error).splitlines()[0]}); "
            "check the name and the network, or name a folder of its files"
        ) from None
    return train, test


def text_columns(name: str, task: HubTask) -> list[str]:
    """The columns that the text is made of."""
    try:
        return [field for _, field, _, _ in Formatter().parse(task.text) if field is not None]
    except ValueError as error:
        raise BenchmarkError(f"{SETTING}.{name}.text={task.text}: {error}; columns are written as {{column}}") from None


def as_split(part: datasets.Dataset, place: str, task: HubTask, bad: list[str]) -> Split:
    """The good rows of one split; place and reason of each other row are added to ``bad``."""
    rows = []
    for where, fields in filled(part, place, task):
        try:
            rows.append(as_row(where, fields))
        except RowError as error:
            bad.append(f"{where}: {error}")
    return Split(place, rows)


def filled(part: datasets.Dataset, place: str, task: HubTask) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place, text and label of every row; a missing value is an empty text."""
    for number, row in enumerate(part, 1):
        known = {name: "" if value is None else value for name, value in row.items()}
        yield f"{place} row {number}", {"text": task.text.format_map(known), "label": row[task.label]}


def given_labels(name: str, task: HubTask, train: datasets.Dataset) -> list[Label] | None:
    """The task's own list of words, else the names that come with the column."""
    words = task.labels if task.labels is not None else getattr(train.features[task.label], "names", None)
    try:
        return None if words is None else as_labels(words)
    except RowError as error:
        raise BenchmarkError(f"{SETTING}.{name}.labels: {error}") from None
