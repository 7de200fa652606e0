"""The options of GORP's parameter groups, and what they may be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

CHOICES = {
    "rule": ("adam", "sgd"),
    "refresh": ("randomised", "svd"),
    "moments": ("rotate", "keep"),
    "protect": ("update", "gradient", "none"),
    "summary": ("mean", "first"),
    "selection": ("reach", "below"),
    "side": ("free", "rows"),
}


def check_options(options: Mapping[str, Any]) -> None:
    """ValueError, naming the option, where the options of a group are out of range."""
    for name, choices in CHOICES.items():
        if options[name] not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {options[name]!r}")
    rank, betas = options["rank"], options["betas"]
    wanted = {
        "rank": (rank is None or rank >= 1, "at least 1, or None not to compress"),
        "every": (options["every"] >= 1, "at least 1 step"),
        "energy": (0 < options["energy"] <= 1, "above 0 and at most 1"),
        "cap": (0 < options["cap"] <= 1, "above 0 and at most 1"),
        "lr": (0 <= options["lr"] < math.inf, "at least 0"),
        "scale": (0 <= options["scale"] < math.inf, "at least 0"),
        "eps": (0 <= options["eps"] < math.inf, "at least 0"),
        "betas": (len(betas) == 2 and all(0 <= beta < 1 for beta in betas), "two numbers from 0 to below 1"),
    }
    for name, (right, range_) in wanted.items():
        if not right:
            raise ValueError(f"{name} must be {range_}, got {options[name]}")
    if "weight_decay" in options:
        raise ValueError("weight_decay is not an option: decay would move what is protected; leave it out")
