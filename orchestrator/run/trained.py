"""The trained model of a run as a folder that ``benchmarks.models.predictor`` reads.

The updates are folded into the backbone's weights: it needs neither the method nor the pre-trained weights, and
computes as the run's last evaluation, in float32.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.models import predictor
from benchmarks.models.backbones import image_size, is_vision, text_format
from benchmarks.models.model import Model
from methods.fold import fold
from orchestrator.run.session import Session
from orchestrator.settings.config import Experiment

# What an example shows: rows of a user's data would go where the model goes.
GREY, TEXTS = 128, ["a text", "another text"]

Rows = NDArray[numpy.uint8] | list[str]


@dataclass(frozen=True)
class Trained:
    """``model``: the folder that the predictor reads; ``adapter``: PEFT's, where low rank holds the update.

    ``example``: images uint8 [2, height, width, 3], or texts; ``tasks``: how many were learned.
    """

    model: Path
    adapter: Path | None
    example: Rows
    tasks: int


def write_model(session: Session, folder: Path) -> None:
    """Write the resumed session's model to a new ``folder``; its backbone is folded and trains no further."""
    folder.mkdir()
    config, model = session.experiment.backbone, session.learner.model.eval()
    (folder / predictor.ABOUT).write_text(json.dumps(about(session), indent=1))
    if head := head_tensors(model):
        save(folder / predictor.HEAD, head)
    with session.learner.method.inference():
        fold(model.backbone)
        if is_vision(config.name):
            save(folder / predictor.WEIGHTS, model.backbone.state_dict())
        else:
            model.backbone.save_pretrained(folder / predictor.BACKBONE)
            tokenizer(session.experiment).save_pretrained(folder / predictor.BACKBONE)


def about(session: Session) -> dict[str, Any]:
    """The content of model.json."""
    experiment, stream = session.experiment, session.stream
    config = experiment.backbone
    learned = stream.tasks[: session.position.task]
    return {
        "kind": kind_of(experiment),
        # Not all of its settings: a language model's name and the file of weights may be places on this machine.
        "backbone": {"name": config.name, "image_size": config.image_size} if is_vision(config.name) else None,
        "head": experiment.head.model_dump(mode="json"),
        "parts": stream.parts,
        "seed": experiment.seed,
        "class_names": stream.class_names,
        "tasks": [
            {"name": task.name, "classes": [task.classes.start, task.classes.stop], "options": task.options}
            for task in learned
        ],
        "text": experiment.benchmark.text.model_dump(mode="json"),
        "cut": is_cut(session),
    }


def kind_of(experiment: Experiment) -> str:
    if is_vision(experiment.backbone.name):
        return "image"
    from benchmarks.models import language  # transformers takes seconds to import

    return language.kind(experiment.backbone)


def is_cut(session: Session) -> bool:
    """Whether the stream's images were cut to the backbone's size beforehand, as files are and arrays are not."""
    config = session.experiment.backbone
    if not is_vision(config.name):
        return False
    size = image_size(config)
    return tuple(session.stream.tasks[0].train.inputs.shape[-2:]) == (size, size)


def example(session: Session) -> Rows:
    """Two rows of the form that the model takes."""
    if not is_vision(session.experiment.backbone.name):
        return list(TEXTS)
    _, channels, height, width = session.stream.tasks[0].train.inputs.shape
    return numpy.full((2, height, width, channels), GREY, numpy.uint8)


def tokenizer(experiment: Experiment) -> Any:
    from benchmarks.texts.tokens import load_tokenizer

    return load_tokenizer(text_format(experiment.backbone))


def head_tensors(model: Model) -> dict[str, Tensor]:
    """The trained head's tensors and a closed-form head's sums; nothing where there is no head."""
    trained = {n.removeprefix("head."): p for n, p in model.named_parameters() if n.startswith("head.")}
    return trained | {f"statistics.{name}": value for name, value in model.statistics().items()}


def save(file: Path, tensors: dict[str, Tensor]) -> None:
    """As safetensors; each tensor is copied, since views of one memory are refused."""
    copies = {n: t.detach().cpu().clone(memory_format=torch.contiguous_format) for n, t in tensors.items()}
    save_file(copies, file, metadata={"format": "pt"})
