"""Paths whose bytes are no UTF-8, as other systems and older ones left them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from mlflow import MlflowClient

from orchestrator.launch import launch_run
from orchestrator.settings.compose import load_experiment
from orchestrator.settings.errors import UserError
from tests.support import planted


def test_a_path_that_is_no_utf8_is_recorded_with_stand_ins(tmp_path: Path, cache: Path) -> None:
    photos = planted.classes(tmp_path / os.fsdecode(b"caf\xe9"), "ant", "bee")
    settings = ["benchmark=image_folder", f"benchmark.path={photos}", "benchmark.tasks=2", "method=lora", "name=a"]
    launch_run(load_experiment([*settings, "train.epochs=1", f"storage={tmp_path / 'runs'}"]))
    client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    [run] = client.search_runs([client.get_experiment_by_name("evergreen").experiment_id])
    assert run.data.params["benchmark.path"] == f"{tmp_path}/caf\ufffd"
    assert f"{tmp_path}/caf" in (tmp_path / "runs" / "a" / "report.html").read_text()


def test_a_storage_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^storage=.*: its name is not UTF-8"):
        load_experiment([f"storage={tmp_path / os.fsdecode(bytes([233]))}"])
