"""Places that runs read from and write to: names that are no UTF-8, files in the way, a full disk."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from orchestrator.launch import launch_run, train
from orchestrator.settings.compose import load_experiment
from orchestrator.settings.config import Experiment
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


def test_where_a_file_is_in_the_way_is_one_line(tmp_path: Path) -> None:
    for settings in (["name=file", f"storage={tmp_path}"], ["name=a", f"storage={tmp_path / 'file'}"]):
        (tmp_path / "file").write_text("mine")
        with pytest.raises(UserError, match=rf": {tmp_path}/file is a file; choose another name=… or storage=…$"):
            launch_run(load_experiment(["method=lora", *settings]))
        assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(sys.platform == "win32", reason="there are no limits of this kind")
def test_a_run_whose_disk_is_full_says_so_and_goes_on_later(small: Callable[..., Experiment]) -> None:
    """The largest size that a file may have stands for the disk: the second checkpoint is larger than the first."""
    import resource

    whole, stopped = (small("method=sdlora", "benchmark.tasks=2", "train.epochs=1", f"name={name}") for name in "ab")
    result = train(whole)
    sizes = [file.stat().st_size for file in sorted(whole.folder.glob("checkpoints/*/tensors.safetensors"))]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (sizes[-1] - 1, hard))
    try:
        with pytest.raises(
            UserError, match=rf"^{stopped.folder}: cannot be written to \(.*; mend that, and the same comm"
        ):
            train(stopped)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(list(stopped.folder.glob("checkpoints/0*"))) == 1
    assert train(stopped)["accuracy_matrix"] == result["accuracy_matrix"]
