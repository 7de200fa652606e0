"""The distance of two signatures, level by level (TreeLoRA, Qian et al. 2025, section 3.1).

A signature is a direction: each level's sketch divided by its norm, so that neither the length of a task nor its
learning rate counts. Every distance is a metric on directions with values in 0 to 1:

    l2    half the L2 distance of vectors with unit L2 norm
    l1    half the L1 distance of vectors with unit L1 norm (the paper's metric)
    cos   the angle divided by pi

Deviations: the paper takes the L1 distance of raw gradients. Cosine stands as the angle because 1 - cos violates the
triangle inequality, which the tree's diameters need; both order tasks alike. The L1 norm of a sketched vector is the
median over Cauchy columns (Indyk 2006); this estimate meets the triangle inequality only up to its error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy
from numpy.typing import NDArray

Floats = NDArray[numpy.float32]
MetricName = Literal["l1", "l2", "cos"]

CHUNK = 2**21  # values handled at once


def chunks(rows: int, width: int) -> Iterator[slice]:
    """Slices of ``rows`` rows of ``width`` values that are small enough for temporary copies."""
    step = max(1, CHUNK // max(width, 1))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


@dataclass(frozen=True)
class Metric:
    """Directions of sketches [..., levels, width] and their distances.

    The trailing ``cauchy`` columns of a row are Cauchy projections; l1 looks at them alone, l2 and cos at the others.
    """

    name: MetricName = "l2"
    cauchy: int = 0

    def directions(self, sketches: NDArray) -> Floats:
        """Each level of [..., levels, width] divided by its norm, as float32; a zero level stays zero."""
        width = sketches.shape[-1]
        rows = sketches.reshape(-1, width)
        result = numpy.empty(rows.shape, dtype=numpy.float32)
        plain = width - self.cauchy
        for part in chunks(len(rows), width):
            result[part, :plain] = self.normalised(rows[part, :plain])
            if self.cauchy:
                result[part, plain:] = scaled(rows[part, plain:], median_size)
        return result.reshape(sketches.shape)

    def normalised(self, rows: NDArray) -> Floats:
        """Rows without Cauchy columns at unit norm: L1 where distances are taken in them by l1, else L2."""
        return scaled(rows, l1_norm if self.name == "l1" and not self.cauchy else l2_norm)

    def by_level(self, left: Floats, right: Floats) -> Floats:
        """Distances [..., levels] in 0 to 1; a zero level is 1/2 away from any other and 0 from a zero one."""
        if self.name == "l1":
            size = median_size if self.cauchy else l1_norm
            return numpy.minimum(size(self.measured(left) - self.measured(right)) / 2, 1)
        left, right = self.measured(left), self.measured(right)
        gap = l2_norm(left - right)
        if self.name == "l2":
            return numpy.minimum(gap / 2, 1)
        # Kahan's form of the angle is precise at both ends; a zero vector has gap = sum = 1 and comes out as 1/2.
        return numpy.arctan2(gap, l2_norm(left + right)) * numpy.float32(2 / numpy.pi)

    def distance(self, left: Floats, right: Floats) -> Floats:
        """The mean over levels of ``by_level``, [...]."""
        return self.by_level(left, right).mean(axis=-1)

    def measured(self, points: Floats) -> Floats:
        """The columns that distances are taken in."""
        if self.name == "l1" and self.cauchy:
            return points[..., points.shape[-1] - self.cauchy :]
        return self.geometry(points)

    def geometry(self, points: Floats) -> Floats:
        """The columns in which means may be taken: all but the Cauchy ones."""
        return points[..., : points.shape[-1] - self.cauchy]


def l1_norm(rows: Floats) -> Floats:
    return numpy.abs(rows).sum(axis=-1)


def l2_norm(rows: Floats) -> Floats:
    return numpy.sqrt(numpy.einsum("...i,...i->...", rows, rows))


def median_size(rows: Floats) -> Floats:
    """The median of absolute values: estimates the L1 norm from Cauchy projections."""
    return numpy.median(numpy.abs(rows), axis=-1)


def scaled(rows: NDArray, size: Callable[[Floats], Floats]) -> Floats:
    """Rows divided by ``size``; first by their largest value, so that squares neither overflow nor vanish."""
    peak = numpy.abs(rows).max(axis=-1, keepdims=True, initial=0)
    units = (rows / numpy.where(peak > 0, peak, 1)).astype(numpy.float32)
    sizes = size(units)[..., None]
    return numpy.divide(units, sizes, out=numpy.zeros_like(units), where=sizes > 0)
