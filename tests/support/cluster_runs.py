"""Runs on a cluster, and what two of them decide, compared."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.cluster.connect import connected
from orchestrator.launch import train
from orchestrator.settings.config import Experiment


def train_on_cluster(experiment: Experiment) -> dict[str, Any]:
    with connected([experiment]):
        return train(experiment)


def same_search(left: dict[str, Any], right: dict[str, Any]) -> None:
    """Equal decisions; accuracies may differ by an example or two, since sums are formed in another order."""
    one, other = left["method_report"], right["method_report"]
    assert one["chosen"] == other["chosen"]
    assert one["pulls"] == other["pulls"]
    assert [(n["parent"], n["tasks"]) for n in one["tree"]["nodes"]] == [
        (n["parent"], n["tasks"]) for n in other["tree"]["nodes"]
    ]
    for row, expected in zip(left["accuracy_matrix"], right["accuracy_matrix"], strict=True):
        assert row == pytest.approx(expected, abs=0.05)
