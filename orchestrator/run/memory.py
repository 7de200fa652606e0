"""The most memory that a run took on one worker."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

KIBIBYTE = 1024


def forget_peak(device: torch.device) -> None:
    """Begin to measure: one process may hold several runs, one after another."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):  # only Linux can forget the peak of a process
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU's memory where the worker has one, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # getrusage counts bytes on macOS and kibibytes on Linux.
    unit = 1 if sys.platform == "darwin" else KIBIBYTE
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
