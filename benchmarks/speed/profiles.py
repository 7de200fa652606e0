"""Profiles of the hot paths, with what was learned from them: docs/profiles.md.

python -m benchmarks.speed.profiles --page docs/profiles.md
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed import gorp, treelora_step
from benchmarks.speed.measure import pin
from benchmarks.speed.page import machine, measuring, put
from benchmarks.speed.sdlora_models import REAL, TOY, stepping, with_lora
from benchmarks.speed.training import tree_stepping
from methods.treelora import TreeLoRAConfig
from methods.treelora.sketch import SketchConfig, Sketcher

OPERATIONS = 8  # that a table shows
HEAD = """# Profiles

What takes the time of the hot paths, by torch's profiler: operations with the largest shares of the time, their own
alone. {machine}, one thread. Repeat with `python -m benchmarks.speed.profiles --page docs/profiles.md`.
"""


def gorp_steps(toy: bool) -> Callable[[], object]:
    """A whole period between two refreshes, eight matrices."""
    return gorp.stepping(gorp.exact(*gorp.problem(toy)))


def edits(toy: bool) -> Callable[[], object]:
    """What TreeLoRA adds to four steps with ten stored tasks: 24 levels of 3,072 numbers."""
    return treelora_step.stepping(TreeLoRAConfig(), *((2, 16, 2) if toy else (24, 3072, 10)), 4)


def training(toy: bool) -> Callable[[], object]:
    return tree_stepping(TreeLoRAConfig(), TOY if toy else REAL, 4)


def lora(toy: bool) -> Callable[[], object]:
    sizes = TOY if toy else REAL
    return stepping(with_lora(sizes), sizes)


def sketching(toy: bool) -> Callable[[], object]:
    size = 2**10 if toy else 4_000_000
    sketcher = Sketcher([(0, 0, size)], [size], SketchConfig(), seed=0)
    values = torch.randn(size, generator=torch.Generator().manual_seed(0))
    return lambda: sketcher(values)


# Each with what was learned from it.
PATHS: dict[str, tuple[Callable[[bool], Callable[[], object]], str]] = {
    "GORP's steps": (
        gorp_steps,
        "Products of a large matrix and few vectors are computed as rows (`methods/gorp/compression.py`); as columns "
        "they take several times as long. What is left reads each gradient and writes each weight once, near the speed "
        "of the memory; a refresh reads the gradient three times.",
    ),
    "TreeLoRA's edits": (
        edits,
        "Gradients of all levels lie in one buffer, so that few operations see all of them; the search comes every "
        "fourth step, and its answer is asked for one interval late.",
    ),
    "A training step of TreeLoRA": (
        training,
        "The backbone's own products take nearly all of it, and the edits next to nothing; so compiling the blocks "
        "(`train.compile`) has little to gain on a CPU.",
    ),
    "A training step of LoRA": (lora, "The reference of the one above."),
    "The sketch of a level": (
        sketching,
        "Signs and sums are made block by block: more at a time than a cache holds is slower. Whole rows of rotated "
        "buckets would be added faster, with other hashes: every stored sketch would be of an older version.",
    ),
}


def page(toy: bool) -> str:
    parts = [HEAD.format(machine=machine())]
    for name, (make, learned) in PATHS.items():
        parts += [f"## {name}", "", *table(make(toy)), "", learned, ""]
    return "\n".join(parts)


def table(run: Callable[[], object]) -> list[str]:
    """The operations of one call with the largest shares of its time."""
    run()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        run()
    operations = sorted(found.key_averages(), key=lambda one: one.self_cpu_time_total, reverse=True)
    whole = sum(one.self_cpu_time_total for one in operations)
    rows = [
        f"| `{one.key}` | {one.count:,} | {one.self_cpu_time_total / 1e3:,.2f} ms "
        f"| {one.self_cpu_time_total / whole:.1%} |"
        for one in operations[:OPERATIONS]
    ]
    return ["| operation | calls | time | share |", "| --- | ---: | ---: | ---: |", *rows]


def main(arguments: list[str] | None = None) -> None:
    result = measuring("benchmarks.speed.profiles", "Profiles of the hot paths.")
    options = result.parse_args(arguments)
    pin()
    text = page(options.toy)
    put(text, options.page)


if __name__ == "__main__":
    main()
