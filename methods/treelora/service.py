"""The central state of TreeLoRA: stored sketches, tree, statistics, and the answers to search points.

It has a single writer. In one process the method calls it directly; on a cluster it sits in the run's tree actor.
Every message is keyed by (task, step, part) and may be repeated: what is already known is ignored.
"""

from __future__ import annotations

import json
from typing import Any

import numpy
import torch
from torch import Tensor

from methods.base import finished
from methods.treelora.report import pulls_of, search_record, tree_record
from methods.treelora.search.search import SearchConfig, Searches
from methods.treelora.sketch import Sketch, SketchConfig, require_same
from methods.treelora.tree.metric import Metric
from methods.treelora.tree.stored import StoredTasks
from methods.treelora.tree.tree import TreeConfig

Pair = tuple[Sketch, Sketch | None]  # of the running mean, and of the gradient at the entries chosen last


class TreeService:
    """Adds the partial sketches of the shards in rank order, searches, and grows the tree.

    ``choose`` after an unfinished point raises KeyError; an actor waits for it with ``answered``.
    """

    def __init__(self, search: SearchConfig, tree: TreeConfig, sketch: SketchConfig, seed: int) -> None:
        self.config, self.seed, self.parts = search, seed, 1
        self.metric = Metric(search.metric, sketch.cauchy)
        self.stored = StoredTasks(tree, self.metric)
        self.forget()

    def forget(self) -> None:
        """Everything but what is stored."""
        self.answers: dict[tuple[int, int], list[int]] = {}
        self.pulls: dict[int, list[float]] = {}  # of the last search of each finished task, by earlier task
        self.chosen: dict[int, list[int]] = {}  # earlier tasks, over time
        self.newest: dict[str, Any] | None = None  # all that is told of the last search of the newest finished task
        self.pending: dict[tuple[int, int], dict[int, Pair]] = {}
        self.stamp: tuple[int, ...] | None = None
        self.search: Searches | None = None
        self.scope: tuple[int, int, int] | None = None  # task, epoch and period of the search

    def expect(self, parts: int) -> None:
        """So many partial sketches make one."""
        self.parts = parts

    def observe(
        self, task: int, step: int, part: int, sketch: Sketch, period: int, other: Sketch | None = None
    ) -> None:
        """Take one shard's sketch of the running mean; the last part starts the search.

        ``period`` is the number of steps that share the search's statistics. ``other`` is the sketch of the gradient
        at the entries chosen last (``observe=fresh_grad``); then both are of the present batch. ValueError for a task
        that is not under way, and for sketches that are not finite or not of this run's make.
        """
        # A message that is repeated, by Ray or by a worker that resumes from an older step, changes nothing.
        if self.closed(task) or self.answered(task, step):
            return
        whole = self.gathered((task, step), part, (sketch, other))
        if whole is None or not self.stored.tasks:
            return
        scope = self.scope
        search = self.searching(task, step // period, period)
        own, fresh = whole
        if self.config.observe == "stored":
            search.look(own.values.numpy(), (step % period + 1) / period)
        elif fresh is not None and scope == self.scope:  # a new search has not chosen yet
            pair = [self.metric.directions(found.values.numpy()) for found in (own, fresh)]
            search.observe(self.metric.by_level(*pair))
        self.answers[task, step] = search.answer()

    def searching(self, task: int, epoch: int, period: int) -> Searches:
        """The statistics that a point of this task and epoch belongs to."""
        if self.search is None or self.scope != (task, epoch, period):
            self.scope = (task, epoch, period)
            pulls = self.config.rounds if self.config.observe == "stored" else 1
            rounds = pulls * max(1, (period - 1) // self.config.every)
            # The prime keeps the seeds of (task + 1, epoch) and (task, epoch + 1) apart.
            seed = self.seed + task + 1_000_003 * epoch
            self.search = Searches(self.config, self.stored.tree, self.stored.array(), rounds, seed)
        return self.search

    def gathered(self, point: tuple[int, int], part: int, message: Pair) -> Pair | None:
        """The sum of all parts, once they are in; added in rank order, so that arrival does not matter."""
        self.check(point[0], part, message)
        parts = self.pending.setdefault(point, {})
        parts[part] = message
        if len(parts) < self.parts:
            return None
        del self.pending[point]
        (own, other), *rest = (parts[p] for p in sorted(parts))
        for more, another in rest:
            own = own + more
            other = other + another if other is not None and another is not None else None
        for level in (~own.values.isfinite().all(1)).nonzero().flatten().tolist():
            raise ValueError(f"task {point[0]}: the sketch of level {level} is not finite; lower train.learning_rate")
        return own, other

    def check(self, task: int, part: int, message: Pair) -> None:
        """Messages belong to the task under way and to a shard there is; all sketches of a run are of one make."""
        if not 0 <= part < self.parts:
            raise ValueError(f"task {task}: a sketch came from shard {part}, but there are {self.parts}, from 0")
        if task != self.stored.closed:
            raise ValueError(f"task {task}: the search is at task {self.stored.closed}; tasks come one after another")
        self.stamp = self.stamp or message[0].stamp
        for sketch in filter(None, message):
            require_same(self.stamp, sketch.stamp)

    def answered(self, task: int, step: int) -> bool:
        return (task, step) in self.answers

    def choose(self, task: int, step: int) -> list[int]:
        """The entry chosen for each level at that search point; empty while there is none."""
        return self.answers[task, step]

    def close_task(self, task: int, part: int, sketch: Sketch) -> None:
        """Store the finished task's signature, once all parts are in."""
        if self.closed(task):
            return
        # No search point has step -1.
        whole = self.gathered((task, -1), part, (sketch, None))
        if whole is not None:
            if found := self.record():
                self.pulls[task], self.chosen[task] = pulls_of(found, task), found["chosen"]
                self.newest = found
            self.stored.add(task, whole[0].values.numpy())
            self.pending.clear()
            self.search = self.scope = None

    def closed(self, task: int) -> bool:
        return 0 <= task < self.stored.closed

    def merged(self, task: int) -> list[int]:
        """The entries (kept, dropped) that became one when ``task`` was stored, or nothing."""
        return self.stored.joined.get(task, [])

    def weights(self, task: int) -> list[float]:
        """Share of each entry in a mean over the tree, both branches of a node counting alike."""
        return self.stored.weights()

    def state_dict(self, since: int = 0) -> dict[str, Tensor]:
        """Everything but messages that are still incomplete: arrays, and the rest as JSON."""
        arrays = self.stored.state_dict(since)
        arrays |= {f"search.{name}": v for name, v in self.search.state_dict().items()} if self.search else {}
        log = {
            "tasks": self.stored.tasks,
            "joined": list(self.stored.joined.items()),
            # What lasts of a closed task's answers is in ``chosen``.
            "answers": [(point, entries) for point, entries in self.answers.items() if not self.closed(point[0])],
            "newest": self.newest,
            "stamp": self.stamp,
            "scope": self.scope,
        }
        searched = [task for task in self.pulls if task >= since]
        arrays |= {finished(task, "pulls"): numpy.array(self.pulls[task], dtype=numpy.float64) for task in searched}
        arrays |= {finished(task, "chosen"): numpy.array(self.chosen[task], dtype=numpy.int64) for task in searched}
        state = {name: torch.from_numpy(numpy.array(values)) for name, values in arrays.items()}
        # As bytes in a tensor: a checkpoint keeps a search as tensors alone.
        return state | {"log": torch.frombuffer(bytearray(json.dumps(log).encode()), dtype=torch.uint8)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Overwrite everything; the inverse of ``state_dict``, or with an empty state the start."""
        self.forget()
        if not state:
            self.stored = StoredTasks(self.stored.config, self.metric)
            return
        log = json.loads(state["log"].numpy().tobytes())
        arrays = {name: values.numpy().copy() for name, values in state.items() if name != "log"}
        self.stored.load(arrays, log["tasks"], dict(log["joined"]))
        self.answers = {(task, step): entries for (task, step), entries in log["answers"]}
        searched = [task for task in range(self.stored.closed) if finished(task, "pulls") in arrays]
        self.pulls = {task: arrays[finished(task, "pulls")].tolist() for task in searched}
        self.chosen = {task: arrays[finished(task, "chosen")].tolist() for task in searched}
        self.newest = log["newest"]
        self.stamp = tuple(log["stamp"]) if log["stamp"] else None
        if log["scope"]:
            self.searching(*log["scope"]).load_state_dict(
                {name.removeprefix("search."): v for name, v in arrays.items() if name.startswith("search.")}
            )

    def record(self) -> dict[str, Any] | None:
        """What the search under way has found."""
        if self.search is None or self.scope is None:
            return None
        task = self.scope[0]
        answers = [found for (t, _), found in sorted(self.answers.items()) if t == task]
        return search_record(task, self.search, self.stored, answers, self.config.granularity == "path")

    def report(self) -> dict[str, Any]:
        """The tree, pulls [task learned][task], tasks chosen while each task was learned, and the newest search."""
        tasks = range(self.stored.closed)
        rows = [self.pulls.get(task, []) for task in tasks]
        return tree_record(self.stored, self.metric) | {
            "pulls": [row + [0.0] * (len(tasks) - len(row)) for row in rows],
            "chosen": [self.chosen.get(task, []) for task in tasks],
            "search": self.record() or self.newest,
        }
