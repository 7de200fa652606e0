"""The check of a GPU: refused where there is none, run whole where there is one."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu_check import main


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert capsys.readouterr().err == "error: torch finds no GPU here\n"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.slow
def test_all_is_well_on_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0, capsys.readouterr().out
