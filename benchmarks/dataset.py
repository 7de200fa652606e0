"""What a source of data reads, from which settings, and the registry of sources."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor


class BenchmarkError(ValueError):
    """Data that cannot be used: the message names the setting or file and the way out."""


class StreamConfig(BaseModel):
    """What a stream is made of; every field is a setting ``benchmark.<field>``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    source: str = Field(description="registered reader of the data")
    tasks: int = Field(gt=0, description="number of tasks that the classes are divided into")
    scenario: Literal["class", "task"] = Field(
        "class", description="class: one label space over all seen classes; task: the task is known at test"
    )
    path: Path | None = Field(None, description="file or folder of the data, where the source needs one")
    train_per_class: int | None = Field(None, gt=1, description="use only so many train images a class")
    test_per_class: int | None = Field(None, gt=0, description="use only so many test images a class")
    validation_share: float = Field(0.1, gt=0, lt=1, description="share of the train split held out for tuning")

    @field_validator("path")
    @classmethod
    def absolute(cls, path: Path | None) -> Path | None:
        return path.expanduser().absolute() if path else None


@dataclass(frozen=True)
class Examples:
    """Inputs (images: uint8 [n, 3, height, width]) and labels (int64 [n])."""

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor) -> Examples:
        return Examples(self.inputs[rows], self.labels[rows])


@dataclass(frozen=True)
class Dataset:
    """What a source reads: both official splits with the labels of ``class_names``."""

    train: Examples
    test: Examples
    class_names: list[str]


SOURCES: dict[str, Callable[[StreamConfig], Dataset]] = {}


def source(name: str) -> Callable[[Callable[[StreamConfig], Dataset]], Callable[[StreamConfig], Dataset]]:
    """Register a reader of data under ``benchmark.source``; a name that is taken raises."""

    def add(reader: Callable[[StreamConfig], Dataset]) -> Callable[[StreamConfig], Dataset]:
        if name in SOURCES:
            raise ValueError(f"source {name!r} is registered twice")
        SOURCES[name] = reader
        return reader

    return add
