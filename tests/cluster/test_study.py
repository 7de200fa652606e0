"""A study's rows on a cluster of two nodes, at the same time, give what they give one after another on one."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from orchestrator.compare import run_study
from orchestrator.study import Study
from tests.support.experiments import SMALL

METHODS = ("lora", "sdlora")


def study_in(folder: Path) -> tuple[Path, Study, Path, list[str], str]:
    folder.mkdir()
    settings = [setting for setting in SMALL if not setting.startswith("method.search")]
    study = Study(title="s", rows={m: [f"method={m}"] for m in METHODS}, seeds=[0, 1], settings=settings)
    return folder / "s.yaml", study, folder / "s.md", [f"storage={folder / 'runs'}"], "run.py compare s.yaml"


def numbers(results: dict[str, list[dict[str, Any]]]) -> list[Any]:
    return [result["accuracy_matrix"] for row in METHODS for result in results[row]]


@pytest.mark.ray
def test_a_study_gives_the_same_on_one_node_and_on_two(user: ProcessPoolExecutor, tmp_path: Path) -> None:
    """The tests' cluster has two nodes of one CPU each."""
    file, study, page, settings, repeat = study_in(tmp_path / "one")
    alone = run_study(file, study, page, [*settings, "sweep.concurrent=1"], repeat)
    together = user.submit(run_study, *study_in(tmp_path / "two")).result()
    # Bits: each row takes the same steps, in one thread, wherever it runs.
    assert numbers(together) == numbers(alone)
    assert (tmp_path / "two" / "s.md").read_text() != "", "and its page is there"
