"""GORP: compressed and protected gradients for whole weights, protected LoRA pairs beside them.

``GORP`` is the optimiser alone, which needs nothing else of this project; its docstring has an example.
"""

from methods.gorp.config import GORPConfig
from methods.gorp.method import GradientProjection
from methods.gorp.optimizer import GORP

__all__ = ["GORP", "GORPConfig", "GradientProjection"]
