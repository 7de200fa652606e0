"""Sequential LoRA: one low-rank adapter trained on each task in turn, with nothing against forgetting.

The floor that every other method has to beat (Hu et al. 2022 for the adapter). The layer is drawn and scaled as
peft's, and a test holds it to peft's outputs; importing peft takes longer than torch itself, in every worker of every
run, so that it is left to the export of adapters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from methods.base import Method, MethodConfig, register


class LoRAConfig(MethodConfig):
    """Settings of the adapter."""

    name: str = "lora"
    rank: int = Field(4, gt=0, description="rank of each adapter")
    alpha: int = Field(8, gt=0, description="the adapter's output is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of the adapter's inputs that training drops")
    levels: tuple[int, ...] | None = Field(None, description="transformer blocks that get an adapter; null: all")


class LoRALinear(nn.Module):
    """y = base(x) + scale (dropout(x) A^T) B^T with a frozen base (Hu et al. 2022, equation 3).

    ``lora_A.weight`` [rank, in] is Kaiming-uniform with a = sqrt(5) and ``lora_B.weight`` [out, rank] zero, as in the
    authors' code; both are float32. ``base`` is a linear layer, or transformers' Conv1D, which stores its weight
    transposed. ValueError for anything else.
    """

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float) -> None:
        super().__init__()
        inputs, outputs = sizes(base)
        self.base, self.scale, self.dropout = base.requires_grad_(False), scale, dropout
        self.lora_A = nn.Linear(inputs, rank, bias=False)
        self.lora_B = nn.Linear(rank, outputs, bias=False)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled() and self.merging_pays(x):
            update = torch.addmm(self.weight, self.lora_B.weight, self.lora_A.weight, alpha=self.scale)
            return functional.linear(x, update, self.base.bias)  # type: ignore[arg-type]
        y = self.base(x)
        dropped = functional.dropout(x.to(self.lora_A.weight.dtype), self.dropout, self.training)
        return y + (self.scale * self.lora_B(self.lora_A(dropped))).to(y.dtype)

    def merging_pays(self, x: Tensor) -> bool:
        """Whether one product with W + scale B A is cheaper than two, and as exact.

        W + B A is made anew in each pass: kept, it would take as much memory as W, and on each worker.
        """
        inputs, outputs = self.lora_A.in_features, self.lora_B.out_features
        many = x.numel() // inputs * (inputs + outputs) > 2 * inputs * outputs
        # In bf16 the sum would lose the digits by which a small update changes a weight.
        exact = self.weight.dtype == torch.float32 and not torch.is_autocast_enabled(x.device.type)
        drops = self.training and self.dropout > 0
        return many and exact and not drops and isinstance(self.base, nn.Linear)

    @property
    def weight(self) -> Tensor:
        """The base's: T5 asks its layers for the type of their weights."""
        return self.base.get_parameter("weight")


def sizes(base: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a linear layer; ValueError where ``base`` is none."""
    if isinstance(base, nn.Linear):
        return base.in_features, base.out_features
    if type(base).__name__ == "Conv1D":  # by name: transformers need not be imported for it
        inputs, outputs = base.get_parameter("weight").shape
        return inputs, outputs
    raise ValueError(f"a {type(base).__name__}; name linear layers")


@register("lora")
class LoRA(Method):
    """Sequential LoRA, the floor: no protection against forgetting."""

    Config: ClassVar[type[MethodConfig]] = LoRAConfig
    config: LoRAConfig

    def adapt(self, model: nn.Module, targets: Sequence[str], blocks: Sequence[str], tasks: int) -> None:
        """Put a LoRA pair on every module of the chosen blocks whose name ends in one of ``targets``."""
        scale = self.config.alpha / self.config.rank
        for name in modules_to_adapt(model, targets, blocks, self.config.levels):
            try:
                layer = LoRALinear(model.get_submodule(name), self.config.rank, scale, self.config.dropout)
            except ValueError as error:
                raise ValueError(f"backbone.targets: {name} is {error}") from None
            model.set_submodule(name, layer)

    def pairs(self) -> dict[str, tuple[Tensor, Tensor]]:
        with self.inference():
            wholes = self.levels.named_wholes(self.levels.parameters())
        scale = self.config.alpha / self.config.rank
        downs = [name for name in wholes if "lora_A." in name]
        ups = [name.replace("lora_A.", "lora_B.") for name in downs]
        return {d.partition(".lora_A.")[0]: (wholes[d], scale * wholes[u]) for d, u in zip(downs, ups, strict=True)}

    @classmethod
    def search_space(cls) -> dict[str, object]:
        return super().search_space() | {"method.rank": {"choice": [2, 4, 8, 16]}}


def modules_to_adapt(
    model: nn.Module, targets: Sequence[str], blocks: Sequence[str], levels: Sequence[int] | None
) -> list[str]:
    """Names of the modules that end in one of ``targets``, in all blocks or in those that ``levels`` numbers.

    ValueError names ``method.levels`` where no such block, or no such module in it, exists.
    """
    found = [name for name, _ in model.named_modules() if f".{name}".endswith(tuple(f".{t}" for t in targets))]
    if levels is None:
        return found
    if not set(levels) <= set(range(len(blocks))) or not levels:
        raise ValueError(f"method.levels={list(levels)}: name some of the blocks 0 to {len(blocks) - 1}")
    chosen = tuple(f"{blocks[level]}." for level in levels)
    inside = [name for name in found if name.startswith(chosen)]
    if not inside:
        raise ValueError(f"method.levels={list(levels)}: none of {list(targets)} is in these blocks")
    return inside
