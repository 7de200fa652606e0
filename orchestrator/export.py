"""The update of a run as one LoRA adapter that PEFT loads, without this project, next to the frozen backbone.

    FOLDER/adapter_config.json, adapter_model.safetensors    # PeftModel.from_pretrained(backbone, FOLDER)
    FOLDER/head.safetensors                                  # not of a model that writes its answers
    FOLDER/model.json                                        # class names in the order of labels, how inputs are made

``backbone`` is the pre-trained model that the run adapted: timm's with ``num_classes=0``, or that of transformers.
PeftModel asks for no ``config`` attribute. The head's tensors are called ``parts.<task>.weight`` and ``.bias``, with
classes in the order of labels; the sums of a closed-form head, which answers in its place, ``statistics.<name>``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from torch import Tensor

from benchmarks.models.classifier import ImageClassifier
from benchmarks.models.predictor import ABOUT
from orchestrator.run import checkpoint
from orchestrator.run.checkpoint import write_json
from orchestrator.run.service import make_service
from orchestrator.run.session import Session, stream_without_rows
from orchestrator.run.sharding import Place
from orchestrator.run.trained import about, head_tensors, kind_of, save
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError
from orchestrator.tree_source import experiment_of

if TYPE_CHECKING:
    from peft import LoraConfig

ADAPTER, HEAD = "adapter_model.safetensors", "head.safetensors"
PEFT_PREFIX = "base_model.model."
TASK_TYPES = {"decoder": "CAUSAL_LM", "encoder_decoder": "SEQ_2_SEQ_LM"}
Pairs = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Exported:
    """Which run was written where, and as of when."""

    run: str
    folder: Path
    when: str


def export_run(run: str, folder: Path, settings: list[str]) -> Exported:
    """Write the newest checkpoint of ``run``, a name or a folder below storage, to a ``folder`` that is new or empty.

    UserError where there is no such run, checkpoint or low-rank update, and where ``folder`` cannot be made.
    """
    folder = folder.expanduser().absolute()
    check_output(folder)
    experiment = run_with_checkpoint(run, settings)
    stream = stream_without_rows(experiment)
    session = Session(experiment, Place(), make_service(experiment), lambda metrics: None, stream)
    session.resume()
    try:
        pairs = session.learner.method.pairs()
    except ValueError as error:
        raise UserError(f"{run}: {error}") from None
    write_adapter(session, folder, pairs)
    position = session.position
    return Exported(experiment.name, folder, f"tasks learned: {position.task}, steps of the next: {position.step}")


def check_output(folder: Path) -> None:
    """What can be refused before a model is built."""
    try:
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise UserError(f"--output {folder}: it exists and is not an empty folder; name another")
        nearest = next(place for place in folder.parents if place.exists())
    except OSError as error:
        raise unwritable(folder, error) from None
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise unwritable(folder, f"{nearest} is not a folder that can be written to")


def unwritable(folder: Path, reason: object) -> UserError:
    return UserError(f"--output {folder}: cannot be written ({reason}); name another folder")


def run_with_checkpoint(run: str, settings: list[str]) -> Experiment:
    experiment = experiment_of(run, settings)
    if not (experiment.folder / "experiment.json").exists():
        raise UserError(f"{run}: no such run in {experiment.storage}; name another, or set storage=…")
    if not checkpoint.numbered(experiment.folder / "checkpoints"):
        raise UserError(f"{run}: the run has no checkpoint yet, so there is nothing to export; try again later")
    return experiment


def write_adapter(session: Session, folder: Path, pairs: Pairs) -> None:
    """The low-rank update ``pairs`` of the session's model, with its head and what is known about it."""
    backbone = session.experiment.backbone.name
    of_backbone = {name.removeprefix("backbone."): pair for name, pair in pairs.items()}
    config = lora_config(backbone, of_backbone, TASK_TYPES.get(kind_of(session.experiment)))
    write(folder, config, of_backbone, head_tensors(session.learner.model), about(session) | inputs(session))


def inputs(session: Session) -> dict[str, Any]:
    """How an image becomes what the backbone reads; of texts, the settings of ``about`` say it."""
    model = session.learner.model
    if not isinstance(model, ImageClassifier):
        return {}
    pixels = {"size": model.size, "mean": model.mean.flatten().tolist(), "std": model.std.flatten().tolist()}
    return {"pixels": pixels | {"range": [0, 1], "resize": "short side, bicubic", "crop": "centre"}}


def write(folder: Path, config: LoraConfig, pairs: Pairs, head: dict[str, Tensor], known: dict[str, Any]) -> None:
    """Write beside and rename, so that ``folder`` is there whole or not at all.

    ``pairs``: name of the backbone's module -> A [rank, in] and B [out, rank].
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Beside it, as a rename does not cross file systems.
        with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as beside:
            new = Path(beside) / folder.name
            config.save_pretrained(str(new))
            save(new / ADAPTER, adapter_tensors(pairs))
            write_json(new / ABOUT, known)
            if head:
                save(new / HEAD, head)
            new.rename(folder)
    except (OSError, SafetensorError) as error:
        raise unwritable(folder, error) from None


def lora_config(backbone: str, pairs: Pairs, task_type: str | None = None) -> LoraConfig:
    """Every module by its whole name, with the scale alpha / rank = 1; AutoPeftModel loads by ``task_type``."""
    from peft import LoraConfig  # takes longer to import than torch

    ranks = {name: len(down) for name, (down, _) in pairs.items()}
    rank = max(ranks.values())
    # PEFT matches these after any prefix and a dot: without ^, encoder.layers.1.q would take the rank of layers.1.q.
    others = {f"^{name}": own for name, own in ranks.items() if own != rank}
    return LoraConfig(
        base_model_name_or_path=backbone,
        task_type=task_type,
        inference_mode=True,
        r=rank,
        lora_alpha=rank,
        lora_dropout=0.0,
        target_modules=list(ranks),
        rank_pattern=dict(others),
        alpha_pattern=dict(others),
    )


def adapter_tensors(pairs: Pairs) -> dict[str, Tensor]:
    """The factors by the names under which PEFT looks for them."""
    named: dict[str, Tensor] = {}
    for name, (down, up) in pairs.items():
        named |= {f"{PEFT_PREFIX}{name}.lora_A.weight": down, f"{PEFT_PREFIX}{name}.lora_B.weight": up}
    return named
