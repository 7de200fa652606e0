"""How the suite measures: one thread on one core, candidates interleaved, medians."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

PROJECT = Path(__file__).resolve().parents[2]
CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set[int]()  # before ``pin``


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


@contextmanager
def all_cores() -> Iterator[int]:
    """Give back what ``pin`` took, for what is made of several processes; yields how many cores that is."""
    if not hasattr(os, "sched_setaffinity"):
        yield os.cpu_count() or 1
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, CORES)
    try:
        yield len(CORES)
    finally:
        os.sched_setaffinity(0, before)


def once(command: list[str], ends_with: int = 0) -> float:
    """Seconds of one process from start to end; RuntimeError where it ends with another code than expected."""
    began = time.perf_counter()
    found = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    if found.returncode != ends_with:
        raise RuntimeError(f"{' '.join(command)}: exit code {found.returncode}: {found.stderr[-500:]}")
    return time.perf_counter() - began


def medians(candidates: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each candidate; all of them take turns, so that a busy machine hurts them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, run in candidates.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(found) for name, found in seconds.items()}
