"""The central state of TreeLoRA: stored sketches, tree, statistics, and the answers to search points.

It has a single writer. In one process the method calls it directly; on a cluster it sits in the run's tree actor.
Every message is keyed by (task, step, part) and may be repeated: what is already known is ignored.
"""

from __future__ import annotations

from typing import Any

import numpy
import torch
from torch import Tensor

from methods.treelora.search import SearchConfig, TreeSearch
from methods.treelora.tree import TaskTree, directions


class TreeService:
    """Adds the partial sketches of the shards in rank order, searches, and grows the tree.

    ``choose`` after an unfinished point raises KeyError; an actor waits for it with ``answered``.
    """

    def __init__(self, config: SearchConfig, seed: int) -> None:
        self.config, self.seed, self.parts = config, seed, 1
        self.sketches: list[Tensor] = []
        self.history: dict[int, list[int]] = {}  # pulls of each leaf, by the task that was learned
        self.answers: dict[tuple[int, int], int] = {}
        self.pending: dict[tuple[int, int], dict[int, Tensor]] = {}
        self.plant()

    def expect(self, parts: int) -> None:
        """So many partial sketches make one."""
        self.parts = parts

    def plant(self) -> None:
        """Build the tree of all stored sketches and forget the bandit's statistics."""
        stacked = torch.stack(self.sketches).numpy() if self.sketches else numpy.zeros((0, 1, 1))
        self.tree = TaskTree.build(stacked)
        self.search: TreeSearch | None = None

    def observe(self, task: int, step: int, part: int, sketch: Tensor, rounds: int) -> None:
        """Take one shard's sketch [levels, width] of the running mean; the last part starts the search.

        ``rounds`` is the number of pulls planned for the whole task.
        """
        if self.answered(task, step) or task != len(self.sketches) or task == 0:
            return
        whole = self.gathered((task, step), part, sketch)
        if whole is None:
            return
        if self.search is None:
            self.search = TreeSearch(self.tree, rounds, self.config.confidence, self.seed + task)
        query = directions(whole.double().numpy())
        if query.any():
            for _ in range(self.config.rounds):
                self.search.pull(query)
        self.answers[task, step] = self.search.answer()
        self.history[task] = self.search.pulls()

    def gathered(self, point: tuple[int, int], part: int, sketch: Tensor) -> Tensor | None:
        """The sum of all parts, once they are in; added in rank order, so that arrival does not matter."""
        parts = self.pending.setdefault(point, {})
        parts[part] = sketch
        if len(parts) < self.parts:
            return None
        del self.pending[point]
        whole = torch.stack([parts[p] for p in sorted(parts)]).sum(0)
        for level in (~whole.isfinite().all(1)).nonzero().flatten().tolist():
            raise ValueError(f"task {point[0]}: the gradient sketch of level {level} is not finite")
        return whole

    def answered(self, task: int, step: int) -> bool:
        return (task, step) in self.answers

    def choose(self, task: int, step: int) -> int:
        """The task to be near to, as of that search point; -1 while there is none."""
        return self.answers[task, step]

    def close_task(self, task: int, part: int, sketch: Tensor) -> None:
        """Store the finished task's mean sketch as a new leaf, once all parts are in."""
        if self.closed(task):
            return
        whole = self.gathered((task, -1), part, sketch)
        if whole is not None:
            self.sketches.append(whole)
            self.pending.clear()
            self.plant()

    def closed(self, task: int) -> bool:
        return task < len(self.sketches)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything but messages that are still incomplete."""
        state = {f"sketch.{task}": sketch for task, sketch in enumerate(self.sketches)}
        state |= {f"pulls.{task}": torch.tensor(row) for task, row in self.history.items()}
        points = [[*point, leaf] for point, leaf in sorted(self.answers.items())]
        state["answers"] = torch.tensor(points, dtype=torch.long).reshape(-1, 3)
        if self.search:
            state["count"] = torch.from_numpy(self.search.count.copy())
            state["total"] = torch.from_numpy(self.search.total.copy())
            state["rounds"] = torch.tensor(self.search.rounds)
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Overwrite everything; the tree is built anew, which gives the same tree."""
        count = sum(key.startswith("sketch.") for key in state)
        self.sketches = [state[f"sketch.{task}"] for task in range(count)]
        self.history = {int(k.split(".")[1]): v.tolist() for k, v in state.items() if k.startswith("pulls.")}
        self.answers = {(task, step): leaf for task, step, leaf in state.get("answers", torch.empty(0)).tolist()}
        self.pending.clear()
        self.plant()
        if "count" in state:
            self.search = TreeSearch(self.tree, int(state["rounds"]), self.config.confidence, self.seed + count)
            self.search.load(state["count"].numpy().copy(), state["total"].numpy().copy())

    def report(self) -> dict[str, Any]:
        """The tree, pulls [task learned][leaf] and the leaves chosen while each task was learned."""
        tasks = len(self.sketches)
        pulls = [[0] * tasks for _ in range(tasks)]
        for task in range(tasks):
            row = self.history.get(task, [])
            pulls[task][: len(row)] = row
        chosen = [[leaf for (t, _), leaf in sorted(self.answers.items()) if t == task] for task in range(tasks)]
        return {"tree": {"nodes": self.tree.nodes()}, "pulls": pulls, "chosen": chosen}
