"""Two baselines that a method has to beat: never adapt, and adapt on the first task only.

With a closed-form head, adapting on the first task alone is hard to beat: the features of later tasks are then free of
drift, and so are the statistics of old classes.
"""

from __future__ import annotations

from typing import ClassVar

from methods.base import MethodConfig, register
from methods.lora import LoRA, LoRAConfig


class FrozenConfig(LoRAConfig):
    """Settings of the adapter, which stays as it starts."""

    name: str = "frozen"


@register("frozen")
class Frozen(LoRA):
    """The backbone as it is: only the head learns."""

    Config: ClassVar[type[MethodConfig]] = FrozenConfig

    def adapts(self, task: int) -> bool:
        return False

    @classmethod
    def search_space(cls) -> dict[str, object]:
        return {"train.head_learning_rate": [1e-3, 5e-3]}


class FirstTaskConfig(LoRAConfig):
    """Settings of the adapter."""

    name: str = "first_task"


@register("first_task")
class FirstTask(LoRA):
    """LoRA trained on the first task alone and frozen from then on."""

    Config: ClassVar[type[MethodConfig]] = FirstTaskConfig

    def adapts(self, task: int) -> bool:
        return task == 0
