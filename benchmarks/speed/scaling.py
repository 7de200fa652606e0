"""Where the first bottleneck stands beyond one machine, computed from constants measured here: docs/scale.md.

    python -m benchmarks.speed.scaling --page docs/scale.md

TreeLoRA is what is computed: no other method asks a central service.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict, dataclass, fields
from functools import partial

from benchmarks.speed.constants import WIDTH, Measured, Taken, measured
from benchmarks.speed.measure import pin
from benchmarks.speed.page import machine, measuring, put

WORKERS = (8, 64, 512, 4096)
TASKS = (10**3, 10**4, 10**5, 10**6)
ADAM = 3  # an adapter and its two moments
LEAF = 2.55  # bytes of tree and search for each byte of sketches: case tree-scale of the suite
BUILT_WIDTH = 64  # numbers a leaf of the trees whose building is measured
HALF, SINGLE = 2, 4  # bytes


@dataclass(frozen=True)
class Shape:
    """A decoder: ``parameters``, ``levels`` (its blocks) and ``width`` of the hidden state."""

    name: str
    parameters: float
    levels: int
    width: int

    def adapter(self, rank: int) -> int:
        """Numbers of the adapters of query and value."""
        return self.levels * 2 * 2 * rank * self.width

    @property
    def sketch(self) -> int:
        """Numbers of a sketch."""
        return self.levels * WIDTH


SHAPES = (
    Shape("1B", 1.2e9, 16, 2048),
    Shape("7B", 6.7e9, 32, 4096),
    Shape("13B", 13e9, 40, 5120),
    Shape("70B", 69e9, 80, 8192),
)


@dataclass(frozen=True)
class Estimate:
    """One model on ``workers`` with ``tasks`` stored: seconds, bytes, and shares of what there is."""

    step: float  # seconds of a training step
    traffic: float  # bytes of sketches that reach the actor in a second
    sketching: float  # share of a step that a worker sketches
    actor: float  # share of the time between two search points that the actor works
    closing: float  # seconds in which the tree is built anew after a task
    blocking: float  # seconds that a checkpoint blocks
    restoring: float  # seconds in which a resumed run reads what is stored
    worker_bytes: float
    actor_bytes: float

    def shares(self, taken: Taken) -> dict[str, float]:
        """Of each limit, by its name; above 1 it is the bottleneck."""
        return {
            "actor": self.actor,
            "closing": self.closing / 60,
            "worker memory": self.worker_bytes / taken.worker_memory,
            "actor memory": self.actor_bytes / taken.actor_memory,
            "restoring": self.restoring / 600,
        }


LIMITS = {
    "actor": (
        "the actor is busy all the time between two search points",
        "add the sketches of a node's workers before one of them sends the sum; a larger `method.search.every`",
    ),
    "closing": (
        "building the tree anew takes more than a minute a task",
        "`method.tree.maintain=insert`, which costs a path; a tree for each level on a core of its own",
    ),
    "worker memory": (
        "shard and stored targets exceed a worker's memory",
        "`method.tree.budget`; targets of entries that are not chosen kept in host memory",
    ),
    "actor memory": (
        "sketches and tree exceed the actor's memory",
        "`method.tree.budget`, a smaller `method.sketch.width`",
    ),
    "restoring": (
        "a resumed run reads for more than ten minutes",
        "`method.tree.budget`; each worker reading its own rows of the finished tasks' files",
    ),
}


def estimate(shape: Shape, workers: int, tasks: int, have: Measured, taken: Taken) -> Estimate:
    """Forward 2 and backward 2 operations a token and frozen weight; shards are gathered twice in bf16 meanwhile."""
    compute = 4 * shape.parameters * taken.tokens / taken.flops
    gather = 2 * HALF * shape.parameters / taken.network
    step = max(compute, gather)
    adapter = shape.adapter(taken.rank)
    sketches = tasks * shape.sketch * SINGLE
    round_ = interpolated(have.select, tasks) + have.distance * shape.sketch
    point = workers * (taken.call + have.add * shape.sketch) + taken.rounds * round_
    shard = (HALF * shape.parameters + ADAM * SINGLE * adapter) / workers
    return Estimate(
        step=step,
        traffic=workers * shape.sketch * SINGLE / (taken.every * step),
        sketching=have.sketch * adapter / workers / (taken.every * step),
        actor=point / (taken.every * step),
        closing=interpolated(have.build, tasks) * shape.sketch / BUILT_WIDTH,
        blocking=have.copy * ADAM * SINGLE * adapter,
        restoring=tasks * (adapter + shape.sketch) * SINGLE / taken.disk,
        worker_bytes=shard + tasks * adapter * SINGLE / workers,
        actor_bytes=LEAF * sketches,
    )


def interpolated(seconds: dict[int, float], count: int) -> float:
    """Of ``count`` leaves, on the line through logarithms of the smallest and the largest measured size."""
    (few, least), (many, most) = min(seconds.items()), max(seconds.items())
    power = math.log(max(most, 1e-9) / max(least, 1e-9)) / math.log(many / few)
    return least * (count / few) ** power


# --- the page ---

HEAD = """# Beyond one machine

