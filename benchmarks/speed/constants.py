"""What the page of scales is computed from: constants measured here, and those that are taken.

These describe machines that a measurement here cannot reach.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy
import torch

from benchmarks.speed.measure import medians
from benchmarks.speed.tree_scale import build, pulling
from methods.treelora import TaskTree, TreeSearch
from methods.treelora.sketch import SketchConfig, Sketcher

PULLS = 200
WIDTH = SketchConfig().width


@dataclass(frozen=True)
class Taken:
    """Set by hand, with options of the command of the same names; seconds, bytes and operations a second."""

    flops: float = 400e12 * 0.4  # of an accelerator in bf16, at the share that training reaches
    network: float = 50e9  # bytes a second between two workers
    tokens: int = 4096  # that a worker reads in a step
    call: float = 1.2e-3  # of a message to an actor and back
    disk: float = 1e9  # bytes a second of a shared file system
    worker_memory: float = 80e9  # bytes of an accelerator
    actor_memory: float = 64e9  # bytes of a node that the tree actor may have
    rank: int = 8
    every: int = 4  # steps between two search points
    rounds: int = 8  # entries pulled at a search point


@dataclass(frozen=True)
class Measured:
    """Seconds; ``select`` of choosing a leaf by the number of leaves, ``build`` of a tree by it, of 64 numbers a leaf.

    ``distance`` is of two sketches and ``add`` of adding one to another, for each number in them.
    """

    sketch: float  # a float of a gradient
    distance: float
    add: float
    copy: float  # a byte
    select: dict[int, float]
    build: dict[int, float]


def measured(toy: bool) -> Measured:
    """One thread; a minute and a half at full size."""
    leaves = (16, 64) if toy else (10**3, 10**4, 10**5)
    floats = 2**12 if toy else 2**22
    trees = {count: build(count) for count in leaves}
    values, copy = torch.randn(floats), torch.empty(floats)
    sketcher = Sketcher([(0, 0, floats)], [floats], SketchConfig(), seed=0)
    one, other = numpy.random.default_rng(0).standard_normal((2, 32, WIDTH), dtype=numpy.float32)
    metric = trees[leaves[0]][0].metric
    left, right = metric.directions(numpy.stack([one, other]))
    candidates: dict[str, Callable[[], object]] = {
        "sketch": lambda: sketcher(values),
        "copy": lambda: copy.copy_(values),
        "distance": lambda: metric.distance(left, right),
        "add": lambda: one + other,
    }
    found = medians(candidates, 3 if toy else 30)
    return Measured(
        sketch=found["sketch"] / floats,
        distance=found["distance"] / one.size,
        add=found["add"] / one.size,
        copy=found["copy"] / values.nbytes,
        select={count: selecting(tree) for count, (tree, _) in trees.items()},
        build={count: seconds for count, (_, seconds) in trees.items()},
    )


def selecting(tree: TaskTree) -> float:
    """Seconds of a round, less those of its distance, which depends on how many numbers a sketch has."""
    round_ = pulling(TreeSearch(tree, PULLS, 0.1, seed=0))
    rounds, distances = [], []
    for _ in range(PULLS):
        started = time.perf_counter()
        round_()
        between = time.perf_counter()
        tree.metric.distance(tree.signatures[0], tree.signatures[-1])
        rounds.append(between - started)
        distances.append(time.perf_counter() - between)
    return max(0.0, float(numpy.median(rounds) - numpy.median(distances)))
