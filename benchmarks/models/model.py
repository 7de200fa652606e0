"""What the learner trains: a frozen backbone with adapters, and what turns its outputs into losses and scores."""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from benchmarks.dataset import Batch, BenchmarkError
from benchmarks.formats import PADDING

if TYPE_CHECKING:
    from benchmarks.stream import Task


class Model(nn.Module, ABC):
    """Both kinds of model, as the learner sees them. Parameters below ``head.`` are the head, others are adapters."""

    backbone: Any

    # Methods beside ``forward`` that compute with parameters, which sharding has to gather first.
    computing: ClassVar[tuple[str, ...]] = ("encode", "collect")

    def __init__(self, backbone: nn.Module, targets: tuple[str, ...]) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.targets = targets
        self.block_names = block_names(self)

    def train(self, mode: bool = True) -> Self:
        """Training mode, which draws dropout, but moves nothing of the frozen backbone."""
        super().train(mode)
        for module in self.backbone.modules():
            # In training mode batch norm moves its running statistics, with a rate of its own and without a gradient.
            if next(module.buffers(recurse=False), None) is not None:
                module.training = False
        return self

    @abstractmethod
    def forward(self, batch: Batch, task: Task) -> Tensor:
        """Training loss of each row [n], over what ``task`` may answer."""

    @abstractmethod
    def encode(self, batch: Batch, tasks: Sequence[Task]) -> Tensor:
        """What ``judge`` needs of each row [n, width], as backbone and adapters alone make it; ``tasks`` is one a row.

        All of them have options, or none has.
        """

    @abstractmethod
    def judge(self, encoded: Tensor, labels: Tensor, candidates: Sequence[Sequence[range]]) -> Tensor:
        """Score of each row in 0 to 1, [n, columns]: a column for each range of labels that may compete in the row.

        A model that writes answers knows its task's options from the prompt and gives a single column.
        """

    def scores(self, batch: Batch, task: Task, candidates: Sequence[range]) -> Tensor:
        """Both at once, for rows of one task."""
        count = len(batch.labels)
        return self.judge(self.encode(batch, [task] * count), batch.labels, [candidates] * count)

    def most(self, count: int) -> int:
        """The largest ``count`` of all workers that hold shards of this model and have to compute together."""
        return count

    def head_parameters(self, task: Task) -> list[Parameter]:
        """What the optimiser may move of the head in ``task``."""
        return []

    @property
    def closed_form(self) -> bool:
        """Whether statistics of the training rows, not gradient steps, make the classifier."""
        return False

    def collect(self, batch: Batch, valid: Tensor) -> None:
        """Take the rows of ``batch`` that are ``valid`` [n] into the statistics of a closed-form head."""

    def finish(self, total: Callable[[Tensor], Tensor]) -> None:
        """Close the statistics of a task; ``total`` adds a tensor over all workers."""

    def statistics(self) -> dict[str, Tensor]:
        """What ``collect`` has gathered, for the checkpoint."""
        return {}

    def load_statistics(self, state: dict[str, Tensor]) -> None:
        """The inverse of ``statistics``."""

    def store_frozen(self, dtype: torch.dtype) -> None:
        """Keep frozen matrices in ``dtype``, also those that have no memory yet.

        Vectors stay as they are: they are few, and a norm computes with them in float32.
        """
        for parameter in self.backbone.parameters():
            if not parameter.requires_grad and parameter.dim() > 1 and parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)

    def adapters(self) -> list[tuple[str, Parameter]]:
        """Everything trainable but the head."""
        return [(n, p) for n, p in self.named_parameters() if p.requires_grad and not n.startswith("head.")]

    def blocks(self) -> list[nn.Module]:
        """The transformer blocks: the units that sharding gathers and that levels stand for."""
        return [self.get_submodule(name) for name in self.block_names]

    def level_of(self, parameter: str) -> int:
        """The level of a parameter: the number of its transformer block, 0 outside of them."""
        owners = [i for i, block in enumerate(self.block_names) if parameter.startswith(f"{block}.")]
        return owners[0] if owners else 0

    def save_memory(self) -> None:
        """Recompute activations of the blocks in the backward pass (gradient checkpointing)."""
        enable = "activation_checkpointing_enable"  # of transformers
        if not hasattr(self.backbone, enable):
            enable = "set_grad_checkpointing"  # of timm
        # timm and transformers each raise errors of their own where an architecture cannot.
        try:
            getattr(self.backbone, enable)()
        except (AssertionError, AttributeError, ValueError):
            kind = type(self.backbone).__name__
            raise BenchmarkError(
                f"train.gradient_checkpointing=true: {kind} cannot recompute its activations; say false"
            ) from None

    def compile_blocks(self) -> None:
        """Compile the blocks when they are first called; alike ones share what was compiled.

        BenchmarkError where there is no compiler.
        """
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None:
            raise BenchmarkError(
                f"train.compile=true: there is no C++ compiler {compiler!r} here; install it or say false"
            )
        for block in self.blocks():
            block.compile()


def block_names(model: nn.Module) -> list[str]:
    """Names of the repeated blocks, in order: members of the outermost lists of several modules of one class.

    That is ``blocks`` in timm's ViT, ``encoder.layer`` in BERT, ``model.layers`` in Llama, and ``encoder.block`` and
    ``decoder.block`` in T5.
    """
    found: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{block}.") or name == block for block in found)
        if not inside and isinstance(module, nn.ModuleList | nn.Sequential) and is_stack(module):
            found += [f"{name}.{index}" for index in range(len(module))]
    return found


def is_stack(modules: nn.ModuleList | nn.Sequential) -> bool:
    kinds = {type(module) for module in modules}
    return len(modules) > 1 and len(kinds) == 1 and any(True for _ in modules[0].children())


def trimmed(tokens: Tensor) -> Tensor:
    """Without the columns that are padding in every row; at least one column stays."""
    used = int((tokens != PADDING).sum(1).max()) if len(tokens) else 0
    return tokens[:, : max(1, used)].long()


def pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens that ``mask`` [n, length] counts: [n, length, width] to [n, width]."""
    weight = mask.unsqueeze(2).to(hidden.dtype)
    return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)
