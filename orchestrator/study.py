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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from orchestrator.compose import explain, load_experiment
from orchestrator.config import Experiment, Settings
from orchestrator.errors import UserError
from orchestrator.study_page import page


class Study(Settings):
    """What a study's file says."""

    title: str
    about: str = ""
    settings: list[str] = Field(default_factory=list)
    seeds: list[int] = Field(default=[0], min_length=1)
    rows: dict[str, list[str]] = Field(min_length=1)
    matrices: bool = False


def read_study(file: Path) -> Study:
    """The study in ``file``; UserError names the file and the field."""
    try:
        return Study.model_validate(yaml.safe_load(file.read_text()))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); name one as in docs/studies") from None
    except yaml.YAMLError as error:
        raise UserError(f"{file}: not YAML ({' '.join(str(error).split())})") from None
    except ValidationError as error:
        raise UserError(f"{file}: {explain(error, Study, '')}") from None


def experiments(file: Path, study: Study, settings: list[str]) -> dict[str, list[Experiment]]:
    """The runs of each row, one a seed; all are checked before the first one starts."""
    return {
        label: [
            load_experiment([*study.settings, *own, *settings, f"seed={seed}", f"name={run_name(file, label, seed)}"])
            for seed in study.seeds
        ]
        for label, own in study.rows.items()
    }


def run_name(file: Path, label: str, seed: int) -> str:
    words = re.sub(r"[^A-Za-z0-9.]+", "-", label).strip("-.")
    return f"{file.stem}-{words}-seed{seed}"[:100]


def run_study(
    file: Path, output: Path, settings: list[str], launch: Callable[[Experiment], dict[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """Run all rows and write ``output`` anew after each, so that a long study can be looked at."""
    study = read_study(file)
    results: dict[str, list[dict[str, Any]]] = {}
    for label, runs in experiments(file, study, settings).items():
        results[label] = [launch(experiment) for experiment in runs]
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(page(study.title, study.about, f"run.py compare {shown(file)}", results, study.matrices))
    return results


def shown(file: Path) -> str:
    """The file as a reader would type it from the project's folder."""
    project = Path(__file__).resolve().parents[1]
    absolute = file.resolve()
    return str(absolute.relative_to(project)) if absolute.is_relative_to(project) else file.name
