"""How the suite measures: one thread on one core, candidates interleaved, medians."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Measurement:
    """``value`` must not exceed ``reach``; ``detail`` says what was measured, with its reference."""

    case: str
    value: float
    reach: float
    detail: dict[str, Any]

    def record(self) -> dict[str, Any]:
        return asdict(self) | {"holds": self.value <= self.reach}


def pin() -> None:
    """One thread for torch, and one core where the system can say so."""
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def medians(candidates: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each candidate; all of them take turns, so that a busy machine hurts them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, run in candidates.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(found) for name, found in seconds.items()}
