"""What TreeLoRA adds to a training step: sketch, search and regulariser, in milliseconds.

The reference in the same run is a step of ``treelora_released``, whose rule compares whole vectors in every step, on
the same adapters and as many stored tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed.measure import Measurement, medians
from methods.levels import Levels
from methods.treelora import TreeLoRA, TreeLoRAConfig

STEPS = 10_000  # planned steps of the task that is measured; no measurement comes near its end
RELEASED: dict[str, Any] = {
    "signature": {"kind": "a_param"},
    "sketch": {"kind": "exact"},
    "search": {
        "kind": "released",
        "metric": "l1",
        "granularity": "per_layer",
        "every": 1,
        "rounds": 1,
        "staleness": 0,
    },
    "regulariser": {"kind": "dot_log"},
}


def vit_base(toy: bool) -> list[Measurement]:
    """ViT-B: 24 rows of 3,072 numbers, 10 stored tasks."""
    rows, width, tasks = (3, 32, 3) if toy else (24, 3072, 10)
    return [measured("treelora-step-vitb", rows, width, tasks, reach=0.4, repeats=2 if toy else 60)]


def seven_billion(toy: bool) -> list[Measurement]:
    """7B: 32 rows of 65,536 numbers, 8 stored tasks."""
    rows, width, tasks = (3, 64, 2) if toy else (32, 65_536, 8)
    return [measured("treelora-step-7b", rows, width, tasks, reach=12.0, repeats=2 if toy else 12)]


def measured(case: str, rows: int, width: int, tasks: int, reach: float, repeats: int) -> Measurement:
    """Both variants take turns; a turn is as many steps as lie between two search points."""
    default, released = TreeLoRAConfig(), TreeLoRAConfig.model_validate(RELEASED)
    turn = default.search.every
    turns = {
        "default": stepping(default, rows, width, tasks, turn),
        "released": stepping(released, rows, width, tasks, turn),
    }
    found = {name: 1e3 * seconds / turn for name, seconds in medians(turns, repeats).items()}
    detail = {
        "unit": "ms per training step",
        "rows": rows,
        "width": width,
        "stored_tasks": tasks,
        "released_rule": found["released"],
        "steps": turn * repeats,
    }
    return Measurement(case, found["default"], reach, detail)


def stepping(config: TreeLoRAConfig, rows: int, width: int, tasks: int, count: int) -> Callable[[], None]:
    """A call that makes ``count`` steps of a task that follows ``tasks`` stored ones."""
    generator = torch.Generator().manual_seed(0)
    named = [(f"{r}.lora_A.weight", nn.Parameter(torch.randn(width, generator=generator))) for r in range(rows)]
    method, levels = TreeLoRA(config), Levels(named, lambda name: int(name.split(".")[0]), lambda values: values)
    method.bind(levels, method.service(0))
    for task in range(tasks):
        method.begin_task(task, 2, 1)
        step(method, named, generator, 0)
        method.end_task()
    method.begin_task(tasks, STEPS, 1)
    for number in range(3 * count):
        step(method, named, generator, number)
    done = 3 * count

    def run() -> None:
        nonlocal done
        for _ in range(count):
            method.edit_gradients(done, LOSS, unasked)
            done += 1

    return run


LOSS = torch.tensor(1.0)


def unasked() -> Tensor:
    raise AssertionError("stored signatures need no further pass over the batch")


def step(method: TreeLoRA, named: list[tuple[str, nn.Parameter]], generator: torch.Generator, number: int) -> None:
    """One step in which the adapter moves."""
    for _, parameter in named:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    method.edit_gradients(number, LOSS, unasked)
    method.levels.set_parameters(method.levels.parameters() - 0.01 * method.levels.gradients())
