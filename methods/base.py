"""What a method is: a few hooks that the loop calls, and a registry of names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.optim import Optimizer

from methods.levels import Levels

Again = Callable[[], Tensor]  # the adapters' gradient [levels, width] of the same batch at their present values


class MethodConfig(BaseModel):
    """Settings ``method.<field>``; each method extends it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str


class Chooser(Protocol):
    """The central search as a method sees it: in this process or behind an actor, it cannot tell which.

    A point is (task, step); every call may be repeated. ``part`` numbers the shards of a sketch, ``parts`` of which
    make it whole; what a sketch is, a method agrees upon with its own service. An entry is a stored signature: that of
    one task, or of several that a budget has made one.
    """

    def observe(self, task: int, step: int, part: int, sketch: Any, period: int, other: Any = None) -> None:
        """Search with ``sketch``; ``period`` is the number of steps that share the search's statistics.

        ``other`` is the gradient at the entries that were chosen last, where the search observes fresh gradients.
        """

    def choose(self, task: int, step: int) -> list[int]:
        """The entry for each level as of that point; empty while there is none."""

    def close_task(self, task: int, part: int, sketch: Any) -> None:
        """Store a finished task."""

    def merged(self, task: int) -> list[int]:
        """The two entries (kept, dropped) that became one when ``task`` was stored, or nothing."""

    def weights(self, task: int) -> list[float]:
        """Share of each entry in a mean over the tree in which branches count alike; they add up to 1."""


class Service(Chooser, Protocol):
    """The single-writer state behind a chooser: it lives where the run's driver puts it."""

    def expect(self, parts: int) -> None: ...

    def answered(self, task: int, step: int) -> bool: ...

    def closed(self, task: int) -> bool: ...

    def state_dict(self, since: int = 0) -> dict[str, Tensor]:
        """As a method's."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...

    def report(self) -> dict[str, Any]: ...


class Method:
    """Hooks with do-nothing defaults; a method overrides what it needs.

    The loop calls ``adapt`` once, ``bind`` once the model is sharded, then for every task ``optimizer``,
    ``begin_task``, ``edit_gradients`` after each backward pass, and ``end_task``.
    """

    Config: ClassVar[type[MethodConfig]] = MethodConfig

    def __init__(self, config: Any) -> None:
        self.config = config

    @classmethod
    def search_space(cls) -> dict[str, Any]:
        """Settings worth sweeping, in the form of ``sweep.space``: the learning rates, to which methods add theirs."""
        return {
            "train.first_learning_rate": {"loguniform": [1e-4, 3e-3]},
            "train.learning_rate": {"loguniform": [1e-5, 1e-3]},
        }

    def adapt(self, model: nn.Module, targets: Sequence[str], blocks: Sequence[str], tasks: int) -> None:
        """Insert what will be trained next to the frozen backbone; ValueError names a setting that does not fit.

        ``targets`` are endings of module names, ``blocks`` the names of the transformer blocks in order, ``tasks`` is
        the length of the whole stream, of which a run may learn the first tasks alone.
        """

    def bind(self, levels: Levels, chooser: Chooser | None) -> None:
        """Receive the local slices of the adapters and, if ``service`` made one, the search."""
        self.levels = levels

    def service(self, seed: int) -> Service | None:
        """Central state that all ranks share, or None."""
        return None

    def adapts(self, task: int) -> bool:
        """Whether ``task`` may move the adapters; where not, only the head learns."""
        return True

    def optimizer(self, groups: list[dict[str, Any]], rule: str, settings: dict[str, Any]) -> Optimizer | None:
        """An optimiser of the method's own, whose state belongs to ``state_dict``; None: torch's one of this ``rule``.

        ``groups`` hold the adapters and the task's part of the head with their learning rates, ``settings`` what
        torch's optimiser would be called with.
        """
        return None

    def begin_task(self, task: int, steps: int, epochs: int) -> None:
        """``steps`` optimiser steps in ``epochs`` passes are planned for ``task``."""

    def edit_gradients(self, step: int, loss: Tensor, again: Again) -> None:
        """Change the local gradients in place; ``loss`` is the mean over the global batch.

        ``again`` runs the batch once more, which all ranks have to do together.
        """

    def end_task(self) -> None:
        """The task's last step is done."""

    @contextmanager
    def inference(self) -> Iterator[None]:
        """While this lasts, the model is as it shall be evaluated; all ranks enter and leave it together."""
        yield

    def pairs(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Module name -> factors A [rank, in] and B [out, rank]: the whole update that evaluation uses is B A.

        ValueError where no low-rank update holds it.
        """
        raise ValueError(f"method={self.config.name}: its update is not one of low rank")

    def stored_parameters(self) -> int:
        """Numbers that the adapted model holds beside the backbone and the head."""
        return sum(self.levels.sizes)

    def report(self) -> dict[str, Any] | None:
        """What the method has to tell of a run, as plain values for result.json; a service tells its own."""
        return None

    def state_dict(self, since: int = 0) -> dict[str, Tensor]:
        """Whole tensors, the same on every rank and at any world size.

        What a finished task leaves and no later one changes is named by ``finished``; of tasks before ``since``, whose
        such tensors a checkpoint has already, it is left out.
        """
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse of ``state_dict``."""


def finished(task: int, name: str) -> str:
    """The name in a state of what ``task`` has left for good."""
    return f"finished.{task}.{name}"


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
