"""A central search and the messages of a run, for its tests."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from methods.treelora.search.search import SearchConfig
from methods.treelora.service import TreeService
from methods.treelora.sketch import Sketch, SketchConfig
from methods.treelora.tree.tree import TreeConfig

TASKS, POINTS, ROUNDS, STEPS = 5, (4, 8, 12), 1, 16
STAMP = (0, 1, 0, 16, 0, 30, 30, 30)  # seed, version, kind, width, cauchy and the sizes of three levels
Message = tuple[int, int, int, Tensor]  # task, step (-1 closes the task), part, sketch


def make_service(parts: int = 1, tree: TreeConfig | None = None, **search: Any) -> TreeService:
    config = SearchConfig(**{"rounds": ROUNDS, **search})
    service = TreeService(config, tree or TreeConfig(), SketchConfig(width=16), seed=5)
    service.expect(parts)
    return service


def random_sketch(seed: int) -> Tensor:
    return torch.randn(3, 16, generator=torch.Generator().manual_seed(seed))


def send(service: TreeService, message: Message, period: int = STEPS, other: Tensor | None = None) -> None:
    task, step, part, values = message
    sketch = Sketch(values, STAMP)
    if step < 0:
        service.close_task(task, part, sketch)
    else:
        service.observe(task, step, part, sketch, period, None if other is None else Sketch(other, STAMP))


def whole_run(parts: int) -> list[Message]:
    points = itertools.product(range(TASKS), (*POINTS, -1), range(parts))
    return [(*point, random_sketch(number)) for number, point in enumerate(points)]


def after(messages: list[Message], parts: int = 1, tree: TreeConfig | None = None, **search: Any) -> TreeService:
    service = make_service(parts, tree, **search)
    for message in messages:
        send(service, message)
    return service


def assert_equal_services(one: TreeService, other: TreeService) -> None:
    left, right = one.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    for name, values in left.items():
        assert torch.equal(values, right[name]), name
    assert one.report() == other.report()


def stored(*sketches: Tensor, tree: TreeConfig | None = None, **search: Any) -> TreeService:
    """A service that has learned one task from each sketch and pulls eight times at a point."""
    closing = [(task, -1, 0, sketch) for task, sketch in enumerate(sketches)]
    return after(closing, 1, tree, **{"rounds": 8, **search})


def turned(degrees: float) -> Tensor:
    """A sketch whose three levels all have this angle to that of 0 degrees."""
    angle = torch.tensor(degrees).deg2rad()
    return torch.nn.functional.pad(torch.stack([angle.cos(), angle.sin()]), (0, 14)).repeat(3, 1)
