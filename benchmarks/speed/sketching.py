"""What the sketch of a gradient costs, beside copying it and beside adding it to buckets with torch's own scatter."""

from __future__ import annotations

import torch

from benchmarks.speed.measure import Measurement, medians
from methods.treelora.sketch import SketchConfig, Sketcher

COPIES = 2.5  # a bandwidth of 0.4 of that of a copy


def sketch(toy: bool) -> list[Measurement]:
    """One level of four million floats."""
    size, repeats = (2**10, 3) if toy else (4_000_000, 30)
    config = SketchConfig()
    sketcher = Sketcher([(0, 0, size)], [size], config, seed=0)
    generator = torch.Generator().manual_seed(0)
    vector, copy = torch.randn(size, generator=generator), torch.empty(size)
    buckets = torch.randint(config.width, (size,), generator=generator)
    signs, sums = torch.randint(2, (size,), generator=generator).float() * 2 - 1, torch.zeros(config.width)
    candidates = {
        "sketch": lambda: sketcher(vector),
        "copy": lambda: copy.copy_(vector),
        "index_add": lambda: sums.index_add_(0, buckets, vector * signs),
    }
    seconds = medians(candidates, repeats)
    detail = {"size": size, "width": config.width, "seconds": seconds, "repeats": repeats}
    return [
        Measurement("sketch", seconds["sketch"] / seconds["copy"], COPIES, {"unit": "of Tensor.copy_"} | detail),
        Measurement("sketch", seconds["sketch"] / seconds["index_add"], 1 / 3, {"unit": "of index_add_"} | detail),
    ]
