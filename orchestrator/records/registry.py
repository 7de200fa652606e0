"""Registered models: ``mlflow.pyfunc.load_model`` loads them where this project is not; a PEFT adapter lies beside."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow.pyfunc
import numpy
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

from orchestrator.records import record
from orchestrator.records.connection import Connection, refused
from orchestrator.run.trained import Trained

PROJECT = Path(__file__).resolve().parents[2]
CODE = Path(__file__).with_name("served_model.py")
# Not of use to a model that is trained: what measures speed, the shipped weights, and how these were made.
LEFT_OUT = ("__pycache__", "speed", "weights", "pretrain.py", "model_card.py")
# What the code imports that goes with a model; a language model needs the second list too.
REQUIRED = ("mlflow", "torch", "timm", "safetensors", "numpy", "pillow", "pydantic")
REQUIRED_FOR_TEXTS = ("transformers", "tokenizers", "huggingface_hub", "filelock", "rapidfuzz", "pyarrow")
UPLOAD_SECONDS = "600"  # a server answers once it has stored the whole of a file


def register_model(connection: Connection, folder: Path, name: str, trained: Trained) -> str:
    """Upload to the record of ``folder`` and register under ``name``; returns the number of the new version.

    UserError where the server does not take it.
    """
    client, run_id = connection.client, record.read_note(folder)["run_id"]
    with refused(f"the model of {folder.name}"), environment(client.tracking_uri):
        logged = log_model(client, run_id, name, trained)
        if trained.adapter:
            client.log_artifacts(run_id, str(trained.adapter), "adapter")
        make_name(client, name)
        made = client.create_model_version(name, f"models:/{logged.model_id}", run_id, model_id=logged.model_id)
        return str(made.version)


def log_model(client: MlflowClient, run_id: str, name: str, trained: Trained) -> LoggedModel:
    """Upload the model as an output of the run; it is marked as ready last, when all of it is there."""
    experiment = client.get_run(run_id).info.experiment_id
    logged = client.create_logged_model(experiment, name=name, source_run_id=run_id)
    with TemporaryDirectory() as scratch:
        about = Model(run_id=run_id, artifact_path=logged.artifact_location, model_id=logged.model_id)
        save_model(Path(scratch) / "model", trained, about)
        client.log_model_artifacts(logged.model_id, str(Path(scratch) / "model"))
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, trained.tasks)])
    return logged


def make_name(client: MlflowClient, name: str) -> None:
    """Make the registered model, whose versions are to be, unless it is there."""
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


@contextmanager
def environment(uri: str) -> Iterator[None]:
    """Time for large files, and the address in MLflow's own variable, where a registry in a database looks for it."""
    wanted = {"MLFLOW_HTTP_REQUEST_TIMEOUT": UPLOAD_SECONDS, "MLFLOW_TRACKING_URI": uri}
    before = {name: os.environ[name] for name in wanted if name in os.environ}
    os.environ |= wanted
    try:
        yield
    finally:
        for name in wanted:
            del os.environ[name]
        os.environ |= before


def save_model(target: Path, trained: Trained, about: Model) -> None:
    """Write an MLflow model to the new folder ``target``: code, weights as safetensors, nothing pickled."""
    images = isinstance(trained.example, numpy.ndarray)
    with TemporaryDirectory() as scratch:
        package = Path(scratch) / "benchmarks"
        shutil.copytree(PROJECT / "benchmarks", package, ignore=shutil.ignore_patterns(*LEFT_OUT))
        mlflow.pyfunc.save_model(
            target,
            python_model=str(CODE),
            artifacts={"model": str(trained.model)},
            code_paths=[str(package)],
            signature=signature(images),
            input_example=(trained.example if images else {"text": trained.example}, {"task": ""}),
            pip_requirements=requirements(REQUIRED if images else REQUIRED + REQUIRED_FOR_TEXTS),
            mlflow_model=about,
        )
    # What loads the code to check it leaves compiled files.
    for compiled in target.rglob("__pycache__"):
        shutil.rmtree(compiled)


def signature(images: bool) -> ModelSignature:
    pixels = TensorSpec(numpy.dtype(numpy.uint8), (-1, -1, -1, 3))
    inputs = Schema([pixels]) if images else Schema([ColSpec("string", "text")])
    return ModelSignature(inputs, Schema([ColSpec("string")]), ParamSchema([ParamSpec("task", "string", "")]))


def requirements(names: tuple[str, ...]) -> list[str]:
    """Pinned as installed; a build's own mark, as in 2.14.1+cpu, is not on every index."""
    return [f"{name}=={version(name).partition('+')[0]}" for name in names]
