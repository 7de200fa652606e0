"""What stands for a task in the tree: a running mean over its steps (Qian et al. 2025, section 3.1).

``gradient`` is the mean gradient of the adapter. ``displacement`` is the mean way since the start of the task, about
minus the learning rate times the sum of gradients. ``a_param`` is the mean of the values, as in the released code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from methods.levels import Levels
from methods.treelora.config import SignatureConfig


class Signature:
    """The running ``mean`` [levels, width] of ``count`` steps, local values; what the factors leave out is zero."""

    def __init__(self, config: SignatureConfig, levels: Levels) -> None:
        self.config, self.levels = config, levels
        self.now = levels.buffer()  # of the carrier, which every step needs anew
        self.mask = None if config.factors == "AB" else levels.named(f"lora_{config.factors}.")

    def begin(self, start: Tensor) -> None:
        """A task starts from the adapter ``start``."""
        self.start = start
        self.forget()

    def forget(self) -> None:
        self.count, self.mean = 0, torch.zeros_like(self.start)

    def counted(self, matrix: Tensor) -> Tensor:
        """Only the factors that count."""
        return matrix if self.mask is None else matrix * self.mask

    def carrier(self) -> Tensor:
        """What the regulariser compares, until the next call: the adapter's way since the start, or its values."""
        now = self.levels.parameters(self.now)
        return self.counted(now if self.config.kind == "a_param" else now.sub_(self.start))

    def take(self, gradients: Tensor) -> None:
        """One more step; the mean over all steps so far, whatever number was planned."""
        self.count += 1
        seen = self.counted(gradients) if self.config.kind == "gradient" else self.carrier()
        self.mean.lerp_(seen, 1 / self.count)

    def target(self) -> Tensor:
        """What the regulariser pulls later tasks towards: the mean carrier, or beside mean gradients its last value."""
        # A copy, since the next call of ``carrier`` writes into the same memory.
        return self.carrier().clone() if self.config.kind == "gradient" else self.mean

    def state_dict(self) -> dict[str, Tensor]:
        return {"start": self.start, "mean": self.mean}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.start, self.mean = state["start"], state["mean"]
