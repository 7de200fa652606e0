"""The search of sixteen runs on one node, each in a process of its own as their actors are, beside that of one run."""

from __future__ import annotations

import multiprocessing
import time
from typing import Any

import numpy
import torch

from benchmarks.speed.measure import Measurement, all_cores
from methods.treelora.search.search import SearchConfig
from methods.treelora.service import TreeService
from methods.treelora.sketch import Sketch, SketchConfig, Sketcher
from methods.treelora.tree.tree import TreeConfig

RUNS, TASKS, LEVELS, SIZE = 16, 100, 12, 2**12
INTERVAL = 0.08  # seconds between the search points of a run: four steps of a small model


def tree_service(toy: bool) -> list[Measurement]:
    """Seconds of a core that a search point takes where sixteen runs ask, by those where one does."""
    runs, points = (2, 3) if toy else (RUNS, 250)
    with all_cores() as cores:
        found = {count: together(count, points) for count in (1, runs)}
    detail = {
        "unit": f"seconds of a core for a search point of {runs} runs at once, by those of one run",
        "stored_tasks": TASKS,
        "cores": cores,
        "load_of_a_core": {str(count): count * about["seconds"] / INTERVAL for count, about in found.items()},
        "milliseconds": {str(count): about["milliseconds"] for count, about in found.items()},
    }
    return [Measurement("tree-service", found[runs]["seconds"] / found[1]["seconds"], 1.1, detail)]


def together(runs: int, points: int) -> dict[str, Any]:
    """``runs`` processes that answer ``points`` each: seconds of a core a point, quantiles of the waiting times."""
    context = multiprocessing.get_context("spawn")  # a fork would share torch's threads
    ready, answers = context.Barrier(runs), context.SimpleQueue()
    processes = [context.Process(target=serve, args=(points, ready, answers), daemon=True) for _ in range(runs)]
    for process in processes:
        process.start()
    told = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    waits = 1e3 * numpy.concatenate([waited for _, waited in told])
    quantiles = {name: float(numpy.quantile(waits, share)) for name, share in (("median", 0.5), ("p99", 0.99))}
    return {"seconds": sum(seconds for seconds, _ in told) / (runs * points), "milliseconds": quantiles}


def serve(points: int, ready: Any, answers: Any) -> None:
    """One run's search: a point is due every interval, and what it waits counts from then."""
    torch.set_num_threads(1)
    service, sketch = filled()
    ready.wait()
    began, used, waited = time.perf_counter(), time.process_time(), []
    for point in range(points):
        due = began + point * INTERVAL
        time.sleep(max(0.0, due - time.perf_counter()))
        service.observe(TASKS, point, 0, sketch, points)
        service.choose(TASKS, point)
        waited.append(time.perf_counter() - due)
    answers.put((time.process_time() - used, numpy.array(waited)))


def filled() -> tuple[TreeService, Sketch]:
    """A search with stored tasks, and the sketch of the task under way."""
    config = SketchConfig()
    sketcher = Sketcher([(level, 0, SIZE) for level in range(LEVELS)], [SIZE] * LEVELS, config, seed=0)
    generator = torch.Generator().manual_seed(0)
    service = TreeService(SearchConfig(), TreeConfig(), config, seed=0)
    for task in range(TASKS):
        service.close_task(task, 0, sketcher(torch.randn(LEVELS * SIZE, generator=generator)))
    return service, sketcher(torch.randn(LEVELS * SIZE, generator=generator))
