"""Growing the task tree: which entries each node holds.

Groups beyond ``BLOCK`` entries are split one at a time, in chunks, with the vector fitted to a strided sample.
Smaller ones are copied once, then all their nodes of one depth are split together, so that a million entries need no
loop over nodes. Both follow the same definition: a group within ``BLOCK`` is its own sample.

As in the paper (section 3.3) shallow splits look at shallow levels; the blocks are as wide as it takes for a balanced
tree to span the network.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

from methods.treelora.tree.metric import Floats, chunks
from methods.treelora.tree.split import Bools, Groups, Ints, SplitName, cut, fit, halves, scores, split

Indices = NDArray[numpy.int32]

BLOCK = 4096  # entries that are split as one block, and the size of larger groups' samples
NODE_ARRAYS = ("parent", "left", "right", "start", "stop")


@dataclass
class Topology:
    """Nodes as arrays; node n holds the entries ``order[start[n]:stop[n]]``; -1 stands for none."""

    parent: Indices
    left: Indices
    right: Indices
    start: Indices
    stop: Indices
    order: Indices

    @classmethod
    def root(cls, entries: int) -> Topology:
        """Room for all nodes; node 0 holds everything."""
        nodes = max(2 * entries - 1, 0)
        parent, left, right, start, stop = (numpy.full(nodes, -1, dtype=numpy.int32) for _ in range(5))
        start[:1], stop[:1] = 0, entries
        return cls(parent, left, right, start, stop, numpy.arange(entries, dtype=numpy.int32))

    def held(self, node: int) -> Indices:
        """The entries below ``node``, in the tree's order."""
        return self.order[self.start[node] : self.stop[node]]

    def sizes(self, nodes: Ints) -> Ints:
        """How many entries each node holds."""
        return self.stop[nodes] - self.start[nodes]

    def divide(self, nodes: Ints, middles: Ints, first: int) -> Ints:
        """Give ``nodes`` children that meet at ``middles``, numbered from ``first``; returns the children."""
        children = first + numpy.arange(2 * len(nodes))
        low, high = children[::2], children[1::2]
        self.left[nodes], self.right[nodes] = low, high
        self.parent[low] = self.parent[high] = nodes
        self.start[low], self.stop[low] = self.start[nodes], middles
        self.start[high], self.stop[high] = middles, self.stop[nodes]
        return children

    def widened(self, path: list[int]) -> Topology:
        """A copy in which the nodes of ``path``, a leaf first, hold one more entry; it gets the next number."""
        place, entry = int(self.stop[path[0]]), len(self.order)
        behind = self.start >= place
        stop = self.stop + behind
        stop[path] += 1
        order = numpy.insert(self.order, place, entry)
        return Topology(self.parent.copy(), self.left.copy(), self.right.copy(), self.start + behind, stop, order)

    def extended(self, leaf: int) -> Topology:
        """A copy in which a ``leaf`` of two entries is split."""
        nodes = len(self.parent)
        grown = {name: numpy.append(getattr(self, name), [-1, -1]).astype(numpy.int32) for name in NODE_ARRAYS}
        topology = Topology(**grown, order=self.order)
        topology.divide(numpy.array([leaf]), self.start[[leaf]] + 1, nodes)
        return topology

    def trim(self, nodes: int) -> None:
        """Drop the unused end: a depth limit leaves fewer nodes."""
        for name in NODE_ARRAYS:
            setattr(self, name, getattr(self, name)[:nodes].copy())


def level_blocks(levels: int, entries: int) -> list[slice]:
    """Contiguous levels for each depth; all levels below the balanced depth."""
    depth = min(levels, max(1, int(numpy.ceil(numpy.log2(max(entries, 2))))))
    edges = numpy.linspace(0, levels, depth + 1).round().astype(int).tolist()
    return [*map(slice, edges[:-1], edges[1:]), slice(0, levels)]


class Grower:
    """Splits ``points`` [entries, levels, columns], at most ``depth`` times on a path."""

    def __init__(self, points: Floats, name: SplitName, depth: int | None) -> None:
        self.points, self.name, self.depth = points, name, depth
        self.blocks = level_blocks(points.shape[1], len(points))
        self.topology, self.used = Topology.root(len(points)), min(len(points), 1)

    def grow(self) -> Topology:
        """Larger groups first in, first out; each smaller one down to its leaves."""
        pending = [(0, 0)] if self.used else []
        for node, depth in pending:  # grows while it is read
            if len(self.topology.held(node)) <= BLOCK:
                self.grow_block(node, depth)
            elif self.deeper(depth):
                pending += [(child, depth + 1) for child in self.split_large(node, depth)]
        self.topology.trim(self.used)
        return self.topology

    def deeper(self, depth: int) -> bool:
        return self.depth is None or depth < self.depth

    def columns(self, points: Floats, depth: int) -> Floats:
        """The rows [entries, columns] that a split at ``depth`` looks at."""
        levels = self.blocks[min(depth, len(self.blocks) - 1)]
        return points[:, levels].reshape(len(points), -1)

    def divide(self, nodes: Ints, left: Ints) -> Ints:
        """Number the children of ``nodes``, of which ``left`` [nodes] entries go left."""
        children = self.topology.divide(nodes, self.topology.start[nodes] + left, self.used)
        self.used += len(children)
        return children

    def split_large(self, node: int, depth: int) -> list[int]:
        """Split one large group; returns its children."""
        members = self.topology.held(node)
        left = self.side(members, depth)
        # ``held`` is a view: this sorts the topology's order itself.
        members[:] = numpy.concatenate([members[left], members[~left]])
        return self.divide(numpy.array([node]), left.sum(keepdims=True)).tolist()

    def side(self, members: Indices, depth: int) -> Bools:
        """The members that go left: fitted to a sample, scored in chunks."""
        sample = members[:: -(-len(members) // BLOCK)]
        whole, one = Groups(numpy.array([len(members)])), Groups(numpy.array([len(sample)]))
        vectors, thresholds = fit(self.columns(self.points[sample], depth), one, self.name)
        values = numpy.empty(len(members), dtype=numpy.float32)
        for part in chunks(len(members), self.points[0].size):
            rows = self.columns(self.points[members[part]], depth)
            values[part] = scores(rows, Groups(numpy.array([len(rows)])), vectors, self.name)
        return cut(values, whole, thresholds)

    def grow_block(self, root: int, depth: int) -> None:
        """Split everything below ``root``, one depth at a time."""
        topology = self.topology
        base, members = topology.start[root], topology.held(root)
        points, local = self.points[members], numpy.arange(len(members))
        nodes = numpy.array([root])
        while self.deeper(depth):
            nodes = nodes[topology.sizes(nodes) > 1]
            if not len(nodes):
                break
            groups = Groups(topology.sizes(nodes))
            rows = groups.place + groups.spread(topology.start[nodes] - base)
            left = self.sides(points, local[rows], groups, depth)
            local[rows] = local[rows[numpy.lexsort((~left, groups.owner))]]
            nodes, depth = self.divide(nodes, groups.count(left)), depth + 1
        members[:] = members[local]

    def sides(self, points: Floats, rows: Ints, groups: Groups, depth: int) -> Bools:
        """The rows that go left; pairs become singles without a look at them."""
        left = halves(groups)
        larger = groups.sizes > 2
        if larger.any():
            chosen = groups.spread(larger)
            left[chosen] = split(self.columns(points[rows[chosen]], depth), Groups(groups.sizes[larger]), self.name)
        return left
