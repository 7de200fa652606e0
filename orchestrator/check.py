"""A look at a run before it is started: its data, its model, what it would do, and what that would cost here.

Data and model are read, and a few steps are taken and thrown away; nothing is written but the cache of prepared data.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import islice

import torch

from benchmarks.overview import overview, overview_lines
from benchmarks.stream import TaskStream
from orchestrator.execute import check_room
from orchestrator.run.learner import Learner
from orchestrator.run.loop import batches, scored_after, steps_of
from orchestrator.run.memory import forget_peak, peak_memory
from orchestrator.run.service import make_service
from orchestrator.run.session import read_stream
from orchestrator.run.sharding import Place, device_here
from orchestrator.settings.config import Experiment

TIMED_STEPS = 3  # behind the first one, which is slower
TIMED_ROWS = 256  # of the first task's test split
MIB = 2**20


def check_experiment(experiment: Experiment) -> Iterator[str]:
    """Lines for people, each as soon as it is known; UserError for what has to be mended before a run can start."""
    check_room([experiment] if experiment.scale.workers else [])
    place = Place(device=device_here(experiment.device))
    forget_peak(place.device)
    stream = read_stream(experiment)
    yield from overview_lines(overview(stream))
    yield from (f"left out: {reason}" for reason in stream.skipped)
    # The service is of this process: none of a cluster is needed for a few steps.
    learner = Learner(experiment, stream, place, make_service(experiment))
    whole = sum(parameter.numel() for parameter in learner.model.parameters())
    yield f"model: {experiment.backbone.name}, {whole:,} parameters, of which {learner.trainable_parameters:,} train"
    yield from costs(learner, stream, experiment.evaluate.every)
    yield f"memory of this process so far: {peak_memory(place.device) / MIB:,.0f} MiB"


def costs(learner: Learner, stream: TaskStream, every: int) -> Iterator[str]:
    """How many steps and scored rows a run has, and the time that they would take in this process."""
    steps = sum(steps_of(task, learner) for task in stream.tasks)
    scored = scored_rows(stream, every)
    # A closed-form head also reads what was learned.
    fitted = sum(len(task.train) for task in stream.tasks) if learner.model.closed_form else 0
    seconds = steps * step_seconds(learner, stream) + (scored + fitted) * row_seconds(learner, stream)
    yield f"a run: {steps:,} steps of {learner.settings.batch_size} rows, {scored + fitted:,} rows scored or fitted"
    yield f"time in this process: about {duration(seconds)}"


def scored_rows(stream: TaskStream, every: int) -> int:
    """How many rows the loop scores, all tasks before the stream included."""
    count = len(stream.tasks)
    after = [scored_after(learned, count, every) for learned in range(1, count + 1)]
    rows = [len(getattr(stream.tasks[task], split)) for scored in after for split in scored for task in scored[split]]
    return sum(rows) + sum(len(task.test) for task in stream.tasks)


def step_seconds(learner: Learner, stream: TaskStream) -> float:
    """Of one optimiser step; 0 where nothing is learned by gradient."""
    task = stream.tasks[0]
    if not steps_of(task, learner):
        return 0.0
    learner.begin_task(task, steps_of(task, learner))
    first, *others = list(islice(batches(task, learner), TIMED_STEPS + 1))
    learner.step(first, 0)
    others = others or [first]
    return timed(lambda: [learner.step(rows, number) for number, rows in enumerate(others, 1)]) / len(others)


def row_seconds(learner: Learner, stream: TaskStream) -> float:
    """Of one row that is scored."""
    task = stream.tasks[0]
    few = task.test.take(task.test.rows.new_tensor(range(min(TIMED_ROWS, len(task.test)))))
    batch = few.batch().to(learner.place.device)
    learner.model.eval()
    with torch.no_grad(), learner.autocast():
        return timed(lambda: learner.model.scores(batch, task, stream.candidates(1, 0))) / len(few)


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
