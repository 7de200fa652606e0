"""A trained model in a folder of its own, without the run, its data and its method: images or texts in, names out.

<model>/model.json            # what it is: backbone, head, tasks, class names
<model>/backbone.safetensors  # of an image model, the updates folded in
<model>/backbone/             # of a language model, as transformers keeps it, with its tokenizer
<model>/head.safetensors      # the trained head and the sums of a closed-form one; not of a model that writes
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.models.classifier import Classifier, ImageClassifier, TextClassifier
from benchmarks.models.config import BackboneConfig
from benchmarks.models.deferred import filled
from benchmarks.models.heads import HeadConfig

ABOUT, WEIGHTS, BACKBONE, HEAD = "model.json", "backbone.safetensors", "backbone", "head.safetensors"
ROWS = 64  # in a batch


@dataclass(frozen=True)
class LearnedTask:
    """A task that the model has learned: its name, its labels [start, stop) and what they are called."""

    name: str
    classes: range
    options: list[str]


class Predictor:
    """Names the class of each row: among all that were learned, or among those of one task where it is named."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.folder, self.about = folder, about
        self.names: list[str] = about["class_names"]
        self.tasks = [LearnedTask(t["name"], range(*t["classes"]), t["options"]) for t in about["tasks"]]

    def predict(self, rows: Any, task: str = "") -> list[str]:
        """``rows``: images uint8 [n, height, width, 3] or texts; ValueError for other rows, or an unknown task."""
        chosen = self.task(task) if task else None
        with torch.inference_mode():
            return [name for part in chunks(rows) for name in self.answers(part, chosen)]

    def task(self, name: str) -> LearnedTask:
        for task in self.tasks:
            if task.name == name:
                return task
        raise ValueError(f"task={name!r}: choose one of {', '.join(task.name for task in self.tasks)}")

    def answers(self, rows: Any, task: LearnedTask | None) -> list[str]:
        raise NotImplementedError

    def best(self, logits: Tensor, task: LearnedTask | None) -> list[str]:
        """The likeliest of the labels that compete; ``logits`` [n, classes]."""
        labels = task.classes if task else range(max(task.classes.stop for task in self.tasks))
        return [self.names[labels.start + i] for i in logits[:, labels.start : labels.stop].argmax(1).tolist()]

    def with_head(self, model: Classifier) -> Classifier:
        """``model`` with the trained head's tensors and a closed-form head's sums."""
        tensors = load_file(self.folder / HEAD)
        sums = {name.removeprefix("statistics."): t for name, t in tensors.items() if name.startswith("statistics.")}
        model.load_statistics(sums)
        model.head.load_state_dict({name: t for name, t in tensors.items() if name.startswith("parts.")})
        return model.eval()

    @property
    def head(self) -> tuple[HeadConfig, list[int], int]:
        """What a classifier is built with: its head, the classes of each part, and the seed."""
        return HeadConfig.model_validate(self.about["head"]), self.about["parts"], self.about["seed"]


class ImagePredictor(Predictor):
    """Classifies images as the run did: those of another size than the model's are cut to it where the run cut them."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        from benchmarks.models import vision
        from benchmarks.models.backbones import image_size

        super().__init__(folder, about)
        config = BackboneConfig.model_validate(about["backbone"] | {"pretrained": folder / WEIGHTS})
        backbone, mean, std = vision.load(config)
        backbone = filled(backbone)
        self.size = image_size(config)
        self.model = self.with_head(ImageClassifier(backbone, (self.size, mean, std), (), *self.head))

    def answers(self, rows: Any, task: LearnedTask | None) -> list[str]:
        pixels = numpy.asarray(rows)
        if pixels.dtype != numpy.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
            raise ValueError(f"images are {pixels.dtype} {list(pixels.shape)}, not uint8 [n, height, width, 3]")
        if self.about["cut"] and pixels.shape[1:3] != (self.size, self.size):
            pixels = numpy.stack([self.cut(image) for image in pixels])
        return self.best(self.model.logits(torch.tensor(pixels).permute(0, 3, 1, 2)), task)

    def cut(self, image: Any) -> Any:
        """As the run prepared its files."""
        size = (self.size, self.size)
        return numpy.asarray(ImageOps.fit(Image.fromarray(image), size, Image.Resampling.BICUBIC))


class TextPredictor(Predictor):
    """What reads texts: an encoder with a head, or a model that writes its answers."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        from benchmarks.models import language
        from benchmarks.models.backbones import text_format
        from benchmarks.texts.tokens import load_tokenizer

        super().__init__(folder, about)
        self.text = about["text"]
        config = BackboneConfig(name=str(folder / BACKBONE))
        self.tokenizer = load_tokenizer(text_format(config))
        self.backbone = filled(language.load(config))

    def tokens(self, texts: Sequence[str], keep_end: bool) -> Tensor:
        from benchmarks.texts.tokens import tokenise_texts

        return tokenise_texts(self.tokenizer, texts, self.text["length"], keep_end)

    def named(self, text: str, task: LearnedTask | None) -> str:
        """The text with the task's name before it, where the run had that too."""
        if not self.text["add_dataset_name"]:
            return text
        if task is None:
            raise ValueError("the model has read the task's name before each text: name it with task=…")
        return f"Dataset: {task.name}\n{text}"


class EncoderPredictor(TextPredictor):
    """Classifies texts by a head on an encoder's features."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        super().__init__(folder, about)
        self.model = self.with_head(TextClassifier(self.backbone, (), *self.head))

    def answers(self, rows: Any, task: LearnedTask | None) -> list[str]:
        texts = [self.named(text, task) for text in rows]
        return self.best(self.model.logits(self.tokens(texts, keep_end=False)), task)


class WriterPredictor(TextPredictor):
    """Chooses the likeliest label word of the task, of all tasks where none is named; writes where there are none."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        from benchmarks.models.writer import Decoder, EncoderDecoder

        super().__init__(folder, about)
        kind = Decoder if about["kind"] == "decoder" else EncoderDecoder
        self.model = kind(self.backbone, (), self.tokenizer, self.text["answer_length"]).eval()

    def answers(self, rows: Any, task: LearnedTask | None) -> list[str]:
        from benchmarks.models.model import trimmed
        from benchmarks.texts.prompts import as_prompt, fitted
        from benchmarks.texts.tokens import tokenise_answers

        options = list(dict.fromkeys(word for one in ([task] if task else self.tasks) for word in one.options))
        if not options:
            return self.model.written(trimmed(self.tokens([self.named(text, task) for text in rows], keep_end=True)))

        def make(text: str) -> str:
            return self.named(as_prompt(self.text["template"], text, options), task)

        prompts, _ = fitted(self.tokenizer, rows, [make] * len(rows), self.text["length"])
        answers = trimmed(tokenise_answers(self.tokenizer, options, self.text["answer_length"]))
        chosen = self.model.likeliest(trimmed(self.tokens(prompts, keep_end=True)), [answers] * len(rows))
        return [options[index] for index in chosen.tolist()]


KINDS: dict[str, type[Predictor]] = {
    "image": ImagePredictor,
    "encoder": EncoderPredictor,
    "decoder": WriterPredictor,
    "encoder_decoder": WriterPredictor,
}


def load_predictor(folder: Path) -> Predictor:
    """The model in ``folder``."""
    about = json.loads((folder / ABOUT).read_text())
    return KINDS[about["kind"]](folder, about)


def chunks(rows: Any) -> Iterator[Any]:
    for start in range(0, len(rows), ROWS):
        yield rows[start : start + ROWS]
