"""Which backbone a run adapts: what it reads, and the model that is built around it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from transformers.pytorch_utils import Conv1D

from benchmarks.dataset import BenchmarkError
from benchmarks.formats import Format, ImageFormat, TextFormat
from benchmarks.models import language, vision
from benchmarks.models.classifier import ImageClassifier, TextClassifier
from benchmarks.models.config import BackboneConfig
from benchmarks.models.heads import HeadConfig
from benchmarks.models.model import Model
from benchmarks.models.weights import named_file
from benchmarks.models.writer import Decoder, EncoderDecoder
from benchmarks.texts.tokens import load_tokenizer

if TYPE_CHECKING:
    from benchmarks.stream import TaskStream


def check_backbone(config: BackboneConfig, head: HeadConfig) -> None:
    """BenchmarkError for names and files that do not exist, and heads that do not fit; nothing is built."""
    if not vision.is_vision(config.name):
        language.architecture(config.name, config.gguf_file)
        if language.kind(config) != "encoder" and head.kind != "linear":
            raise BenchmarkError(f"head.kind={head.kind}: {config.name} writes its answers without a head; say linear")
    named_file(config)


def input_format(config: BackboneConfig) -> Format:
    """What the backbone reads."""
    if vision.is_vision(config.name):
        return ImageFormat(config.image_size or vision.own_image_size(config.name))
    return text_format(config)


def text_format(config: BackboneConfig) -> TextFormat:
    folder, limit = str(language.located(config.name)), language.position_limit(config)
    return TextFormat(folder, language.kind(config) != "encoder", config.gguf_file, limit)


def build_model(config: BackboneConfig, head: HeadConfig, stream: TaskStream, seed: int) -> Model:
    """A frozen backbone with a fresh head for ``stream``, or one that writes answers."""
    check_backbone(config, head)
    if vision.is_vision(config.name):
        backbone, mean, std = vision.load(config)
        size = config.image_size or vision.own_image_size(config.name)
        return ImageClassifier(backbone, (size, mean, std), targets(config, backbone), head, stream.parts, seed)
    backbone = language.load(config)
    kind = language.kind(config)
    if kind == "encoder":
        return TextClassifier(backbone, targets(config, backbone), head, stream.parts, seed)
    writer = Decoder if kind == "decoder" else EncoderDecoder
    tokenizer = load_tokenizer(text_format(config))
    return writer(backbone, targets(config, backbone), tokenizer, stream.answer_length)


def targets(config: BackboneConfig, backbone: nn.Module) -> tuple[str, ...]:
    """The settings' own, else where the architecture's query and value projections are; checked to be there."""
    names = [name for name, module in backbone.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    known = vision.TARGETS if vision.is_vision(config.name) else language.known_targets(config)
    wanted = config.targets or known or ()
    absent = [w for w in wanted if not any(name == w or name.endswith(f".{w}") for name in names)]
    if wanted and not absent:
        return wanted
    endings = ", ".join(sorted({name.split(".")[-1] for name in names})) or "nothing, it has none"
    found = f"no linear module ends in {absent[0]!r}" if absent else "not known for this architecture"
    raise BenchmarkError(f"backbone.targets: {found}; the linear modules of {config.name} end in {endings}")
