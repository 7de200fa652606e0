"""Bounds on the distance of any two entries of a node, for all nodes of a tree.

By the triangle inequality no query sees two members of a node further apart than its diameter, which is what the
paper's Assumption 1 asks of the tree. Trees of at most ``EXACT`` entries get exact diameters. Beyond that a node gets
twice the largest distance to its mean direction; the Cauchy estimate of L1 has no means, so that it gets no bound.
"""

from __future__ import annotations

import numpy

from methods.treelora.tree.grow import BLOCK, Topology
from methods.treelora.tree.metric import Floats, Metric, chunks
from methods.treelora.tree.split import Groups, Ints

EXACT = 512  # all pairs cost the square: a quarter of a million distances here


def diameters(signatures: Floats, topology: Topology, metric: Metric) -> Floats:
    """One bound a node for directions [entries, levels, width], never above the parent's."""
    if len(signatures) <= EXACT:
        return exact(signatures[topology.order], topology, metric)
    if metric.name == "l1" and metric.cauchy:
        return numpy.full(len(topology.parent), numpy.inf, dtype=numpy.float32)
    bounds = numpy.zeros(len(topology.parent), dtype=numpy.float32)
    pending = [0]
    for node in pending:  # grows while it is read
        if len(topology.held(node)) <= BLOCK:
            bound_block(signatures, topology, metric, node, bounds)
            continue
        bounds[node] = 2 * radius(signatures, topology.held(node), metric)
        limit(bounds, topology, numpy.array([node]))
        if topology.left[node] >= 0:
            pending += [int(topology.left[node]), int(topology.right[node])]
    return bounds


def exact(ordered: Floats, topology: Topology, metric: Metric) -> Floats:
    """The largest distance within each node; ``ordered`` are the signatures in the tree's order."""
    count = len(ordered)
    pairs = numpy.zeros((count, count), dtype=numpy.float32)
    for row in range(count - 1):
        pairs[row, row + 1 :] = metric.distance(ordered[row + 1 :], ordered[row])
    places = zip(topology.start, topology.stop, strict=True)
    return numpy.array([pairs[a:b, a:b].max() for a, b in places], dtype=numpy.float32)


def radius(signatures: Floats, members: Ints, metric: Metric) -> float:
    """The largest distance of ``members`` to their mean direction."""
    parts = [members[part] for part in chunks(len(members), signatures[0].size)]
    mean = sum(signatures[part].sum(axis=0, dtype=numpy.float64) for part in parts) / len(members)
    centre = centres(mean.astype(numpy.float32), metric)
    return max(float(metric.distance(signatures[part], centre).max()) for part in parts)


def bound_block(signatures: Floats, topology: Topology, metric: Metric, root: int, bounds: Floats) -> None:
    """Fill ``bounds`` below ``root``, all nodes of one depth together."""
    base = topology.start[root]
    points = signatures[topology.held(root)]
    nodes = numpy.array([root])
    while len(nodes := nodes[topology.sizes(nodes) > 1]):
        groups = Groups(topology.sizes(nodes))
        rows = points[groups.place + groups.spread(topology.start[nodes] - base)]
        gaps = metric.distance(rows, groups.spread(centres(groups.mean(rows), metric)))
        bounds[nodes] = 2 * numpy.maximum.reduceat(gaps, groups.starts)
        limit(bounds, topology, nodes)
        inner = nodes[topology.left[nodes] >= 0]
        nodes = numpy.stack([topology.left[inner], topology.right[inner]], axis=1).ravel()


def centres(means: Floats, metric: Metric) -> Floats:
    """Means as points of the metric: an angle needs a direction, a norm takes any point."""
    return metric.directions(means) if metric.name == "cos" else means


def limit(bounds: Floats, topology: Topology, nodes: Ints) -> None:
    """No two entries are further apart than 1, nor than the parent's bound."""
    parents = topology.parent[nodes]
    above = numpy.where(parents >= 0, bounds[parents], 1)
    bounds[nodes] = numpy.minimum(bounds[nodes], above)
