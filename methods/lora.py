"""Sequential LoRA: one low-rank adapter trained on each task in turn, with nothing against forgetting.

The floor that every other method has to beat (Hu et al. 2022 for the adapter).
"""

from __future__ import annotations

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


@register("lora")
class LoRA(Method):
    """Sequential LoRA, the floor: no protection against forgetting."""

    Config: ClassVar[type[MethodConfig]] = LoRAConfig
    config: LoRAConfig

    def adapt(self, model: nn.Module, targets: tuple[str, ...]) -> None:
        """Put a LoRA pair on every module whose name ends in one of ``targets``."""
        adapter = LoraConfig(
            r=self.config.rank,
            lora_alpha=self.config.alpha,
            lora_dropout=self.config.dropout,
            target_modules=list(targets),
        )
        try:
            inject_adapter_in_model(adapter, model)
        except ValueError:
            kinds = sorted({n.split(".")[-1] for n, m in model.named_modules() if isinstance(m, nn.Linear)})
            raise ValueError(
                f"backbone.targets={list(targets)}: no module ends in one of these; linear modules end in {kinds}"
            ) from None

    @classmethod
    def search_space(cls) -> dict[str, object]:
        return {"method.rank": [2, 4, 8, 16]}
