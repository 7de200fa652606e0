"""What a method is: a few hooks that the loop calls, and a registry of names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from methods.levels import Levels


class MethodConfig(BaseModel):
    """Settings ``method.<field>``; each method extends it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str


class Chooser(Protocol):
    """The central search as a method sees it: in this process or behind an actor, it cannot tell which.

    A point is (task, step); every call may be repeated. ``part`` numbers the shards of a sketch, ``parts`` of which
    make it whole.
    """

    def observe(self, task: int, step: int, part: int, sketch: Tensor, rounds: int) -> None: ...

    def choose(self, task: int, step: int) -> int: ...

    def close_task(self, task: int, part: int, sketch: Tensor) -> None: ...


class Service(Protocol):
    """The single-writer state behind a chooser: it lives where the run's driver puts it."""

    def expect(self, parts: int) -> None: ...

    def observe(self, task: int, step: int, part: int, sketch: Tensor, rounds: int) -> None: ...

    def choose(self, task: int, step: int) -> int: ...

    def answered(self, task: int, step: int) -> bool: ...

    def close_task(self, task: int, part: int, sketch: Tensor) -> None: ...

    def closed(self, task: int) -> bool: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...

    def report(self) -> dict[str, Any]: ...


class Method:
    """Hooks with do-nothing defaults; a method overrides what it needs.

    The loop calls ``adapt`` once, ``bind`` once the model is sharded, then for every task ``begin_task``,
    ``edit_gradients`` after each backward pass, and ``end_task``.
    """

    Config: ClassVar[type[MethodConfig]] = MethodConfig

    def __init__(self, config: Any) -> None:
        self.config = config

    @classmethod
    def search_space(cls) -> dict[str, Any]:
        """Settings worth sweeping, in the form of ``sweep.space``."""
        return {}

    def adapt(self, model: nn.Module, targets: tuple[str, ...]) -> None:
        """Insert what will be trained next to the frozen backbone."""

    def bind(self, levels: Levels, chooser: Chooser | None) -> None:
        """Receive the local slices of the adapters and, if ``service`` made one, the search."""
        self.levels = levels

    def service(self, seed: int) -> Service | None:
        """Central state that all ranks share, or None."""
        return None

    def adapts(self, task: int) -> bool:
        """Whether ``task`` may move the adapters; where not, only the head learns."""
        return True

    def begin_task(self, task: int, steps: int) -> None:
        """``steps`` optimiser steps are planned for ``task``."""

    def edit_gradients(self, step: int, loss: Tensor) -> None:
        """Change the local gradient slices in place; ``loss`` is the mean over the global batch."""

    def end_task(self) -> None:
        """The task's last step is done."""

    def state_dict(self) -> dict[str, Tensor]:
        """Whole tensors, the same on every rank and at any world size."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse of ``state_dict``."""


REGISTRY: dict[str, type[Method]] = {}
Registered = TypeVar("Registered", bound=type[Method])


def register(name: str) -> Callable[[Registered], Registered]:
    """Make a method known as ``method=<name>``; a name that is taken raises."""

    def add(method: Registered) -> Registered:
        if name in REGISTRY:
            raise ValueError(f"method {name!r} is registered twice")
        REGISTRY[name] = method
        return method

    return add


def method_class(name: str) -> type[Method]:
    """The class registered under ``name``; KeyError if there is none."""
    return REGISTRY[name]


def method_names() -> list[str]:
    """All registered names, sorted."""
    return sorted(REGISTRY)
