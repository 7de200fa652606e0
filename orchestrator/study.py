"""A study: several runs on one stream, named in a file, and one page of Markdown with what they gave.

    # docs/studies/example.yaml
    title: Two ranks on Split Digits
    about: What the reader should know before the table.
    settings: [benchmark=split_digits, head=gaussian]     # of all rows
    seeds: [0, 1, 2]
    rows:
      rank 4: [method=lora, method.rank=4]                # the first row is what seconds are relative to
      rank 8: [method=lora, method.rank=8]
    matrices: true                                        # show each row's accuracy matrix of the first seed

Runs that are finished are not run again, and a stopped one goes on, so a study can be stopped and grown at will.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, field_validator

from orchestrator.compose import explain, load_experiment
from orchestrator.config import LONGEST_NAME, Experiment, Settings
from orchestrator.errors import UserError
from orchestrator.study_page import page

OTHER, PUNCTUATION = re.compile(r"[^A-Za-z0-9._-]+"), re.compile(r"[^A-Za-z0-9.]+")
PLACES = ("storage=", "tracking.", "checkpoint.")


class Study(Settings):
    """What a study's file says."""

    title: str
    about: str = ""
    settings: list[str] = Field(default_factory=list)
    seeds: list[int] = Field(default=[0], min_length=1)
    rows: dict[str, list[str]] = Field(min_length=1)
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


def experiments(file: Path, study: Study, settings: list[str]) -> dict[str, list[Experiment]]:
    """The runs of each row, one a seed; UserError names the row whose settings are wrong."""
    owners: dict[str, str] = {}
    for label in study.rows:
        other = owners.setdefault(run_name(file, label, 0), label)
        if other != label:
            raise UserError(f"{file}: the rows {other!r} and {label!r} would have the same folder; rename one")
    return {label: experiments_of_row(file, study, label, settings) for label in study.rows}


def experiments_of_row(file: Path, study: Study, label: str, settings: list[str]) -> list[Experiment]:
    given = [*study.settings, *study.rows[label], *settings]
    with row_named(file, label):
        return [load_experiment([*given, f"seed={s}", f"name={run_name(file, label, s)}"]) for s in study.seeds]


def run_name(file: Path, label: str, seed: int) -> str:
    end = f"-seed{seed}"
    words = f"{OTHER.sub('-', file.stem)}-{PUNCTUATION.sub('-', label).strip('-.')}"
    return words.lstrip("-._")[: LONGEST_NAME - len(end)] + end


def run_study(
    file: Path,
    output: Path,
    settings: list[str],
    check: Callable[[Experiment], None],
    launch: Callable[[Experiment], dict[str, Any]],
) -> dict[str, list[dict[str, Any]]]:
    """Run all rows and write ``output`` anew after each, so that a long study can be looked at.

    Every row is checked before the first one starts.
    """
    study = read_study(file)
    rows = experiments(file, study, settings)
    for label, runs in rows.items():
        with row_named(file, label):
            check(runs[0])
    check_page(output)
    results: dict[str, list[dict[str, Any]]] = {}
    for label, runs in rows.items():
        results[label] = [launch(experiment) for experiment in runs]
        written = page(study.title, study.about, command(file, settings), results, study.matrices)
        output.write_text(written, encoding="utf-8")
    return results


@contextmanager
def row_named(file: Path, label: str) -> Iterator[None]:
    """An error names the row."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{file}: row {label!r}: {error}") from None


def check_page(output: Path) -> None:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written ({error.strerror}); name another file") from None
    if output.is_dir():
        raise UserError(f"--output {output}: it is a folder; name a file in it")


def command(file: Path, settings: list[str]) -> str:
    """What repeats the study; where its runs lie and are recorded does not matter."""
    needed = [setting for setting in settings if not setting.startswith(PLACES)]
    return shlex.join(["run.py", "compare", shown(file), *needed])


def shown(file: Path) -> str:
    """The file as a reader would type it from the project's folder."""
    project = Path(__file__).resolve().parents[1]
    absolute = file.resolve()
    return str(absolute.relative_to(project)) if absolute.is_relative_to(project) else file.name
