"""A backbone that one worker has no memory for trains on two."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
from safetensors.torch import save_file

# Between what one worker needs for a ViT-L (1,157 MiB of weights) and what each of two does.
LIMIT = 1000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("limited")
    model = timm.create_model("vit_large_patch16_224", num_classes=0)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path / "vit.safetensors")
    return path


def started(folder: Path, rank: int, world: int, limit: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.support.limited", str(rank), str(world), str(limit), str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
def test_a_backbone_that_one_worker_has_no_memory_for_trains_on_two(folder: Path) -> None:
    alone = started(folder, 0, 1, 0)
    expected = json.loads(alone.communicate()[0])
    refused = started(folder, 0, 1, LIMIT)
    said = refused.communicate()[0]
    assert refused.returncode == 2
    assert said.startswith("error: the backbone does not fit into this worker's memory: share it among more workers")
    two = [started(folder, rank, 2, LIMIT) for rank in range(2)]
    for worker in two:
        found, trouble = worker.communicate()
        assert worker.returncode == 0, trouble
        assert json.loads(found) == pytest.approx(expected, rel=1e-4)
