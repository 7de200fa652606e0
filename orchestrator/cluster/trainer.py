"""A run as a Ray Train job whose workers hold the model's shards."""

from __future__ import annotations

from typing import Any

import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer, get_device

from orchestrator.cluster.room import gpus_of_worker, nodes_of_cluster
from orchestrator.cluster.telemetry import RunGauges
from orchestrator.cluster.tree_actor import RemoteSearch, find_actor, start_actor, stop_actor
from orchestrator.run.checkpoint import write_json
from orchestrator.run.folder import error_file
from orchestrator.run.session import Session, read_stream
from orchestrator.run.sharding import Place
from orchestrator.settings.compose import checked
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError


def train_on_workers(experiment: Experiment, callbacks: list[Any] | None = None) -> None:
    """The run as Ray Train job; Ray has to be connected, and the tree actor ends with this call.

    UserError for anything that the user can fix.
    """
    read_stream(experiment)  # bad data is found before anything starts, and the workers find the cache filled
    settings = experiment.model_dump(mode="json")
    actor = start_actor(experiment)
    trainer = TorchTrainer(
        worker,
        train_loop_config=settings,
        scaling_config=scaling(experiment),
        run_config=RunConfig(
            name=experiment.name,
            storage_path=str(experiment.folder / "train"),
            # One lost worker restarts all, as collective calls need every rank; they go on from the last checkpoint.
            failure_config=FailureConfig(max_failures=experiment.scale.max_failures),
            callbacks=callbacks or [],
        ),
    )
    # What an earlier start left would be taken for this one's error.
    error_file(experiment).unlink(missing_ok=True)
    try:
        trainer.fit()
    except TrainingFailedError as error:
        log = experiment.folder / "error.log"
        log.write_text(str(error))
        last = str(error).strip().splitlines()[-1]
        raise UserError(f"{experiment.name}: the workers failed ({last}); all of it is in {log}") from None
    finally:
        stop_actor(actor)


def worker(settings: dict[str, Any]) -> None:
    """One Train worker. An error that the user must fix goes to a file, since a restart would only repeat it."""
    experiment = checked(settings)
    context = ray.train.get_context()
    place = Place(context.get_world_rank(), context.get_world_size(), experiment.scale.sharding, get_device())
    actor = find_actor(experiment)
    gauges = RunGauges(experiment.name, experiment.method.name)

    def report(metrics: dict[str, Any]) -> None:
        if place.rank == 0:
            gauges.set(metrics)
        # A barrier: Train waits until every worker has reported, so all of them have to call it, as often.
        ray.train.report(metrics)

    try:
        Session(experiment, place, RemoteSearch(actor, place) if actor else None, report).run()
    except UserError as error:
        # Raised, it would count as a lost worker and be repeated max_failures times.
        if place.rank == 0:
            write_json(error_file(experiment), str(error))


def scaling(experiment: Experiment) -> ScalingConfig:
    gpus = gpus_of_worker(experiment, nodes_of_cluster())
    resources = {"CPU": 1.0} | ({"GPU": gpus} if gpus else {})
    return ScalingConfig(num_workers=experiment.scale.workers, use_gpu=bool(gpus), resources_per_worker=resources)
