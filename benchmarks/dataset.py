"""What a source of data reads, from which settings, and the registry of sources."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from benchmarks.account import Account
from benchmarks.formats import PADDING

FREE = -1  # the label of a row whose answer is free text
SUBSET = ("classes", "first", "train_per_class", "test_per_class")  # settings that leave data out


class BenchmarkError(ValueError):
    """Data that cannot be used: the message names the setting or file and the way out."""


class TextConfig(BaseModel):
    """Settings ``benchmark.text.<field>``, for streams of text."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    length: int = Field(256, gt=0, description="tokens of the input; a longer text loses its end, a prompt its start")
    answer_length: int = Field(50, gt=0, description="tokens of an answer, at most")
    template: str = Field("{text}\nOptions: {options}\nAnswer:", description="a labelled text as a prompt")
    add_dataset_name: bool = Field(False, description="put the task's name before each text; this leaks the task")
    score: str = Field("exact_match", description="score of free answers")
    scores: dict[str, str] = Field(default_factory=dict, description="score of some tasks, by name")

    @field_validator("scores", mode="before")
    @classmethod
    def by_names(cls, scores: Any) -> Any:
        """A task may be called by digits."""
        return {str(name): score for name, score in scores.items()} if isinstance(scores, dict) else scores


class StreamConfig(BaseModel):
    """What a stream is made of; every field is a setting ``benchmark.<field>``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    source: str = Field(description="registered reader of the data")
    tasks: int | tuple[str, ...] | None = Field(
        None, description="parts to divide the classes into, or names of the data's own tasks; null: its own, all"
    )
    scenario: Literal["class", "domain", "task"] = Field(
        "class",
        description="class: one growing label space; domain: one label space, new inputs; task: known at test",
    )
    path: Path | None = Field(None, description="file or folder of the data, where the source needs one")
    options: dict[str, Any] = Field(default_factory=dict, description="what only this source needs")
    classes: int | None = Field(None, gt=0, description="use only so many classes, the first of the order")
    first: int | None = Field(None, description="learn only so many tasks, the first of the stream, as the whole would")
    train_per_class: int | None = Field(None, gt=1, description="use only so many train rows a class")
    test_per_class: int | None = Field(None, gt=0, description="use only so many test rows a class")
    validation_share: float = Field(0.1, gt=0, lt=1, description="share of the train split held out for tuning")
    skip_bad: bool = Field(False, description="leave out files and lines that cannot be read, and count them")
    text: TextConfig = TextConfig()

    @field_validator("path")
    @classmethod
    def found(cls, path: Path | None) -> Path | None:
        """A path that exists here is made absolute, since workers start elsewhere; others are for the data folder."""
        path = path.expanduser() if path else None
        return path.absolute() if path and path.exists() else path

    @property
    def subset(self) -> dict[str, int]:
        """The settings that leave data out; they stand in the run's name and result."""
        return {name: limit for name in SUBSET if (limit := getattr(self, name)) is not None}

    @field_validator("tasks", mode="before")
    @classmethod
    def as_names(cls, tasks: Any) -> Any:
        """A list holds names, also where these are digits; numbers with a fraction stay what they are."""
        if not isinstance(tasks, list | tuple):
            return tasks
        return [str(name) if isinstance(name, int) and not isinstance(name, bool) else name for name in tasks]

    @field_validator("tasks")
    @classmethod
    def some(cls, tasks: int | tuple[str, ...] | None) -> int | tuple[str, ...] | None:
        if isinstance(tasks, int) and tasks < 1:
            raise ValueError("should be at least 1")
        if isinstance(tasks, tuple) and (not tasks or len(set(tasks)) < len(tasks)):
            raise ValueError("name each task once")
        return tasks


@dataclass(frozen=True)
class Records:
    """One split as a source reads it: nothing decoded, nothing tokenised.

    ``items`` are image files, texts, or (``Tensor`` uint8 [n, 3, height, width]) images that are ready. ``labels``
    [n] index the class names (``FREE`` where the answer is free), ``groups`` [n] the data's own tasks, where it has
    any. ``answers`` are the free answers. ``held_out`` [n] bool, of the train split: the rows that the publisher has
    set aside for validation; None leaves that to ``benchmark.validation_share``.
    """

    items: Sequence[Path] | Sequence[str] | Tensor
    labels: Tensor
    groups: Tensor | None = None
    answers: Sequence[str] = ()
    held_out: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """Both official splits. ``skipped`` names the files and lines that were left out, ``account`` counts what else was
    done with the data."""

    train: Records
    test: Records
    class_names: list[str]
    group_names: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    account: Account = field(default_factory=Account)


@dataclass(frozen=True)
class Batch:
    """Some rows, in memory. Tokens are int32, padded with -1 at the end."""

    inputs: Tensor  # images uint8 [n, 3, height, width], or tokens [n, length]
    labels: Tensor  # int64 [n]
    answers: Tensor | None = None  # tokens [n, length] of the answers, where a model writes them
    references: tuple[str, ...] = ()  # the free answers as text

    def to(self, device: torch.device) -> Batch:
        answers = None if self.answers is None else self.answers.to(device)
        return replace(self, inputs=self.inputs.to(device), labels=self.labels.to(device), answers=answers)


@dataclass(frozen=True)
class Examples:
    """The rows ``rows`` [n] of prepared arrays, which may be memory-mapped and are read when a batch is taken."""

    inputs: Tensor  # [all, ...]
    labels: Tensor  # [all]
    rows: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    answers: Tensor | None = None  # [all, length]
    references: Sequence[str] = ()  # all
    digests: Tensor | None = None  # SHA-256 uint8 [all, 32] of the inputs, where they were hashed before

    @classmethod
    def of(cls, inputs: Tensor, labels: Tensor) -> Examples:
        """All rows of arrays."""
        return cls(inputs, labels, torch.arange(len(labels)))

    @classmethod
    def joined(cls, parts: Sequence[Examples]) -> Examples:
        """The rows of several parts of the same arrays, one part after another; ValueError for other arrays."""
        if any(part.inputs is not parts[0].inputs for part in parts):
            raise ValueError("the parts are rows of different arrays")
        return replace(parts[0], rows=torch.cat([part.rows for part in parts]))

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: Tensor) -> Examples:
        return replace(self, rows=self.rows[rows])

    def batch(self) -> Batch:
        """All rows, read."""
        answers = None if self.answers is None else self.answers[self.rows]
        references = tuple(self.references[row] for row in self.rows.tolist()) if self.references else ()
        return Batch(self.inputs[self.rows], self.own_labels(), answers, references)

    def own_labels(self) -> Tensor:
        """Labels [n]; the inputs are not read."""
        return self.labels[self.rows]

    def lengths(self) -> Tensor | None:
        """Numbers of tokens [n] without padding; None where the inputs are images."""
        return (self.inputs[self.rows] != PADDING).sum(1) if self.inputs.dim() == 2 else None


SOURCES: dict[str, Callable[[StreamConfig], Dataset]] = {}


def source(name: str) -> Callable[[Callable[[StreamConfig], Dataset]], Callable[[StreamConfig], Dataset]]:
    """Register a reader of data under ``benchmark.source``; a name that is taken raises."""

    def add(reader: Callable[[StreamConfig], Dataset]) -> Callable[[StreamConfig], Dataset]:
        if name in SOURCES:
            raise ValueError(f"source {name!r} is registered twice")
        SOURCES[name] = reader
        return reader

    return add
