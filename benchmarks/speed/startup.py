"""How long the command line takes to answer, against `import torch` alone in the same run.

A refused setting shows what every command pays before its work; a tiny run in this process what a first try costs.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.speed.measure import Measurement, medians, once

REFUSED = ("train", "method.rnak=3")
# Two tasks of eight training images, without a record; the name is new each time.
TINY = (
    "train",
    "benchmark.tasks=2",
    "benchmark.classes=4",
    "benchmark.train_per_class=4",
    "benchmark.test_per_class=4",
    "train.epochs=1",
    "tracking.enabled=false",
)


def startup(toy: bool) -> list[Measurement]:
    """Both commands; medians over processes that take turns."""
    with tempfile.TemporaryDirectory() as folder:
        numbers = iter(range(1_000))
        candidates: dict[str, Callable[[], object]] = {
            "import torch": lambda: once([sys.executable, "-c", "import torch"]),
            "refused setting": lambda: once([sys.executable, "run.py", *REFUSED], ends_with=2),
            "tiny run": lambda: once(tiny_run(Path(folder), next(numbers))),
        }
        candidates["tiny run"]()  # the first one fills the cache of prepared data
        seconds = medians(candidates, 1 if toy else 5)
    bars = {"refused setting": 2.0, "tiny run": 4.0}
    return [
        Measurement("startup", seconds[name] / seconds["import torch"], reach, {"unit": name, **seconds})
        for name, reach in bars.items()
    ]


def tiny_run(folder: Path, number: int) -> list[str]:
    return [sys.executable, "run.py", *TINY, f"name=tiny{number}", f"storage={folder}"]
