"""Small experiments on a part of Split Digits."""

from __future__ import annotations

from pathlib import Path

from orchestrator.settings.compose import load_experiment
from orchestrator.settings.config import Experiment

SMALL = ["benchmark.tasks=3", "benchmark.train_per_class=24", "benchmark.test_per_class=10", "train.epochs=2"]
SMALL += ["train.batch_size=12", "method.search.every=2", "tracking.enabled=false"]
# Not the defaults: these runs are to forget, and to move their adapters as much in later tasks as in the first.
SMALL += ["head=linear", "train.learning_rate=1e-3"]


def small_experiment(folder: Path, *settings: str) -> Experiment:
    """An experiment on a part of Split Digits, stored below ``folder``."""
    other = any(s.startswith("method=") and s != "method=treelora" for s in settings)
    chosen = [s for s in SMALL if not (other and s.startswith("method.search"))]
    return load_experiment([*chosen, f"storage={folder / 'runs'}", *settings])
