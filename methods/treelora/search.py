"""Lower-confidence-bound search over the nodes of a task tree.

Each round walks from the root to a leaf, at every node into the child with the smallest bound, observes the distance
between the current task's signature and the leaf's, and updates the nodes on the path:

    width(n) = confidence * sqrt(log(2 * leaves * horizon * (n + 1) * (n + 2)) / (2 n)),  infinite for n = 0
    leaf:    bound = mean - width(n)
    inside:  bound = max(smallest bound of the children, mean - width(n) - diameter)

Deviations from the paper (Qian et al. 2025, section 3.2): its equation 2 takes a maximum over one term; this is the
smooth-tree form of Coquelin and Munos (2007) that its Lemma 1 needs. The width depends on the planned number of
rounds, not on the current one, so that a round changes the bounds on its path only. Rounds explore; the answer is
the leaf with the smallest mean among those observed.
"""

from __future__ import annotations

import numpy
from pydantic import BaseModel, ConfigDict, Field

from methods.treelora.tree import Floats, TaskTree, distance


class SearchConfig(BaseModel):
    """Settings ``method.search.<field>``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    every: int = Field(4, gt=0, description="steps between two search points")
    rounds: int = Field(8, gt=0, description="leaves pulled at a search point")
    confidence: float = Field(0.1, ge=0, description="width of the confidence bounds, in units of the loss range")
    staleness: int = Field(1, ge=0, le=1, description="search points by which an answer may lag; 0 waits for it")


class TreeSearch:
    """The bandit's statistics over one tree while one task is learned.

    ``rounds`` is the planned number of pulls. ``count`` and ``total`` [nodes] are pulls through a node and the sum
    of their losses; they are the whole state. Ties are broken by a counter-based generator.
    """

    def __init__(self, tree: TaskTree, rounds: int, confidence: float, seed: int) -> None:
        self.tree, self.rounds, self.confidence, self.seed = tree, rounds, confidence, seed
        self.log_scale = numpy.log(2.0 * max(tree.tasks, 1) * max(rounds, 1))
        self.load(numpy.zeros(len(tree.parent), dtype=numpy.int64), numpy.zeros(len(tree.parent)))

    def load(self, count: numpy.ndarray, total: Floats) -> None:
        """Take over statistics and recompute every bound from the leaves up."""
        self.count, self.total = count, total
        self.bound = numpy.full(len(count), -numpy.inf)
        self.best = numpy.full(len(count), numpy.inf)
        self.best_task = numpy.full(len(count), -1)
        for node in reversed(range(len(count))):  # children are numbered after their parents
            self.refresh(node)

    def answer(self) -> int:
        """The task with the smallest mean loss among those pulled, -1 before the first pull."""
        return int(self.best_task[0]) if len(self.best_task) else -1

    def pulls(self) -> list[int]:
        """Pulls of each task."""
        leaves = numpy.flatnonzero(self.tree.task >= 0)
        return self.count[leaves][numpy.argsort(self.tree.task[leaves])].tolist()

    def pull(self, query: Floats) -> tuple[int, float]:
        """One round for the directions ``query`` [levels, width]: the pulled task and its loss."""
        leaf = self.select()
        task = int(self.tree.task[leaf])
        loss = float(distance(query, self.tree.signatures[task]))
        self.update(leaf, loss)
        return task, loss

    def select(self) -> int:
        """The leaf at the end of the path of smallest bounds."""
        node = 0
        while self.tree.task[node] < 0:
            left, right = int(self.tree.left[node]), int(self.tree.right[node])
            if self.bound[left] == self.bound[right]:
                node = (left, right)[self.coin(node)]
            else:
                node = left if self.bound[left] < self.bound[right] else right
        return node

    def update(self, leaf: int, loss: float) -> None:
        """Give every node on the path the same observation and refresh their bounds, bottom up."""
        for node in self.tree.path(leaf):
            self.count[node] += 1
            self.total[node] += loss
            self.refresh(node)

    def refresh(self, node: int) -> None:
        """Recompute one node's bound and best leaf from its own statistics and its children's."""
        own = self.lower(node)
        if self.tree.task[node] >= 0:
            self.bound[node] = own
            if self.count[node]:
                self.best[node] = self.total[node] / self.count[node]
                self.best_task[node] = self.tree.task[node]
            return
        children = [int(self.tree.left[node]), int(self.tree.right[node])]
        self.bound[node] = max(self.bound[children].min(), own - self.tree.diameter[node])
        better = min(children, key=lambda child: self.best[child])
        self.best[node], self.best_task[node] = self.best[better], self.best_task[better]

    def lower(self, node: int) -> float:
        """Mean minus width; minus infinity for a node that was never pulled."""
        n = int(self.count[node])
        if n == 0:
            return -numpy.inf
        width = numpy.sqrt((self.log_scale + numpy.log((n + 1) * (n + 2))) / (2 * n))
        return float(self.total[node] / n - self.confidence * width)

    def coin(self, node: int) -> int:
        """A fair bit keyed by (seed, node, pulls through it), the same wherever the search runs."""
        bits = numpy.random.Philox(key=self.seed, counter=[node, int(self.count[node]), 0, 0])
        return int(numpy.random.Generator(bits).integers(2))
