"""A run's task, accuracy and loss as Ray metrics, for Prometheus and Grafana."""

from __future__ import annotations

from typing import Any

from ray.util.metrics import Gauge

TAGS = ("run", "method")


class RunGauges:
    """Gauges ``ray_evergreen_*`` tagged with run and method."""

    def __init__(self, run: str, method: str) -> None:
        self.tags = {"run": run, "method": method}
        self.gauges = {
            "task": Gauge("evergreen_task", "tasks learned", TAGS),
            "test_accuracy": Gauge("evergreen_test_accuracy", "mean test accuracy over seen tasks", TAGS),
            "validation_accuracy": Gauge("evergreen_validation_accuracy", "the same on validation splits", TAGS),
            "loss": Gauge("evergreen_loss", "last training loss of the task", TAGS),
        }

    def set(self, metrics: dict[str, Any]) -> None:
        for name, gauge in self.gauges.items():
            # The loss is None where a task took no step; a gauge ignores that and keeps its last value.
            gauge.set(metrics[name], self.tags)
