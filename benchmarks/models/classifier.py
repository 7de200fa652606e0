"""Backbones whose features a head classifies: images through timm, texts through a transformers encoder."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import Parameter, functional

from benchmarks.dataset import Batch
from benchmarks.formats import PADDING
from benchmarks.models.heads import GrowingHead, HeadConfig
from benchmarks.models.model import Model, pooled, trimmed
from benchmarks.models.readouts import make_readout

if TYPE_CHECKING:
    from benchmarks.stream import Task

# A number that no label can be. By default torch leaves rows labelled -100 out of the loss, and a label of another task
# can become -100 once the task's first class is subtracted; with this one torch refuses it as out of range.
NEVER = -(2**62)


class Classifier(Model):
    """A backbone, a trained head with a part for each task, and where asked a closed-form head beside it.

    ``parts``: numbers of classes. The trained head always gives the loss; the closed-form one, fitted after each task
    on features of its training rows, gives the answers.
    """

    computing = (*Model.computing, "judge")

    def __init__(
        self, backbone: nn.Module, width: int, targets: tuple[str, ...], head: HeadConfig, parts: list[int], seed: int
    ) -> None:
        super().__init__(backbone, targets)
        self.head = GrowingHead(width, parts, head.kind == "cosine", head.start == "random")
        self.readout = make_readout(head, width, sum(parts), seed)

    @abstractmethod
    def features(self, inputs: Tensor) -> Tensor:
        """Pooled features [n, width]."""

    def forward(self, batch: Batch, task: Task) -> Tensor:
        """Cross-entropy over the task's classes alone, so that old rows of the head get no gradient."""
        classes = task.classes
        # All parts of the head compute, for DDP waits for a gradient of every parameter; those left out get zeros.
        logits = self.head(self.features(batch.inputs)).float()[:, classes.start : classes.stop]
        return functional.cross_entropy(logits, batch.labels - classes.start, ignore_index=NEVER, reduction="none")

    def encode(self, batch: Batch, tasks: Sequence[Task]) -> Tensor:
        return self.features(batch.inputs)

    def judge(self, encoded: Tensor, labels: Tensor, candidates: Sequence[Sequence[range]]) -> Tensor:
        logits = self.answers(encoded)
        found = torch.zeros(len(labels), len(candidates[0]), dtype=torch.float64, device=labels.device)
        # By ranges, of which a batch has few.
        for column, ranges in enumerate(zip(*candidates, strict=True)):
            for wanted in set(ranges):
                rows = torch.tensor([one == wanted for one in ranges], device=labels.device)
                answers = logits[rows, wanted.start : wanted.stop].argmax(1) + wanted.start
                found[rows, column] = (answers == labels[rows]).double()
        return found

    def logits(self, inputs: Tensor) -> Tensor:
        """Scores of all classes [n, classes] by the head that answers."""
        return self.answers(self.features(inputs))

    def answers(self, features: Tensor) -> Tensor:
        return self.head(features) if self.readout is None else self.readout.logits(features)

    def head_parameters(self, task: Task) -> list[Parameter]:
        return self.head.part_parameters(min(task.index, self.head.count - 1))

    @property
    def closed_form(self) -> bool:
        return self.readout is not None

    def collect(self, batch: Batch, valid: Tensor) -> None:
        assert self.readout is not None
        self.readout.collect(self.features(batch.inputs)[valid], batch.labels[valid])

    def finish(self, total: Callable[[Tensor], Tensor]) -> None:
        assert self.readout is not None
        self.readout.finish(total)

    def statistics(self) -> dict[str, Tensor]:
        return self.readout.state_dict() if self.readout else {}

    def load_statistics(self, state: dict[str, Tensor]) -> None:
        if self.readout:
            self.readout.load_state_dict(state)


class ImageClassifier(Classifier):
    """Reads uint8 images [n, 3, height, width] of any size; ``mean`` and ``std`` [3] are those of the backbone."""

    def __init__(
        self,
        backbone: nn.Module,
        pixels: tuple[int, Tensor, Tensor],
        targets: tuple[str, ...],
        head: HeadConfig,
        parts: list[int],
        seed: int,
    ) -> None:
        super().__init__(backbone, int(getattr(backbone, "num_features")), targets, head, parts, seed)  # noqa: B009
        self.size, mean, std = pixels
        self.mean: Tensor
        self.std: Tensor
        # Buffers move with the model; not persistent, as they follow from the backbone's name.
        self.register_buffer("mean", mean.view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", std.view(1, 3, 1, 1), persistent=False)

    def features(self, inputs: Tensor) -> Tensor:
        images = (inputs.float() / 255 - self.mean) / self.std
        if images.shape[-2:] != (self.size, self.size):
            images = functional.interpolate(images, size=(self.size, self.size), mode="bicubic", antialias=True)
        return self.backbone(images)


class TextClassifier(Classifier):
    """Reads tokens int32 [n, length], padded with -1; its features are the mean over the last hidden states."""

    def __init__(
        self, backbone: nn.Module, targets: tuple[str, ...], head: HeadConfig, parts: list[int], seed: int
    ) -> None:
        super().__init__(backbone, int(backbone.config.hidden_size), targets, head, parts, seed)  # type: ignore[union-attr, arg-type]

    def features(self, inputs: Tensor) -> Tensor:
        tokens = trimmed(inputs)  # rows of a stream are as long as its longest text
        mask = tokens != PADDING
        hidden = self.backbone(input_ids=tokens.clamp(min=0), attention_mask=mask.long()).last_hidden_state
        return pooled(hidden, mask)
