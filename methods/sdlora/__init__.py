"""SD-LoRA: directions that are frozen, magnitudes that go on learning, and its two variants that store less."""

from methods.sdlora.config import SDLoRAConfig
from methods.sdlora.method import SDLoRA

__all__ = ["SDLoRA", "SDLoRAConfig"]
