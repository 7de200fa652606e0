"""The peak of a run's memory."""

from __future__ import annotations

import sys

import pytest
import torch

from orchestrator.run.memory import enough_memory, forget_peak, peak_memory
from orchestrator.settings.errors import UserError

CPU = torch.device("cpu")
LARGE = 300 * 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can forget the peak of a process")
def test_the_peak_counts_what_was_freed_and_can_be_forgotten() -> None:
    forget_peak(CPU)
    before = peak_memory(CPU)
    block = torch.ones(LARGE, dtype=torch.uint8)
    del block
    assert peak_memory(CPU) > before + LARGE // 2
    forget_peak(CPU)
    assert peak_memory(CPU) < before + LARGE // 2


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_what_does_not_fit_is_one_line_with_the_way_out(error: Exception) -> None:
    line = r"^a step does not fit into this worker's memory: say less$"
    with pytest.raises(UserError, match=line), enough_memory("a step", "say less"):
        raise error


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes"), enough_memory("a step", "say less"):
        raise RuntimeError("shapes")
