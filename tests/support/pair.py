"""Two processes with a process group between them, for all tests that need two workers.

A process of its own takes seconds to import torch, transformers and peft, so that all tests share one pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

WORLD = 2
SECONDS = 120  # that one waits for the other, as it does in vain when that one failed


class Pair:
    """Calls a function of a module in both processes, with the process's number before its arguments."""

    def __init__(self, processes: list[ProcessPoolExecutor]) -> None:
        self.processes = processes

    def run(self, work: Callable[..., None], *arguments: Any) -> None:
        """Raises what either of them raised."""
        calls = [process.submit(work, number, *arguments) for number, process in enumerate(self.processes)]
        for call in wait(calls, return_when=FIRST_EXCEPTION).done:
            call.result()


@contextmanager
def two_processes(folder: Path) -> Iterator[Pair]:
    """A pair that ends with the block."""
    context = get_context("spawn")
    with ExitStack() as stack:
        made = [
            stack.enter_context(ProcessPoolExecutor(1, context, join, (number, folder / "store")))
            for number in range(WORLD)
        ]
        yield Pair(made)


def join(number: int, store: Path) -> None:
    torch.set_num_threads(1)
    waiting = timedelta(seconds=SECONDS)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=WORLD, timeout=waiting)