TreeLoRA (rank {rank}, search every {every} steps, {rounds} pulls) on clusters that were not at hand: computed by a
script from constants that it measures on one core ({machine}) and from others that are taken, as nothing at hand shows
them. Sizes between and beyond the measured ones lie on the line through their logarithms. The formulas are in
`benchmarks/speed/scaling.py`. Repeat, with your own numbers as options:
`python -m benchmarks.speed.scaling --page docs/scale.md`.
"""


def page(have: Measured, taken: Taken) -> str:
    parts = [HEAD.format(machine=machine(), **asdict(taken)), *constants(have, taken), *by_workers(have, taken)]
    return "\n".join([*parts, *by_tasks(have, taken), *bottlenecks(have, taken)]) + "\n"


def constants(have: Measured, taken: Taken) -> list[str]:
    rows = [
        f"| {name}{'' if count is None else f', {count:,} leaves'} | {seconds:.3g} s | measured |"
        for name, value in asdict(have).items()
        for count, seconds in (value.items() if isinstance(value, dict) else [(None, value)])
    ]
    rows += [f"| {name} | {value:.3g} | taken |" for name, value in asdict(taken).items()]
    return ["## Constants", "", "| what | value | |", "| --- | ---: | --- |", *rows, ""]


def by_workers(have: Measured, taken: Taken) -> list[str]:
    head = (
        "| model | workers | step | sketches into the actor | sketching, of a step | actor busy at 1,000 tasks "
        "| at 1,000,000 | a checkpoint blocks |"
    )
    rows = []
    for shape in SHAPES:
        for workers in WORKERS:
            few, many = (estimate(shape, workers, tasks, have, taken) for tasks in (10**3, 10**6))
            rows.append(
                f"| {shape.name} | {workers:,} | {1e3 * few.step:,.0f} ms | {few.traffic / 1e6:,.1f} MB/s "
                f"| {few.sketching:.2%} | {few.actor:.1%} | {many.actor:.1%} | {1e3 * few.blocking:,.1f} ms |"
            )
    return ["## By workers", "", head, "| --- |" + " ---: |" * 7, *rows, ""]


def by_tasks(have: Measured, taken: Taken) -> list[str]:
    head = "| model | tasks | a worker's memory (of 8) | the actor's | tree anew | resumed after | first limits |"
    rows = []
    for shape in SHAPES:
        for tasks in TASKS:
            found = estimate(shape, 8, tasks, have, taken)
            over = [name for name, share in found.shares(taken).items() if share > 1]
            rows.append(
                f"| {shape.name} | {tasks:,} | {found.worker_bytes / 1e9:,.1f} GB | {found.actor_bytes / 1e9:,.2f} GB "
                f"| {found.closing:,.1f} s | {found.restoring:,.0f} s | {', '.join(over) or 'none'} |"
            )
    return ["## By tasks, on 8 workers", "", head, "| --- |" + " ---: |" * 5 + " --- |", *rows, ""]


def bottlenecks(have: Measured, taken: Taken) -> list[str]:
    """The smallest scale at which each limit is met, and the way out."""
    rows = []
    for limit, (what, way_out) in LIMITS.items():
        met = [
            f"{shape.name} with {workers:,} workers and {tasks:,} tasks"
            for shape in SHAPES
            for workers in WORKERS
            for tasks in TASKS
            if estimate(shape, workers, tasks, have, taken).shares(taken)[limit] > 1
        ]
        rows.append(f"| {what} | {met[0] if met else 'nowhere in these ranges'} | {way_out} |")
    head = "| limit | first met by | what removes it |"
    return ["## The first bottleneck, and what removes it", "", head, "| --- | --- | --- |", *rows]


def main(arguments: list[str] | None = None) -> None:
    result = measuring("benchmarks.speed.scaling", __doc__.splitlines()[0])
    for field in fields(Taken):
        kind = partial(positive, type(getattr(Taken(), field.name)))
        result.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    options = result.parse_args(arguments)
    pin()
    text = page(measured(options.toy), Taken(**{field.name: getattr(options, field.name) for field in fields(Taken)}))
    put(text, options.page)


def positive(kind: type[int] | type[float], text: str) -> int | float:
    """ArgumentTypeError where ``text`` is no number of this kind above 0."""
    try:
        value = kind(text)
    except ValueError:
        value = kind(0)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no {'whole ' if kind is int else ''}number above 0")
    return value


if __name__ == "__main__":
    main()
