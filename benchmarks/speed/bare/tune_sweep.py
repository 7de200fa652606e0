"""A sweep with bare Ray Tune: ``python -m benchmarks.speed.bare.tune_sweep TRIALS``, its processes used again."""

from __future__ import annotations

import logging
import sys
import tempfile
from typing import Any

import ray
from ray import tune


def trial(config: dict[str, Any]) -> None:
    from benchmarks.speed.bare.steps import learn

    learn(config["seed"], lambda task, accuracy: tune.report({"task": task, "accuracy": accuracy}))


def main(trials: int) -> None:
    """One CPU for each trial."""
    ray.init(logging_level=logging.ERROR, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        tune.Tuner(
            tune.with_resources(trial, {"CPU": 1}),
            param_space={"seed": tune.grid_search(list(range(trials)))},
            tune_config=tune.TuneConfig(reuse_actors=True),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        ).fit()


if __name__ == "__main__":
    main(int(sys.argv[1]))
