"""Lower-confidence-bound search over the nodes of a task tree.

Each round walks from the root to a leaf, at every node into the child with the smallest bound, observes the distance
between the current task's signature and one entry of the leaf, and updates the nodes on the path:

    never pulled: bound = -infinity
    leaf:         bound = mean - width
    inside:       bound = max(smallest bound of the children, mean - width - diameter)

With n pulls through the node the width is

    horizon: confidence * sqrt(log(2 * entries * rounds * (n + 1) * (n + 2)) / (2 n)), rounds being the planned pulls
    paper:   confidence * 2 * sqrt(log(t) / n), t being the pulls so far

Deviations from the paper (Qian et al. 2025, section 3.2): its equation 2 takes a maximum over one term; this is the
smooth-tree form of Coquelin and Munos (2007) that its Lemma 1 needs. The horizon's width changes only on the path of
a round; the paper's changes at every node, so that a round costs a pass over all nodes pulled so far.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy
from numpy.typing import NDArray

from methods.treelora.search.arms import Arms, Bonus, Floats, draw, lower_bound
from methods.treelora.tree.tree import TaskTree


class TreeSearch(Arms):
    """The bandit's statistics over one tree while one task is learned.

    ``rounds`` is the planned number of pulls. ``level`` takes losses and diameters of that level alone.
    ``diameter_scale`` below 1 trusts the tree more than its diameters warrant. ``count`` and ``total`` [nodes] are
    pulls through a node and the sum of their losses. Ties are broken by a counter-based generator.
    """

    def __init__(
        self,
        tree: TaskTree,
        rounds: int,
        confidence: float,
        seed: int,
        *,
        bonus: Bonus = "horizon",
        level: int | None = None,
        diameter_scale: float = 1.0,
    ) -> None:
        super().__init__(tree.entries, level)
        self.tree, self.seed, self.bonus = tree, seed, bonus
        self.lower = lower_bound(tree.entries, rounds, confidence, bonus)
        nodes = len(tree.parent)
        self.count, self.total = numpy.zeros(nodes, dtype=numpy.int64), numpy.zeros(nodes)
        self.bound = numpy.full(nodes, -numpy.inf)
        self.home = scalars(homes(tree))
        diameter = tree.diameter if level is None else tree.diameters(level)
        if diameter_scale != 1:  # infinite ones say that nothing is known, and stay
            finite = numpy.isfinite(diameter)
            diameter = numpy.multiply(diameter, diameter_scale, out=diameter.copy(), where=finite)
        self.nodes = [scalars(a) for a in (self.count, self.total, self.bound, diameter)]
        self.links = [scalars(a) for a in (tree.parent, tree.left, tree.right)]
        self.held = [scalars(a) for a in (tree.order, tree.start, tree.stop)]
        self.own = [scalars(a) for a in (self.pulled, self.lost)]

    def select(self) -> int:
        """The least pulled entry, the lowest first, of the leaf at the end of the path of smallest bounds."""
        (_, lefts, rights), (count, _, bound, _) = self.links, self.nodes
        node, coins = 0, 1
        while (left := lefts[node]) >= 0:
            right = rights[node]
            first, second = bound[left], bound[right]
            if first != second:
                node = left if first < second else right
                continue
            if coins == 1:  # the mark behind the last coin
                coins = draw(self.seed, count[0], node) | 1 << 64
            node, coins = right if coins & 1 else left, coins >> 1
        return self.member(node)

    def member(self, leaf: int) -> int:
        order, starts, stops = self.held
        start, stop = starts[leaf], stops[leaf]
        if stop - start == 1:
            return order[start]
        entries = numpy.sort(self.tree.order[start:stop])
        return int(entries[self.pulled[entries].argmin()])

    def update(self, entry: int, loss: float) -> None:
        """Give every node on the path the same observation and refresh the bounds that it changes, bottom up."""
        (pulled, lost), (count, total, _, _), parents = self.own, self.nodes, self.links[0]
        pulled[entry] += 1
        lost[entry] += loss
        path, node = [], self.home[entry]
        while node >= 0:
            path.append(node)
            count[node] += 1
            total[node] += loss
            node = parents[node]
        self.refresh(path if self.bonus == "horizon" else self.tried())

    def refresh(self, nodes: list[int]) -> None:
        """Recompute bounds of nodes that were pulled, in this order, from their statistics and their children."""
        (_, lefts, rights), (count, total, bound, diameter), lower = self.links, self.nodes, self.lower
        now = count[0]
        for node in nodes:
            value = lower(count[node], total[node], now)
            left = lefts[node]
            if left >= 0:
                value -= diameter[node]
                first, second = bound[left], bound[rights[node]]
                smaller = first if first < second else second
                value = smaller if smaller > value else value
            bound[node] = value

    def tried(self) -> list[int]:
        """The nodes that were pulled, children before their parents, which have lower numbers."""
        return numpy.flatnonzero(self.count)[::-1].tolist()

    def bounds(self) -> Floats:
        return self.bound[numpy.asarray(self.home)]

    def state(self) -> dict[str, NDArray]:
        return super().state() | {"count": self.count, "total": self.total}

    def load(self, state: Mapping[str, NDArray]) -> None:
        super().load(state)
        # Bounds are not saved: they follow from counts and totals, as do those of nodes never pulled.
        self.bound[:] = -numpy.inf
        self.refresh(self.tried())


def scalars(array: NDArray) -> Any:
    """A view to read and write single values: they cost a third of an array's, and a round does little else."""
    return array.data


def homes(tree: TaskTree) -> NDArray[numpy.integer]:
    """The leaf of each entry [entries]."""
    leaves = numpy.flatnonzero(tree.left < 0).astype(numpy.int32)
    leaves = leaves[numpy.argsort(tree.start[leaves])]
    found = numpy.empty(len(tree.order), dtype=numpy.int32)
    found[tree.order] = numpy.repeat(leaves, tree.stop[leaves] - tree.start[leaves])
    return found
