"""The peak of a run's memory."""

from __future__ import annotations

import sys

import pytest
import torch

from orchestrator.run.memory import forget_peak, peak_memory

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
