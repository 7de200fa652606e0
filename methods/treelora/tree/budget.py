"""The budget of stored signatures: beyond it the closest two become one (TreeLoRA, section 3.3)."""

from __future__ import annotations

import numpy

from methods.treelora.tree.metric import Floats, Metric, chunks


def closest(signatures: Floats, metric: Metric) -> tuple[int, int]:
    """The two closest of the directions [entries, levels, width], the smaller number first.

    Ties go to the smallest numbers. ValueError for fewer than two entries.
    """
    if len(signatures) < 2:
        raise ValueError(f"only two or more signatures have a closest pair, but there are {len(signatures)}")
    best, pair = numpy.inf, (0, 1)
    for row in range(len(signatures) - 1):
        others = signatures[row + 1 :]
        for part in chunks(len(others), others[0].size):
            distances = metric.distance(others[part], signatures[row])
            nearest = int(distances.argmin())
            if distances[nearest] < best:
                best, pair = float(distances[nearest]), (row, row + 1 + part.start + nearest)
    return pair
