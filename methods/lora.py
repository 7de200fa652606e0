"""Sequential LoRA: one low-rank adapter trained on each task in turn, with nothing against forgetting.

The floor that every other method has to beat (Hu et al. 2022 for the adapter).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from peft import LoraConfig, inject_adapter_in_model
from pydantic import Field
from torch import Tensor, nn

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

    def adapt(self, model: nn.Module, targets: Sequence[str], blocks: Sequence[str], tasks: int) -> None:
        """Put a LoRA pair on every module of the chosen blocks whose name ends in one of ``targets``."""
        adapter = LoraConfig(
            r=self.config.rank,
            lora_alpha=self.config.alpha,
            lora_dropout=self.config.dropout,
            target_modules=modules_to_adapt(model, targets, blocks, self.config.levels),
        )
        inject_adapter_in_model(adapter, model)

    def pairs(self) -> dict[str, tuple[Tensor, Tensor]]:
        with self.inference():
            wholes = self.levels.named_wholes(self.levels.parameters())
        scale = self.config.alpha / self.config.rank
        downs = [name for name in wholes if "lora_A." in name]
        ups = [name.replace("lora_A.", "lora_B.") for name in downs]
        return {d.partition(".lora_A.")[0]: (wholes[d], scale * wholes[u]) for d, u in zip(downs, ups, strict=True)}

    @classmethod
    def search_space(cls) -> dict[str, object]:
        return {"method.rank": [2, 4, 8, 16]}


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
