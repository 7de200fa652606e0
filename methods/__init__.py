"""Continual-learning methods; importing this package registers all of them."""

from methods import floors, gorp, lora, sdlora, treelora  # noqa: F401
from methods.base import Method, MethodConfig, method_class, method_names, register

__all__ = ["Method", "MethodConfig", "method_class", "method_names", "register"]
