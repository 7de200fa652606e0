"""One seed on none, one, two and three workers: the same start to the bit, the same tree, the same choices."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.launch import train
from orchestrator.run import checkpoint
from tests.support.cluster_runs import same_search, train_on_cluster
from tests.support.experiments import small_experiment
from tests.support.two_nodes import two_node_cluster

pytestmark = [pytest.mark.ray, pytest.mark.slow]
WORLDS = range(4)


def ended(user: ProcessPoolExecutor, folder: Path, workers: int, *settings: str) -> tuple[dict[str, Any], Path]:
    """The result of a run, and its folder."""
    experiment = small_experiment(folder, *settings, f"scale.workers={workers}")
    result = user.submit(train_on_cluster, experiment).result() if workers else train(experiment)
    return result, experiment.folder


def test_every_number_of_workers_starts_and_decides_alike(tmp_path: Path) -> None:
    """Adapters as they begin: a rate that changes no weight but zeros leaves them in the last checkpoint."""
    still = ["method=lora", "train.epochs=1", "train.optimizer=sgd", "train.learning_rate=1e-30", "benchmark.tasks=2"]
    searching = ["train.epochs=1", "method.search.every=1"]
    starts: list[dict[str, Tensor]] = []
    results = []
    with two_node_cluster(tmp_path, cpus=2) as cluster, cluster.user() as user:
        for workers in WORLDS:
            _, folder = ended(user, tmp_path, workers, *still, f"name=start{workers}")
            tensors = (checkpoint.load(folder) or ({}, {}))[0]
            starts.append({name: tensor for name, tensor in tensors.items() if "lora_A" in name})
            results.append(ended(user, tmp_path, workers, *searching, f"name=search{workers}")[0])
    assert len(starts[0]) == 6
    for start, result in zip(starts[1:], results[1:], strict=True):
        assert start.keys() == starts[0].keys()
        assert all(torch.equal(start[name], tensor) for name, tensor in starts[0].items())
        same_search(result, results[0])
