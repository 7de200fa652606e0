"""The central search of one run as an async Ray actor, and the proxy through which workers call it.

The actor owns no durable state: every start of the run's workers loads the search from the run's checkpoint. An actor
that Ray restarted is empty and raises at the next call; Train then restarts the workers, and they load it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ray
import torch
from ray.exceptions import RayError
from torch import Tensor

from methods.base import Service
from orchestrator.cluster.connect import joined
from orchestrator.run.service import make_service
from orchestrator.settings.compose import checked
from orchestrator.settings.config import Experiment

if TYPE_CHECKING:
    from orchestrator.run.sharding import Place  # imports FSDP2, which the actor has no use for

NAMESPACE = "evergreen"
ANSWER_SECONDS = 20


class TreeActor:
    """A method's service behind async calls; each may be repeated."""

    def __init__(self, settings: dict[str, Any]) -> None:
        # The actor reserves no CPU: with a thread for each core it would slow down the workers.
        torch.set_num_threads(1)
        service = make_service(checked(settings))
        assert service is not None  # the actor is started for methods that have one
        self.service = service
        self.loaded = False
        self.changed = asyncio.Condition()

    async def load(self, state: dict[str, Tensor], parts: int) -> None:
        """Start from a checkpoint's state (empty for a fresh run) with so many partial sketches to a whole."""
        # Overwrites: the actor may be restarted and empty, or have outlived its workers and be ahead of the checkpoint.
        self.service.expect(parts)
        self.service.load_state_dict(state)
        self.loaded = True

    async def observe(self, task: int, step: int, part: int, sketch: Any, period: int, other: Any = None) -> None:
        self.ready().observe(task, step, part, sketch, period, other)
        await self.tell()

    async def close_task(self, task: int, part: int, sketch: Any) -> None:
        self.ready().close_task(task, part, sketch)
        await self.tell()

    async def choose(self, task: int, step: int) -> list[int]:
        """The answer to a search point, once all parts are in."""
        await self.until(lambda: self.ready().answered(task, step))
        return self.service.choose(task, step)

    async def merged(self, task: int) -> list[int]:
        await self.until(lambda: self.ready().closed(task))
        return self.service.merged(task)

    async def weights(self, task: int) -> list[float]:
        await self.until(lambda: self.ready().closed(task))
        return self.service.weights(task)

    async def until(self, true: Callable[[], bool]) -> None:
        # Waits without blocking the actor, which has to take the messages that end the wait.
        async with self.changed:
            await self.changed.wait_for(true)

    async def state_dict(self, since: int) -> dict[str, Tensor]:
        return self.ready().state_dict(since)

    async def report(self) -> dict[str, Any]:
        return self.ready().report()

    async def tell(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    def ready(self) -> Service:
        # An empty search would answer, and wrongly; the error makes Train restart the workers, who load the checkpoint.
        if not self.loaded:
            raise RuntimeError("the tree actor was restarted and waits for the run's checkpoint")
        return self.service


class RemoteSearch:
    """One worker's proxy of the actor: sketches are sent without waiting; the first worker fetches each answer and
    broadcasts it.

    All calls but ``observe`` and ``close_task`` are made by all workers together.
    """

    def __init__(self, actor: Any, place: Place) -> None:
        self.actor, self.place, self.parts = actor, place, 1
        self.sent: list[ray.ObjectRef] = []

    def expect(self, parts: int) -> None:
        self.parts = parts

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if self.place.rank == 0:
            self.ask("load", state, self.parts)
        self.place.barrier()

    def observe(self, task: int, step: int, part: int, sketch: Any, period: int, other: Any = None) -> None:
        self.settle()
        self.sent.append(self.actor.observe.remote(task, step, part, sketch, period, other))

    def close_task(self, task: int, part: int, sketch: Any) -> None:
        self.settle()
        self.sent.append(self.actor.close_task.remote(task, part, sketch))

    def choose(self, task: int, step: int) -> list[int]:
        return [int(entry) for entry in self.told("choose", task, step)]

    def merged(self, task: int) -> list[int]:
        return [int(entry) for entry in self.told("merged", task)]

    def weights(self, task: int) -> list[float]:
        return self.told("weights", task)

    def told(self, call: str, *arguments: Any) -> list[float]:
        """One answer, fetched by the first worker and broadcast; errors of earlier messages are raised first."""
        self.settle()
        return self.place.from_first(self.ask(call, *arguments) if self.place.rank == 0 else [])

    def state_dict(self, since: int = 0) -> dict[str, Tensor]:
        """The state after everything that any worker has sent; on the first worker only."""
        self.settle()
        self.place.barrier()
        return self.ask("state_dict", since) if self.place.rank == 0 else {}

    def report(self) -> dict[str, Any]:
        self.settle()
        self.place.barrier()
        return self.ask("report") if self.place.rank == 0 else {}

    def ask(self, call: str, *arguments: Any) -> Any:
        """One blocking call to the actor."""
        return ray.get(getattr(self.actor, call).remote(*arguments))

    def settle(self) -> None:
        """Wait for the messages sent before, mostly long processed, and raise the error of one that failed."""
        ray.get(self.sent)
        self.sent.clear()


def start_actor(experiment: Experiment) -> Any:
    """The run's actor, if its method has a central search; it ends with the process that holds the handle."""
    if not has_service(experiment):
        return None
    # No CPU: all of them are for the workers. Ray repeats calls after a restart, so each of them may come twice.
    remote = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(TreeActor)
    options = remote.options(name=actor_name(experiment), namespace=NAMESPACE, get_if_exists=True)
    return options.remote(experiment.model_dump(mode="json"))


def stop_actor(actor: Any) -> None:
    """End the actor now, so that its name is free for the run's next start."""
    if actor is not None:
        ray.kill(actor)


def find_actor(experiment: Experiment) -> Any:
    return ray.get_actor(actor_name(experiment), NAMESPACE) if has_service(experiment) else None


def actor_name(experiment: Experiment) -> str:
    return f"tree-{experiment.name}"


def has_service(experiment: Experiment) -> bool:
    return make_service(experiment) is not None


def live_report(experiment: Experiment) -> dict[str, Any] | None:
    """The report of the actor of a running run; None where there is no cluster or no such actor."""
    try:
        with joined():
            return ray.get(find_actor(experiment).report.remote(), timeout=ANSWER_SECONDS)
    except (ConnectionError, ValueError, RayError):  # the last one: the actor waits for its workers
        return None
