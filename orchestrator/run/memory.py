"""How much memory a run takes on one worker, and that what it frees goes back."""

from __future__ import annotations

import ctypes
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from orchestrator.settings.errors import UserError

KIBIBYTE = 1024
# Bytes from which freed memory goes back to the system. With 1 MiB steps were a quarter slower, as fresh memory has to
# be cleared; the blocks that FSDP2 gathers are larger.
LARGE = 2 * 2**20
MMAP_THRESHOLD = -3  # of glibc's mallopt


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


@contextmanager
def enough_memory(what: str, way_out: str) -> Iterator[None]:
    """Turns an allocation that fails meanwhile into a UserError: ``what`` does not fit, and the way out."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise UserError(f"{what} does not fit into this worker's memory: {way_out}") from None
    except RuntimeError as error:
        # torch has no type of its own for what a CPU lacks.
        if "can't allocate memory" not in str(error):
            raise
        raise UserError(f"{what} does not fit into this worker's memory: {way_out}") from None


def return_large_memory() -> None:
    """Have glibc give large memory back once it is freed; other systems do so by themselves.

    Otherwise it keeps up to 32 MiB a piece for later, in places where the next piece may not fit: blocks of a model
    that are gathered and freed, one after another, then add up to several times the model.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, LARGE)
