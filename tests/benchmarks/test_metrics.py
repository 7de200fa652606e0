"""The summary numbers, against values worked out by hand."""

from __future__ import annotations

import pytest

from benchmarks import metrics

MATRIX = [
    [0.8, 0.1, 0.3],
    [0.9, 0.6, 0.2],  # the first task's best is here, neither where it was learned nor at the end
    [0.5, 0.4, 0.7],
]
INITIAL = [0.05, 0.2, 0.1]
SIZES = [10, 30, 60]


def test_a_stream_of_three_tasks_by_hand() -> None:
    numbers = metrics.summary(MATRIX, INITIAL, SIZES)
    assert numbers == {
        # (0.5 + 0.4 + 0.7) / 3
        "final_average_accuracy": pytest.approx(1.6 / 3),
        # 5 + 12 + 42 right ones of 100
        "final_pooled_accuracy": pytest.approx(0.59),
        # rows up to the diagonal: 0.8, (0.9 + 0.6) / 2, 1.6 / 3
        "average_anytime_accuracy": pytest.approx((0.8 + 0.75 + 1.6 / 3) / 3),
        # 8 of 10, 9 + 18 of 40, 59 of 100
        "average_anytime_pooled_accuracy": pytest.approx((0.8 + 0.675 + 0.59) / 3),
        # end minus diagonal: 0.5 - 0.8 and 0.4 - 0.6
        "backward_transfer": pytest.approx((-0.3 - 0.2) / 2),
        # best before the end minus the end: 0.9 - 0.5 and 0.6 - 0.4
        "forgetting": pytest.approx((0.4 + 0.2) / 2),
        # above the diagonal minus before any training: 0.1 - 0.2 and 0.2 - 0.1
        "forward_transfer": pytest.approx((-0.1 + 0.1) / 2, abs=1e-12),
    }


def test_backward_transfer_is_negative_where_tasks_are_forgotten_and_positive_where_they_gain() -> None:
    assert metrics.backward_transfer([[0.9, 0.0], [0.4, 0.8]]) == pytest.approx(-0.5)
    assert metrics.backward_transfer([[0.4, 0.0], [0.9, 0.8]]) == pytest.approx(0.5)


def test_the_readings_of_backward_transfer_by_hand() -> None:
    """Diagonal 0.8, 0.6, 0.7; end 0.5, 0.7, 0.7: the first task loses 0.3, the second gains 0.1."""
    matrix = [[0.8, 0.1, 0.3], [0.9, 0.6, 0.2], [0.5, 0.7, 0.7]]
    assert metrics.backward_transfer(matrix) == pytest.approx(-0.2 / 2)
    assert metrics.backward_transfer(matrix, sign=-1) == pytest.approx(0.2 / 2)
    assert metrics.backward_transfer(matrix, sign=-1, divisor="n") == pytest.approx(0.2 / 3)
    assert metrics.backward_transfer(matrix, divisor="n", clipped=True) == pytest.approx(-0.3 / 3)
    assert metrics.backward_transfer([[0.75]], divisor="n") == 0
    assert metrics.backward_transfer([[0.75]], divisor="n-1") is None


def test_forgetting_looks_at_the_best_before_the_last_row_only() -> None:
    assert metrics.forgetting([[0.4, 0.0], [0.9, 0.8]]) == pytest.approx(-0.5), "a gain is negative forgetting"


def test_forward_transfer_counts_from_before_any_training() -> None:
    assert metrics.forward_transfer(MATRIX, [0.0, 0.0, 0.0]) == pytest.approx((0.1 + 0.2) / 2)


def test_equal_sizes_make_pooled_and_mean_the_same() -> None:
    numbers = metrics.summary(MATRIX, INITIAL, [7, 7, 7])
    assert numbers["final_pooled_accuracy"] == pytest.approx(numbers["final_average_accuracy"])
    assert numbers["average_anytime_pooled_accuracy"] == pytest.approx(numbers["average_anytime_accuracy"])


def test_a_single_task_has_no_transfer_and_no_forgetting() -> None:
    assert metrics.summary([[0.75]], [0.1], [8]) == {
        "final_average_accuracy": 0.75,
        "final_pooled_accuracy": 0.75,
        "average_anytime_accuracy": 0.75,
        "average_anytime_pooled_accuracy": 0.75,
        "backward_transfer": None,
        "forgetting": None,
        "forward_transfer": None,
    }


@pytest.mark.parametrize(
    ("row", "column", "needed_by"),
    [
        (2, 0, {"final_average", "final_pooled", "backward", "forgetting"}),
        (2, 2, {"final_average", "final_pooled"}),
        (1, 0, set()),
        (1, 1, {"backward", "forgetting"}),
        (0, 0, {"backward", "forgetting"}),
        (0, 1, {"forward"}),
        (0, 2, set()),
    ],
)
def test_a_missing_value_raises_wherever_it_is_needed(row: int, column: int, needed_by: set[str]) -> None:
    matrix: list[list[float | None]] = [list(values) for values in MATRIX]
    matrix[row][column] = None
    numbers = {
        "final_average": lambda: metrics.final_average_accuracy(matrix),
        "final_pooled": lambda: metrics.final_pooled_accuracy(matrix, SIZES),
        "anytime": lambda: metrics.average_anytime_accuracy(matrix),
        "anytime_pooled": lambda: metrics.average_anytime_pooled_accuracy(matrix, SIZES),
        "backward": lambda: metrics.backward_transfer(matrix),
        "forgetting": lambda: metrics.forgetting(matrix),
        "forward": lambda: metrics.forward_transfer(matrix, INITIAL),
    }
    for name, number in numbers.items():
        if name in needed_by:
            with pytest.raises(ValueError, match=f"task {column} after task {row} was not measured"):
                number()
        else:
            assert number() is not None


def test_numbers_along_the_stream_are_over_what_was_measured() -> None:
    matrix: list[list[float | None]] = [list(values) for values in MATRIX]
    matrix[1][0] = None
    left = [MATRIX[0], MATRIX[2]]
    assert metrics.average_anytime_accuracy(matrix) == pytest.approx((left[0][0] + sum(left[1]) / 3) / 2)
    pooled = [left[0][0], sum(size * value for size, value in zip(SIZES, left[1], strict=True)) / sum(SIZES)]
    assert metrics.average_anytime_pooled_accuracy(matrix, SIZES) == pytest.approx(sum(pooled) / 2)
    assert metrics.forgetting(matrix) == pytest.approx((MATRIX[0][0] + MATRIX[1][1] - sum(MATRIX[2][:2])) / 2)
