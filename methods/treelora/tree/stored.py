"""The signatures of finished tasks and the tree over them.

An entry is one stored signature: that of a task, or of several tasks once a budget has made the closest ones into one
(Qian et al. 2025, section 3.3). Merged signatures are means in which every task counts alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy

from methods.base import finished
from methods.treelora.tree.budget import closest
from methods.treelora.tree.metric import Floats, Metric
from methods.treelora.tree.tree import TaskTree, TreeConfig

Value = TypeVar("Value")
EMPTY = numpy.zeros((0, 1, 1), dtype=numpy.float32)


class StoredTasks:
    """``sketches`` [levels, columns] and ``tasks`` of each entry, and their ``tree``.

    ``joined`` has the entries (kept, dropped) that became one when a task was added.
    """

    def __init__(self, config: TreeConfig, metric: Metric) -> None:
        self.config, self.metric = config, metric
        self.sketches: list[Floats] = []
        self.tasks: list[list[int]] = []
        self.joined: dict[int, list[int]] = {}
        self.tree = self.built()

    @property
    def closed(self) -> int:
        """Number of tasks that are stored."""
        return sum(map(len, self.tasks))

    def array(self) -> Floats:
        """All sketches, [entries, levels, columns]."""
        return numpy.stack(self.sketches) if self.sketches else EMPTY

    def built(self) -> TaskTree:
        return TaskTree.build(self.array(), split=self.config.split, metric=self.metric, depth=self.config.depth)

    def add(self, task: int, sketch: Floats) -> None:
        """Store a finished task and grow the tree; beyond the budget the closest two entries become one."""
        self.sketches.append(sketch)
        self.tasks.append([task])
        over = self.config.budget is not None and len(self.sketches) > self.config.budget
        if over:
            self.join(task)
        grows = self.config.maintain == "insert" and not over and len(self.sketches) > 1
        self.tree = self.tree.insert(sketch) if grows else self.built()

    def join(self, task: int) -> None:
        """Make the closest two entries one, in the place of the first."""
        kept, dropped = closest(self.metric.directions(self.array()), self.metric)
        counts = [len(self.tasks[kept]), len(self.tasks[dropped])]
        pair = [self.sketches[kept], self.sketches[dropped]]
        self.sketches[kept] = numpy.average(pair, axis=0, weights=counts).astype(numpy.float32)
        self.tasks[kept] = sorted(self.tasks[kept] + self.tasks[dropped])
        del self.sketches[dropped], self.tasks[dropped]
        self.joined[task] = [kept, dropped]

    def weights(self) -> list[float]:
        """Share of each entry where the two children of every node count alike; they add up to 1."""
        share = numpy.ones(len(self.tree.parent))
        result = numpy.zeros(len(self.sketches))
        for node, left in enumerate(self.tree.left):
            if left >= 0:
                share[[left, self.tree.right[node]]] = share[node] / 2
            else:
                members = self.tree.members(node)
                result[members] = share[node] / len(members)
        return result.tolist()

    def state_dict(self, since: int = 0) -> dict[str, numpy.ndarray]:
        """Sketches, without those that tasks before ``since`` left for good, and the topology where it depends on the
        order of arrival.
        """
        state = states_of("sketch", self.sketches, self.bounded, since)
        # A rebuilt tree depends on the sketches alone, so that it need not be stored.
        kept = self.tree.state_dict() if self.config.maintain == "insert" else {}
        return state | {f"tree.{name}": values for name, values in kept.items()}

    @property
    def bounded(self) -> bool:
        """Whether entries may become one, so that their number is no task's."""
        return self.config.budget is not None

    def load(self, state: Mapping[str, numpy.ndarray], tasks: list[list[int]], joined: dict[int, list[int]]) -> None:
        """The inverse of ``state_dict``; a rebuilt tree is built anew, which gives the same tree."""
        self.tasks, self.joined = tasks, joined
        self.sketches = [state[state_name("sketch", entry, self.bounded)] for entry in range(len(tasks))]
        topology = {name.removeprefix("tree."): v for name, v in state.items() if name.startswith("tree.")}
        self.tree = TaskTree.restored(self.array(), topology, self.metric) if topology else self.built()


def states_of(name: str, values: Sequence[Value], bounded: bool, since: int) -> dict[str, Value]:
    """What a state has of the entries: all, or where none will change, those of tasks from ``since`` on."""
    entries = range(0 if bounded else since, len(values))
    return {state_name(name, entry, bounded): values[entry] for entry in entries}


def state_name(name: str, entry: int, bounded: bool) -> str:
    """Unless a budget makes them ``bounded``, an entry is a task and stays what it is."""
    return f"{name}.{entry}" if bounded else finished(entry, name)
