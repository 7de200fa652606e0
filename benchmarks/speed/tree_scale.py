"""The tree at a thousand to a million leaves: time of a round, growth of the building time, memory."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable

import numpy

from benchmarks.speed.measure import Measurement, medians
from methods.treelora import TaskTree, TreeSearch

SIZES, TOY_SIZES = (10**3, 10**4, 10**5, 10**6), (16, 32, 64)
LEVELS, WIDTH = 4, 16  # 64 numbers a sketch
ROUNDS = 2000


def tree_scale(toy: bool) -> list[Measurement]:
    """A round at the largest size against one at the smallest; exponent of the building time; memory by sketches."""
    sizes = TOY_SIZES if toy else SIZES
    rounds = 8 if toy else ROUNDS
    built = {size: build(size) for size in sizes}
    searches = {size: TreeSearch(tree, rounds, 0.1, seed=0) for size, (tree, _) in built.items()}
    seconds = medians({str(size): pulling(search) for size, search in searches.items()}, rounds)
    micros = {size: 1e6 * value for size, value in seconds.items()}
    times = [found for _, found in built.values()]
    exponent = float(numpy.polyfit(numpy.log(sizes), numpy.log(times), 1)[0])
    round_ratio = micros[str(sizes[-1])] / micros[str(sizes[0])]
    growth = {
        "quantity": "exponent of N in building",
        "seconds": {str(n): t for n, t in zip(sizes, times, strict=True)},
    }
    size = {
        "quantity": "peak memory of tree and search, by the sketches",
        "mebibytes": sizes[-1] * LEVELS * WIDTH / 2**18,
    }
    return [
        Measurement(
            "tree-scale", round_ratio, 1.5, {"quantity": "a round, largest to smallest", "microseconds": micros}
        ),
        Measurement("tree-scale", exponent, 1.1, growth),
        Measurement("tree-scale", memory_ratio(sizes[-1]), 3.0, size),
    ]


def sketches(size: int) -> numpy.ndarray:
    """[size, levels, width] float32: tasks around centres, eight to a centre."""
    generator = numpy.random.default_rng(0)
    centres = generator.standard_normal((-(-size // 8), LEVELS, WIDTH), dtype=numpy.float32)
    noise = generator.standard_normal((size, LEVELS, WIDTH), dtype=numpy.float32)
    noise *= 0.3
    noise += centres[numpy.arange(size) // 8]
    return noise


def build(size: int) -> tuple[TaskTree, float]:
    """A tree, and the median of the seconds that building took (small ones several times)."""
    found, seconds = sketches(size), []
    for _ in range(max(1, 10_000 // size)):
        started = time.perf_counter()
        tree = TaskTree.build(found)
        seconds.append(time.perf_counter() - started)
    return tree, float(numpy.median(seconds))


def pulling(search: TreeSearch) -> Callable[[], None]:
    """One round: select, observe the distance to a query near some leaf, update the path."""
    tree = search.tree
    query = tree.signatures[tree.entries // 2]

    def run() -> None:
        entry = search.select()
        search.update(entry, float(tree.metric.distance(query, tree.signatures[entry])))

    return run


def memory_ratio(size: int) -> float:
    """Peak bytes of the sketches, the tree while it is built, and a search, by the bytes of the sketches."""
    tracemalloc.start()
    found = sketches(size)
    tracemalloc.reset_peak()
    search = TreeSearch(TaskTree.build(found), ROUNDS, 0.1, seed=0)
    search.update(search.select(), 0.5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / found.nbytes
