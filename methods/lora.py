"""Sequential LoRA: one low-rank adapter trained on each task in turn, with nothing against forgetting.

The floor that every other method has to beat (Hu et al. 2022 for the adapter).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from peft import LoraConfig, inject_adapter_in_model
from pydantic import Field
from torch import nn

from methods.base import Method, MethodConfig, register


class LoRAConfig(MethodConfig):
    """Settings of the adapter."""

    name: str = "lora"
    rank: int = Field(4, gt=0, description="rank of each adapter")
    alpha: int = Field(8, gt=0, description="the adapter's output is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of the adapter's inputs that training drops")
    levels: tuple[int, ...] | None = Field(None, description="transformer blocks that get an adapter; null: all")


@register("lora")
class LoRA(Method):
    """Sequential LoRA, the floor: no protection against forgetting."""

    Config: ClassVar[type[MethodConfig]] = LoRAConfig
    config: LoRAConfig

    def adapt(self, model: nn.Module, targets: Sequence[str], blocks: Sequence[str]) -> None:
        """Put a LoRA pair on every module of the chosen blocks whose name ends in one of ``targets``."""
        adapter = LoraConfig(
            r=self.config.rank,
            lora_alpha=self.config.alpha,
            lora_dropout=self.config.dropout,
            target_modules=self.modules(model, targets, blocks),
        )
        inject_adapter_in_model(adapter, model)

    def modules(self, model: nn.Module, targets: Sequence[str], blocks: Sequence[str]) -> list[str]:
        """Names of the modules to adapt."""
        found = [name for name, _ in model.named_modules() if f".{name}".endswith(tuple(f".{t}" for t in targets))]
        if self.config.levels is None:
            return found
        if not set(self.config.levels) <= set(range(len(blocks))) or not self.config.levels:
            last = len(blocks) - 1
            raise ValueError(f"method.levels={list(self.config.levels)}: name some of the blocks 0 to {last}")
        chosen = tuple(f"{blocks[level]}." for level in self.config.levels)
        inside = [name for name in found if name.startswith(chosen)]
        if not inside:
            raise ValueError(f"method.levels={list(self.config.levels)}: none of {list(targets)} is in these blocks")
        return inside

    @classmethod
    def search_space(cls) -> dict[str, object]:
        return {"method.rank": [2, 4, 8, 16]}
