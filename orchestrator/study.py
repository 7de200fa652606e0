"""A study: several runs on one stream, named in a file, and one page (Markdown and HTML) with what they gave.

    # docs/studies/example.yaml
    title: Two ranks on Split Digits
    about: What the reader should know before the table.
    settings: [benchmark=split_digits, head=gaussian]     # of all rows
    seeds: [0, 1, 2]
    rows:
      rank 4: [method=lora, method.rank=4]                # seconds are relative to the first row of method lora
      rank 8: [method=lora, method.rank=8]
    groups:                                               # optional: every row under each group, a table for each;
      all data: []                                        # where both name a setting, the row's counts
      few: [benchmark.train_per_class=8]
    matrices: true                                        # show each row's accuracy matrix of the first seed

One without a file is read by ``typed_study.py``.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import yaml
from pydantic import Field, ValidationError, field_validator

from orchestrator.settings.compose import explain, load_experiment
from orchestrator.settings.config import LONGEST_NAME, Experiment, Settings
from orchestrator.settings.errors import UserError

OTHER, PUNCTUATION = re.compile(r"[^A-Za-z0-9._-]+"), re.compile(r"[^A-Za-z0-9.]+")
PLACES = ("storage=", "tracking.", "checkpoint.")


class Study(Settings):
    """The content of a study's file."""

    title: str
    about: str = ""
    settings: list[str] = Field(default_factory=list)
    seeds: list[int] = Field(default=[0], min_length=1)
    rows: dict[str, list[str]] = Field(min_length=1)
    groups: dict[str, list[str]] = Field(default={"": []}, min_length=1)
    matrices: bool = False

    @field_validator("seeds")
    @classmethod
    def each_once(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("name each seed once; the standard error counts runs that differ")
        return seeds


def read_study(file: Path) -> Study:
    """The study in ``file``; UserError names the file and the field."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); name one as in docs/studies") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: not a study; it needs at least title and rows, as in docs/studies")
    try:
        return Study.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{file}: {explain(error, Study, '')}") from None


def experiments(file: Path, study: Study, settings: list[str]) -> dict[str, dict[str, list[Experiment]]]:
    """The runs by group and row, one a seed; UserError names the row whose settings are wrong.

    The one group of a study without groups is "".
    """
    check_folders(file, study)
    found: dict[str, dict[str, list[Experiment]]] = {group: {} for group in study.groups}
    for group, label in product(study.groups, study.rows):
        row = full_name(group, label)
        given = [*study.settings, *study.groups[group], *study.rows[label], *settings]  # the last word on a key counts
        with row_named(file, row):
            found[group][label] = [
                load_experiment([*given, f"seed={seed}", f"name={run_name(file, row, seed)}"]) for seed in study.seeds
            ]
    return found


def check_folders(file: Path, study: Study) -> None:
    """UserError for two rows whose names differ only in what a folder's name leaves out."""
    owners: dict[str, str] = {}
    for group, label in product(study.groups, study.rows):
        row = full_name(group, label)
        other = owners.setdefault(run_name(file, row, 0), row)
        if other != row:
            raise UserError(f"{file}: the rows {other!r} and {row!r} would have the same folder; rename one")


def full_name(group: str, label: str) -> str:
    """A row's name in messages, folders and results: its group in front where there are groups."""
    return f"{group}, {label}" if group else label


def run_name(file: Path, label: str, seed: int) -> str:
    end = f"-seed{seed}"
    words = f"{OTHER.sub('-', file.stem)}-{PUNCTUATION.sub('-', label).strip('-.')}"
    return words.lstrip("-._")[: LONGEST_NAME - len(end)] + end


@contextmanager
def row_named(file: Path, label: str) -> Iterator[None]:
    """An error names the row."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{file}: row {label!r}: {error}") from None


def command(file: Path, settings: list[str]) -> str:
    """What repeats the study, typed in the project's folder; settings of storage and records are left out."""
    project, absolute = Path(__file__).resolve().parents[1], file.resolve()
    # Of a file elsewhere the name alone: a page that is published should not show somebody's folders.
    name = str(absolute.relative_to(project)) if absolute.is_relative_to(project) else file.name
    name = name if file.exists() or "=" not in str(file) else str(file)  # a study from the command line
    needed = [setting for setting in settings if not setting.startswith(PLACES)]
    return shlex.join(["run.py", "compare", name, *needed])
