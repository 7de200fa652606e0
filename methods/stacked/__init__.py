"""One low-rank pair a task, and those of earlier tasks frozen beside it: what SD-LoRA and GORP share."""

from methods.stacked.layer import StackedLinear
from methods.stacked.method import Pairs, StackedMethod

__all__ = ["Pairs", "StackedLinear", "StackedMethod"]
