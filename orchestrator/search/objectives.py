"""What a search compares trials by: numbers of a finished run that do not come from test splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import metrics

DIRECTIONS = {
    "validation_accuracy": "max",
    "anytime_validation_accuracy": "max",
    "seconds": "min",
    "stored_parameters": "min",
    "peak_memory_bytes": "min",
}


def objectives_of(result: dict[str, Any]) -> dict[str, float]:
    """Every objective of a run, from result.json's content."""
    matrix = result["validation_matrix"]
    return {
        "validation_accuracy": metrics.final_average_accuracy(matrix),
        "anytime_validation_accuracy": metrics.average_anytime_accuracy(matrix),
        "seconds": result["seconds"]["total"],
        "stored_parameters": result["stored_parameters"],
        "peak_memory_bytes": result["peak_memory_bytes"],
    }


def ranked(values: Mapping[str, Mapping[str, float]], objective: str) -> list[str]:
    """Trials from the best to the worst by ``objective``; of equal ones the first that was proposed."""
    sign = -1 if DIRECTIONS[objective] == "max" else 1
    return sorted(values, key=lambda trial: (sign * values[trial][objective], trial))


def front(values: Mapping[str, Mapping[str, float]], objectives: Sequence[str]) -> list[str]:
    """The trials that no other is at least as good as in every objective and better in one (Pareto front)."""

    def costs(trial: str) -> list[float]:
        return [-values[trial][name] if DIRECTIONS[name] == "max" else values[trial][name] for name in objectives]

    def beaten(trial: str) -> bool:
        own = costs(trial)
        others = [costs(other) for other in values if other != trial]
        return any(all(a <= b for a, b in zip(one, own, strict=True)) and one != own for one in others)

    return [trial for trial in values if not beaten(trial)]
