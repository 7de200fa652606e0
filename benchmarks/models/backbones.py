"""Which backbone a run adapts: what it reads, and the model that is built around it.

timm and transformers take seconds to import, and a run needs one of them: each branch imports its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from benchmarks.dataset import BenchmarkError
from benchmarks.formats import Format, ImageFormat, TextFormat
from benchmarks.models.config import MICRO_VIT, MICRO_VIT_PIXELS, BackboneConfig
from benchmarks.models.heads import HeadConfig
from benchmarks.models.model import Model
from benchmarks.models.weights import named_file

if TYPE_CHECKING:
    from benchmarks.stream import TaskStream


def is_vision(name: str) -> bool:
    """Whether timm builds the backbone; anything else is looked for among language models."""
    if name == MICRO_VIT:
        return True
    import timm

    return bool(timm.is_model(name))


def check_backbone(config: BackboneConfig, head: HeadConfig) -> None:
    """BenchmarkError for names and files that do not exist, and heads that do not fit; nothing is built."""
    if not is_vision(config.name):
        from benchmarks.models import language

        language.architecture(config.name, config.gguf_file)
        if language.kind(config) != "encoder" and head.kind not in ("auto", "linear"):
            raise BenchmarkError(
                f"head.kind={head.kind}: {config.name} writes its answers without a head; leave head out"
            )
    else:
        image_size(config)
    named_file(config)


def input_format(config: BackboneConfig) -> Format:
    """What the backbone reads."""
    return ImageFormat(image_size(config)) if is_vision(config.name) else text_format(config)


def image_size(config: BackboneConfig) -> int:
    """Side in pixels, as set or the model's own."""
    if config.image_size:
        return config.image_size
    if config.name == MICRO_VIT:
        return MICRO_VIT_PIXELS
    from benchmarks.models import vision

    return vision.own_image_size(config.name)


def text_format(config: BackboneConfig) -> TextFormat:
    from benchmarks.models import language

    folder, limit = str(language.located(config.name)), language.position_limit(config)
    return TextFormat(folder, language.kind(config) != "encoder", config.gguf_file, limit)


def build_model(config: BackboneConfig, head: HeadConfig, stream: TaskStream, seed: int) -> Model:
    """A frozen backbone with a fresh head for ``stream``, or one that writes answers.

    Its weights may still have to be filled in, see ``deferred.py``. ``seed`` draws the head, and by torch's own numbers
    what is drawn next.
    """
    check_backbone(config, head)
    build = image_model if is_vision(config.name) else text_model
    return build(config, head, stream, seed)


def image_model(config: BackboneConfig, head: HeadConfig, stream: TaskStream, seed: int) -> Model:
    from benchmarks.models import vision
    from benchmarks.models.classifier import ImageClassifier

    backbone, mean, std = vision.load(config)
    torch.manual_seed(seed)  # how many numbers were drawn so far depends on how the weights come
    wanted = targets(config, backbone, vision.TARGETS, (nn.Linear,))
    return ImageClassifier(backbone, (image_size(config), mean, std), wanted, head, stream.parts, seed)


def text_model(config: BackboneConfig, head: HeadConfig, stream: TaskStream, seed: int) -> Model:
    from benchmarks.models import language
    from benchmarks.models.classifier import TextClassifier
    from benchmarks.models.writer import Decoder, EncoderDecoder
    from benchmarks.texts.tokens import load_tokenizer

    backbone = language.load(config)
    torch.manual_seed(seed)
    wanted = targets(config, backbone, language.known_targets(config), language.LINEAR)
    kind = language.kind(config)
    if kind == "encoder":
        return TextClassifier(backbone, wanted, head, stream.parts, seed)
    writer = Decoder if kind == "decoder" else EncoderDecoder
    return writer(backbone, wanted, load_tokenizer(text_format(config)), stream.answer_length)


def targets(
    config: BackboneConfig, backbone: nn.Module, known: tuple[str, ...] | None, linear: tuple[type[nn.Module], ...]
) -> tuple[str, ...]:
    """The settings' own, else the ``known`` query and value projections; checked to be ``linear`` modules."""
    names = [name for name, module in backbone.named_modules() if isinstance(module, linear)]
    wanted = config.targets or known or ()
    absent = [w for w in wanted if not any(name == w or name.endswith(f".{w}") for name in names)]
    if wanted and not absent:
        return wanted
    endings = ", ".join(sorted({name.split(".")[-1] for name in names})) or "nothing, it has none"
    found = f"no linear module ends in {absent[0]!r}" if absent else "not known for this architecture"
    raise BenchmarkError(f"backbone.targets: {found}; the linear modules of {config.name} end in {endings}")
