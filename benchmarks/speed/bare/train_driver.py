"""Trials with bare Ray Tune, each the driver of two bare Train workers: ``python -m benchmarks.speed.bare.train_driver
TRIALS``; one trial at a time, its process used again."""

from __future__ import annotations

import logging
import sys
import tempfile
from typing import Any

import ray
from ray import tune

WORKERS = 2


def worker(config: dict[str, Any]) -> None:
    # Imported here as in a run's workers: timm, FSDP2 and what holds its shards.
    import ray.train
    from torch.distributed.checkpoint.state_dict import get_model_state_dict  # noqa: F401
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    from benchmarks.speed.bare.steps import Classifier, learn

    def shard(model: Classifier) -> None:
        fully_shard(model, mesh=init_device_mesh("cpu", (WORKERS,)), reshard_after_forward=True)
        register_fsdp_forward_method(model, "features")

    share = slice(ray.train.get_context().get_world_rank(), None, WORKERS)
    learn(config["seed"], lambda task, accuracy: ray.train.report({"task": task, "accuracy": accuracy}), shard, share)


def trial(config: dict[str, Any]) -> None:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    with tempfile.TemporaryDirectory() as folder:
        TorchTrainer(
            worker,
            train_loop_config=config,
            scaling_config=ScalingConfig(num_workers=WORKERS),
            run_config=RunConfig(storage_path=folder, callbacks=[TuneReportCallback()]),  # type: ignore[list-item]
        ).fit()


def main(trials: int) -> None:
    ray.init(logging_level=logging.ERROR, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        tune.Tuner(
            tune.with_resources(trial, {"memory": 1}),
            param_space={"seed": tune.grid_search(list(range(trials)))},
            tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=1),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        ).fit()


if __name__ == "__main__":
    main(int(sys.argv[1]))
