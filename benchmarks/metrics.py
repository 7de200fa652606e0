"""Summary numbers of an accuracy matrix: those of continual learning, with their formulas.

``R[i][j]`` is the accuracy on task j after learning task i (both from 0, T tasks, values in 0 to 1), None where it was
not measured. A number that a stream cannot have (forgetting of a single task) is None. Names differ between papers;
the formulas here are what this project means by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Matrix = Sequence[Sequence[float | None]]


def final_average_accuracy(matrix: Matrix) -> float:
    """FAA, per-task mean: 1/T * sum over j of R[T-1][j]."""
    return seen_mean(matrix, len(matrix) - 1)


def final_pooled_accuracy(matrix: Matrix, sizes: Sequence[int]) -> float:
    """FAA over all test examples at once: sum over j of size_j * R[T-1][j], divided by the sum of the sizes."""
    return pooled(matrix, len(matrix) - 1, sizes)


def average_anytime_accuracy(matrix: Matrix) -> float:
    """AAA, per-task mean: 1/T * sum over i of the mean over j <= i of R[i][j].

    The mean is over those i after which all seen tasks were measured, as in the pooled one.
    """
    return mean([seen_mean(matrix, row) for row in whole_rows(matrix)])


def average_anytime_pooled_accuracy(matrix: Matrix, sizes: Sequence[int]) -> float:
    """AAA with each point pooled over the seen test examples, as several class-incremental papers have it."""
    return mean([pooled(matrix, row, sizes) for row in whole_rows(matrix)])


def backward_transfer(
    matrix: Matrix, sign: int = 1, divisor: Literal["n-1", "n"] = "n-1", clipped: bool = False
) -> float | None:
    """BWT: 1/(T-1) * sum over j < T-1 of R[T-1][j] - R[j][j] (Lopez-Paz and Ranzato 2017; negative = forgetting).

    Other readings: ``sign=-1`` makes forgetting positive (TreeLoRA's paper, section 2, which divides by n in its
    formula and by n-1 in its image tables), ``clipped`` counts no gain (its released code, with ``divisor="n"``). A
    stream of one task has 0 over n and nothing over n-1.
    """
    last = len(matrix) - 1
    if divisor == "n-1" and last < 1:
        return None
    gains = [value(matrix, last, j) - value(matrix, j, j) for j in range(last)]
    counted = [min(gain, 0.0) if clipped else gain for gain in gains]
    return sign * sum(counted) / (last if divisor == "n-1" else last + 1)


def forgetting(matrix: Matrix) -> float | None:
    """1/(T-1) * sum over j < T-1 of (max over j <= i < T-1 of R[i][j]) - R[T-1][j] (Chaudhry et al. 2018).

    The maximum is over what was measured, at least R[j][j].
    """
    last = len(matrix) - 1
    if last < 1:
        return None
    best = [
        max([value(matrix, j, j), *(r for i in range(j, last) if (r := matrix[i][j]) is not None)]) for j in range(last)
    ]
    return mean([best[j] - value(matrix, last, j) for j in range(last)])


def forward_transfer(matrix: Matrix, initial: Sequence[float]) -> float | None:
    """FWT: 1/(T-1) * sum over j > 0 of R[j-1][j] - initial[j], initial = accuracy before any training."""
    if len(matrix) < 2:
        return None
    return mean([value(matrix, j - 1, j) - initial[j] for j in range(1, len(matrix))])


def summary(matrix: Matrix, initial: Sequence[float], sizes: Sequence[int]) -> dict[str, float | None]:
    """All numbers of this module by name."""
    return {
        "final_average_accuracy": final_average_accuracy(matrix),
        "final_pooled_accuracy": final_pooled_accuracy(matrix, sizes),
        "average_anytime_accuracy": average_anytime_accuracy(matrix),
        "average_anytime_pooled_accuracy": average_anytime_pooled_accuracy(matrix, sizes),
        "backward_transfer": backward_transfer(matrix),
        "forgetting": forgetting(matrix),
        "forward_transfer": forward_transfer(matrix, initial),
    }


def value(matrix: Matrix, row: int, column: int) -> float:
    found = matrix[row][column]
    if found is None:
        raise ValueError(f"accuracy of task {column} after task {row} was not measured")
    return found


def whole_rows(matrix: Matrix) -> list[int]:
    """The tasks after which all those seen were measured."""
    return [row for row, values in enumerate(matrix) if None not in values[: row + 1]]


def seen_mean(matrix: Matrix, row: int) -> float:
    return mean([value(matrix, row, j) for j in range(row + 1)])


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def pooled(matrix: Matrix, row: int, sizes: Sequence[int]) -> float:
    """One row's accuracy over the test examples of the tasks seen by then."""
    right = sum(value(matrix, row, j) * sizes[j] for j in range(row + 1))
    return right / sum(sizes[: row + 1])
