"""Samples of this machine's load while a run or sweep is under way, kept in its folder until they are sent.

<run>/system.jsonl    # {"time": milliseconds, "system/cpu_utilization_percentage": …, …}, a line every ten seconds
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlflow.entities import Metric
from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

SAMPLE_SECONDS = 10.0
FILE = "system.jsonl"


class Sampler:
    """Measures at most every ten seconds; MLflow's own monitor stops for good at the first call that fails."""

    def __init__(self) -> None:
        self.monitors: list[BaseMetricsMonitor] = [CPUMonitor()]
        with suppress(ImportError, RuntimeError):  # no GPU, or not the package that reads its state
            self.monitors.append(GPUMonitor())
        self.measured = -SAMPLE_SECONDS

    def sample(self, folder: Path) -> None:
        """Add a line where it is time for one."""
        if time.monotonic() - self.measured < SAMPLE_SECONDS:
            return
        self.measured = time.monotonic()
        values: dict[str, Any] = {"time": int(time.time() * 1000)}
        for monitor in self.monitors:
            monitor.collect_metrics()
            values |= {f"system/{key}": value for key, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        with (folder / FILE).open("a") as file:
            file.write(json.dumps(values) + "\n")


def sampled(folder: Path) -> list[dict[str, Any]]:
    """All samples of a folder; half a line of a process that was killed is left out."""
    file = folder / FILE
    lines = file.read_text().splitlines() if file.exists() else []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def sample_points(samples: list[dict[str, Any]], first: int) -> list[Metric]:
    """Metrics of ``samples``, the first of which is number ``first`` of all."""
    return [
        Metric(key, float(value), sample["time"], step)
        for step, sample in enumerate(samples, first)
        for key, value in sample.items()
        if key != "time"
    ]
