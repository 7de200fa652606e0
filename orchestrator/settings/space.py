"""What a sweep searches over: the entries of ``sweep.space``, checked before anything starts."""

from __future__ import annotations

import math
from typing import Any

from methods import method_class
from orchestrator.settings.compose import with_settings
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError


def space_of(experiment: Experiment) -> dict[str, Any]:
    """``sweep.space``, else the method's own."""
    space = experiment.sweep.space or method_class(experiment.method.name).search_space()
    if not space:
        raise UserError("sweep.space: nothing to search over; say for example sweep.space.method.rank=[4,8]")
    return space


def corners_of(experiment: Experiment, space: dict[str, Any]) -> list[Experiment]:
    """The experiment at every end of every entry; UserError names an entry or a value that does not fit."""
    return [with_settings(experiment, {key: end}) for key, value in space.items() for end in corners(key, value)]


def corners(key: str, value: Any) -> list[Any]:
    if isinstance(value, list) and value:
        return value
    if isinstance(value, dict) and len(value) == 1:
        (kind, bounds), *_ = value.items()
        if kind == "choice" and isinstance(bounds, list) and bounds:
            return bounds
        if kind in ("uniform", "loguniform") and ordered(bounds, positive=kind == "loguniform"):
            return bounds
    raise UserError(
        f"sweep.space.{key}={value}: write [a, b], {{choice: [a, b]}}, {{uniform: [low, high]}} or loguniform"
    )


def ordered(bounds: Any, positive: bool) -> bool:
    numbers = isinstance(bounds, list) and len(bounds) == 2 and all(isinstance(b, int | float) for b in bounds)
    return numbers and bounds[0] < bounds[1] and (bounds[0] > 0 or not positive)


def samples(experiment: Experiment, space: dict[str, Any]) -> int:
    """Tune's number of samples: with a grid it counts repetitions of the whole grid."""
    trials = experiment.sweep.trials
    # A searcher that learns draws from lists, so that there is no grid whose points set the number.
    if experiment.sweep.searcher != "random":
        return trials or 8
    grid = math.prod(len(value) for value in space.values() if isinstance(value, list))
    if trials and trials % grid:
        raise UserError(f"sweep.trials={trials}: the grid has {grid} points; choose a multiple of it")
    return trials // grid if trials else 1
