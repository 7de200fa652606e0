"""Splits of groups of signatures in two, for many groups at once (TreeLoRA, section 3.3).

    two_means   Lloyd's iterations from a far pair; a side below a tenth of its group gives way to the median of the
                projection on the line between the means
    pca         projection on the first principal direction
    l1_mean     minus the L1 distance to the mean (the paper)
    dot_mean    inner product with the mean (the released code)

Each fits one vector a group, scores every row with it and cuts: left are the scores at or above the threshold, the
lower median for the last three. Where a side stays empty the group is halved in its order, which is that of entry
numbers. A pair always becomes two singles.

Deviations: the paper's own rules cannot separate symmetric clusters, hence the default two_means. The principal
direction comes from a fixed number of power iterations that start at the row farthest from the mean.
"""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import numpy
from numpy.typing import NDArray

from methods.treelora.tree.metric import Floats

Bools = NDArray[numpy.bool_]
Ints = NDArray[numpy.signedinteger]
SplitName = Literal["two_means", "pca", "l1_mean", "dot_mean"]

SMALLEST_SHARE = 0.1  # of a group, that two means may split off
ITERATIONS = 10  # of Lloyd's algorithm
POWERS = 16  # power iterations


class Groups:
    """Consecutive groups of rows with the given ``sizes`` [groups], none empty."""

    def __init__(self, sizes: Ints) -> None:
        self.sizes = sizes
        self.starts = numpy.cumsum(sizes) - sizes
        self.total = int(sizes.sum())

    @cached_property
    def owner(self) -> Ints:
        """The group of each row."""
        return numpy.repeat(numpy.arange(len(self.sizes)), self.sizes)

    @cached_property
    def place(self) -> Ints:
        """The place of each row in its group."""
        return numpy.arange(self.total) - self.spread(self.starts)

    def spread(self, values: NDArray) -> NDArray:
        """Values [groups, ...] repeated for each row."""
        return numpy.repeat(values, self.sizes, axis=0)

    def sum(self, rows: Floats) -> Floats:
        return numpy.add.reduceat(rows, self.starts, axis=0)

    def mean(self, points: Floats) -> Floats:
        return self.sum(points) / self.sizes.astype(numpy.float32).reshape(-1, *[1] * (points.ndim - 1))

    def count(self, chosen: Bools) -> Ints:
        """Chosen rows of each group."""
        return numpy.add.reduceat(chosen.astype(numpy.int64), self.starts)

    def largest(self, values: Floats) -> Ints:
        """The first row of each group with its largest value."""
        hits = values == self.spread(numpy.maximum.reduceat(values, self.starts))
        return numpy.minimum.reduceat(numpy.where(hits, numpy.arange(self.total), self.total), self.starts)

    def lower_median(self, values: Floats) -> Floats:
        ranked = numpy.lexsort((values, self.owner))
        return values[ranked[self.starts + (self.sizes - 1) // 2]]


def split(points: Floats, groups: Groups, name: SplitName) -> Bools:
    """True for the rows of ``points`` [rows, columns] that go left; both sides of a group of two or more get rows."""
    vectors, thresholds = fit(points, groups, name)
    return cut(scores(points, groups, vectors, name), groups, thresholds)


def fit(points: Floats, groups: Groups, name: SplitName) -> tuple[Floats, Floats | None]:
    """A vector [groups, columns] that scores rows, and thresholds [groups] unless the median decides."""
    if name == "two_means":
        return two_means(points, groups)
    return (principal(points, groups) if name == "pca" else groups.mean(points)), None


def scores(points: Floats, groups: Groups, vectors: Floats, name: SplitName) -> Floats:
    """The score of each row under its group's vector."""
    if name == "l1_mean":
        return -numpy.abs(points - groups.spread(vectors)).sum(axis=1)
    return project(points, groups, vectors)


def cut(values: Floats, groups: Groups, thresholds: Floats | None) -> Bools:
    """Left are the values at or above their group's threshold.

    Groups with a threshold of their own are turned so that their first row goes left.
    """
    if thresholds is None:
        left = values >= groups.spread(groups.lower_median(values))
    else:
        left = values >= groups.spread(thresholds)
        lopsided = smaller_side(left, groups) < SMALLEST_SHARE * groups.sizes
        if lopsided.any():
            median = groups.lower_median(values)
            left = values >= groups.spread(numpy.where(lopsided, median, thresholds))
        # Which centre is called the first means nothing, and equal partitions shall give equal trees.
        left = left == groups.spread(left[groups.starts])
    empty = smaller_side(left, groups) == 0
    return numpy.where(groups.spread(empty), halves(groups), left)


def halves(groups: Groups) -> Bools:
    """The first half of each group, the larger one if sizes are odd."""
    return 2 * groups.place < groups.spread(groups.sizes)


def smaller_side(left: Bools, groups: Groups) -> Ints:
    count = groups.count(left)
    return numpy.minimum(count, groups.sizes - count)


def two_means(points: Floats, groups: Groups) -> tuple[Floats, Floats]:
    """Lloyd's iterations: the difference of two centres and the projection half way; above it is the first's side."""
    total = groups.sum(points)
    sizes = groups.sizes.astype(numpy.float32).reshape(-1, 1)
    first = points[groups.largest(gaps(points, groups, total / sizes))]
    second = points[groups.largest(gaps(points, groups, first))]
    before = None
    for _ in range(ITERATIONS):
        vectors, middle = boundary(first, second)
        left = project(points, groups, vectors) >= groups.spread(middle)
        if before is not None and (left == before).all():
            break
        before = left
        count = groups.count(left).astype(numpy.float32).reshape(-1, 1)
        both = (count > 0) & (count < sizes)
        part = groups.sum(points * left[:, None])
        first = numpy.where(both, part / numpy.maximum(count, 1), first)
        second = numpy.where(both, (total - part) / numpy.maximum(sizes - count, 1), second)
    return boundary(first, second)


def boundary(first: Floats, second: Floats) -> tuple[Floats, Floats]:
    """Rows with x . (first - second) at least the middle are no farther from the first centre."""
    vectors = first - second
    return vectors, numpy.einsum("gc,gc->g", vectors, first + second) / 2


def principal(points: Floats, groups: Groups) -> Floats:
    """The first principal direction of each group by power iteration; zero for equal rows."""
    centred = points - groups.spread(groups.mean(points))
    vectors = centred[groups.largest(numpy.einsum("nc,nc->n", centred, centred))]
    for _ in range(POWERS):
        longer = groups.sum(centred * project(centred, groups, vectors)[:, None])
        norms = numpy.linalg.norm(longer, axis=1, keepdims=True)
        vectors = numpy.divide(longer, norms, out=numpy.zeros_like(longer), where=norms > 0)
    return vectors


def project(points: Floats, groups: Groups, vectors: Floats) -> Floats:
    """The inner product of each row with its group's vector."""
    return numpy.einsum("nc,nc->n", points, groups.spread(vectors))


def gaps(points: Floats, groups: Groups, centres: Floats) -> Floats:
    """The squared distance of each row to its group's centre."""
    difference = points - groups.spread(centres)
    return numpy.einsum("nc,nc->n", difference, difference)
