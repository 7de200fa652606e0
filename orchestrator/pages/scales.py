"""Where the values of a setting lie on an axis: numbers by size, or by logarithm; anything else in equal steps."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.ticker import MaxNLocator

FEW = 6  # so many different whole numbers, as ranks, stand in equal steps
WIDE = 30  # from this ratio of the largest to the smallest on, numbers are shown by logarithm


@dataclass(frozen=True)
class Scale:
    """An axis: ``place`` gives a value's place between ``low`` and ``high``; ``ticks``: place -> label."""

    low: float
    high: float
    ticks: dict[float, str]
    place: Callable[[Any], float]
    stepped: bool  # places are whole numbers, one for each different value

    def share(self, value: Any) -> float:
        """The place as a share of the axis, from 0 to 1."""
        return self.shared(self.place(value))

    def shared(self, place: float) -> float:
        return (place - self.low) / (self.high - self.low)


def scale_of(values: Sequence[Any]) -> Scale:
    """The axis for all ``values`` of one setting or metric."""
    numeric = all(is_number(value) for value in values)
    if numeric and (len(set(values)) > FEW or any(isinstance(value, float) for value in values)):
        return numbers(values)
    return steps(values)


def numbers(values: Sequence[float]) -> Scale:
    low, high = min(values), max(values)
    if low > 0 and high / low >= WIDE:
        ticks = {math.log10(value): f"{value:g}" for value in decades(low, high)}
        return Scale(math.log10(low), math.log10(high), ticks, math.log10, stepped=False)
    if low == high:
        return Scale(low - 0.5, high + 0.5, {low: f"{low:g}"}, float, stepped=False)
    found = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    inside = [tick for tick in map(float, found) if low <= tick <= high]
    return Scale(low, high, {tick: f"{tick:g}" for tick in inside}, float, stepped=False)


def decades(low: float, high: float) -> Iterable[float]:
    """Powers of ten between two positive numbers, and three times them where these may be one alone."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if high / low >= 100 else (1, 3)
    # From text, for 3 times 10**-4 is not 0.0003.
    found = [float(f"{factor}e{power}") for power in powers for factor in factors]
    return [value for value in found if low <= value <= high]


def steps(values: Sequence[Any]) -> Scale:
    """One place for each different value: numbers in their order, then the others by their text."""
    ordered = sorted(
        values, key=lambda value: (not is_number(value), value if is_number(value) else 0, setting_text(value))
    )
    labels = list(dict.fromkeys(map(setting_text, ordered)))
    places = {label: float(place) for place, label in enumerate(labels)}
    ticks = {place: label for label, place in places.items()}
    return Scale(-0.5, len(labels) - 0.5, ticks, lambda value: places[setting_text(value)], stepped=True)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def setting_text(value: Any, form: str = "{!r}") -> str:
    """A setting's value for people: words as they are, the rest as JSON."""
    if isinstance(value, float):
        return form.format(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
