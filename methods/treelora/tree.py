"""The task tree: a binary tree over signatures whose leaves are tasks.

Signatures are directions: each level's sketch divided by its L2 norm (a zero sketch stays zero). The distance of two
tasks is the mean over levels of half the L2 distance, a metric with values in 0 to 1. A node's diameter bounds the
distance of any two of its tasks, so by the triangle inequality no query sees them further apart than that.

Deviations from the paper (Qian et al. 2025, section 3.3): groups are split by two means instead of the median
distance to the mean, which cannot separate symmetric clusters; the tree is rebuilt from all signatures after each
task, so that it depends on the tasks alone. As in the paper, shallow splits look at shallow blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

Floats = NDArray[numpy.float64]
Ints = NDArray[numpy.int64]

EXACT_DIAMETER = 64  # larger groups get twice the largest distance to their mean
SMALLEST_SHARE = 0.1  # of a group, that two means may split off
ITERATIONS = 20


def directions(sketches: Floats) -> Floats:
    """Normalise [..., levels, width] to unit L2 norm a level; zero rows stay zero."""
    norms = numpy.linalg.norm(sketches, axis=-1, keepdims=True)
    return numpy.divide(sketches, norms, out=numpy.zeros_like(sketches), where=norms > 0)


def distance(left: Floats, right: Floats) -> Floats:
    """Mean over levels of half the L2 distance of directions [..., levels, width]; values in 0 to 1."""
    return numpy.linalg.norm(left - right, axis=-1).mean(axis=-1) / 2


@dataclass
class TaskTree:
    """Nodes as arrays, node 0 is the root; -1 stands for none.

    ``parent``, ``left``, ``right`` hold node numbers, ``task`` the task of a leaf, ``diameter`` the bound on
    distances within a node. ``signatures`` [tasks, levels, width] are directions.
    """

    signatures: Floats
    parent: Ints
    left: Ints
    right: Ints
    task: Ints
    diameter: Floats

    @classmethod
    def build(cls, sketches: Floats) -> TaskTree:
        """Build from one sketch [levels, width] a task; ValueError for values that are not finite."""
        sketches = numpy.asarray(sketches, dtype=numpy.float64)
        for task, level in numpy.argwhere(~numpy.isfinite(sketches).all(axis=-1)):
            raise ValueError(f"the sketch of task {task} is not finite at level {level}")
        count = len(sketches)
        nodes = max(2 * count - 1, 0)
        parent, left, right, leaf = (numpy.full(nodes, -1) for _ in range(4))
        tree = cls(directions(sketches), parent, left, right, leaf, numpy.zeros(nodes))
        tree._grow()
        return tree

    @property
    def tasks(self) -> int:
        return len(self.signatures)

    def leaf(self, task: int) -> int:
        """The node that holds ``task``."""
        return int(numpy.flatnonzero(self.task == task)[0])

    def path(self, node: int) -> list[int]:
        """Nodes from ``node`` up to the root."""
        found = [node]
        while self.parent[found[-1]] >= 0:
            found.append(int(self.parent[found[-1]]))
        return found

    def members(self, node: int) -> list[int]:
        """The tasks below ``node``, sorted."""
        if self.task[node] >= 0:
            return [int(self.task[node])]
        return sorted(self.members(self.left[node]) + self.members(self.right[node]))

    def nodes(self) -> list[dict[str, object]]:
        """One record a node, for reports."""
        return [
            {
                "id": node,
                "parent": int(self.parent[node]) if self.parent[node] >= 0 else None,
                "task": int(self.task[node]) if self.task[node] >= 0 else None,
                "diameter": float(self.diameter[node]),
            }
            for node in range(len(self.parent))
        ]

    def _grow(self) -> None:
        """Split groups depth first; nodes are numbered as they are met."""
        blocks = level_blocks(self.signatures.shape[1], self.tasks) if self.tasks else []
        pending = [(numpy.arange(self.tasks), -1, 0)] if self.tasks else []
        node = 0
        while pending:
            group, parent, depth = pending.pop()
            self.parent[node] = parent
            bound = diameter_bound(self.signatures[group])
            self.diameter[node] = min(bound, self.diameter[parent]) if parent >= 0 else bound
            if parent >= 0:
                side = self.left if self.left[parent] < 0 else self.right
                side[parent] = node
            if len(group) == 1:
                self.task[node] = group[0]
            else:
                levels = blocks[min(depth, len(blocks) - 1)]
                low, high = split(group, self.signatures[group][:, levels])
                pending += [(high, node, depth + 1), (low, node, depth + 1)]
            node += 1


def level_blocks(levels: int, tasks: int) -> list[Ints]:
    """Contiguous levels for each depth, so that a balanced tree spans the network from input to output.

    Below the balanced depth all levels count.
    """
    depth = min(levels, max(1, int(numpy.ceil(numpy.log2(max(tasks, 2))))))
    return [*numpy.array_split(numpy.arange(levels), depth), numpy.arange(levels)]


def diameter_bound(signatures: Floats) -> float:
    """The largest distance within a group, exact for small groups, else twice the radius around the mean."""
    if len(signatures) > EXACT_DIAMETER:
        return float(2 * distance(signatures, signatures.mean(axis=0)).max())
    return float(max(distance(signatures, one).max() for one in signatures))


def split(group: Ints, signatures: Floats) -> tuple[Ints, Ints]:
    """Two means from a far pair; the side with the smaller task number comes first.

    Groups that two means leaves lopsided are cut at the median of the projection on the line between the means, and
    equal signatures are halved by number.
    """
    points = signatures.reshape(len(group), -1)
    right = two_means(points)
    if min(right.sum(), (~right).sum()) < max(1, SMALLEST_SHARE * len(group)):
        right = median_cut(points)
    low, high = group[~right], group[right]
    return (low, high) if low[0] < high[0] else (high, low)


def two_means(points: Floats) -> NDArray[numpy.bool_]:
    """Lloyd's iterations for two centres; True marks the second cluster."""
    first = points[numpy.linalg.norm(points - points.mean(axis=0), axis=1).argmax()]
    second = points[numpy.linalg.norm(points - first, axis=1).argmax()]
    right = numpy.zeros(len(points), dtype=bool)
    for _ in range(ITERATIONS):
        closer = numpy.linalg.norm(points - second, axis=1) < numpy.linalg.norm(points - first, axis=1)
        if (closer == right).all() or closer.all() or not closer.any():
            break
        right = closer
        first, second = points[~right].mean(axis=0), points[right].mean(axis=0)
    return right


def median_cut(points: Floats) -> NDArray[numpy.bool_]:
    """The upper half along the line from the farthest point to the mean, ties broken by number."""
    centre = points.mean(axis=0)
    far = points[numpy.linalg.norm(points - centre, axis=1).argmax()]
    order = numpy.argsort((points - centre) @ (far - centre), kind="stable")
    right = numpy.zeros(len(points), dtype=bool)
    right[order[len(points) // 2 :]] = True
    return right
