"""Distances of directions are metrics in 0 to 1 that do not depend on scale; the budget finds the closest pair."""

from __future__ import annotations

import math

import numpy
import pytest
from numpy.typing import NDArray

from methods.treelora.tree.budget import closest
from methods.treelora.tree.metric import Metric, chunks

METRICS = [Metric("l2"), Metric("l1"), Metric("cos"), Metric("l2", cauchy=4), Metric("cos", cauchy=4)]
every_metric = pytest.mark.parametrize("metric", METRICS, ids=str)
TOLERANCE = 1e-6


def sketches(count: int) -> NDArray:
    """Random sketches, some of them parallel, opposite, nearly parallel or zero."""
    rows = numpy.random.default_rng(0).normal(size=(count, 3, 12))
    rows[1], rows[2] = 3 * rows[0], -rows[0]
    rows[3] = rows[0] + 1e-4 * rows[3]
    rows[4], rows[5, 1] = 0, 0
    return rows


@pytest.mark.parametrize(
    ("left", "right", "l2", "l1", "cos"),
    [
        ([1, 0], [3, 0], 0, 0, 0),
        ([1, 0], [-2, 0], 1, 1, 1),
        ([1, 0], [0, 5], math.sqrt(2) / 2, 1, 0.5),
        ([1, 0], [2, 2], math.sin(math.pi / 8), 0.5, 0.25),
        ([1, 0], [0, 0], 0.5, 0.5, 0.5),
        ([0, 0], [0, 0], 0, 0, 0),
    ],
)
def test_distances_of_known_directions(left: list[int], right: list[int], l2: float, l1: float, cos: float) -> None:
    for metric, expected in zip(METRICS[:3], (l2, l1, cos), strict=True):
        one, other = (metric.directions(numpy.array([row], float)) for row in (left, right))
        assert metric.distance(one, other) == pytest.approx(expected, abs=1e-7)


@every_metric
def test_a_distance_is_the_mean_over_levels(metric: Metric) -> None:
    points = metric.directions(sketches(20))
    assert metric.by_level(points[1:], points[0]).shape == (19, 3)
    expected = metric.by_level(points[1:], points[0]).mean(axis=1)
    numpy.testing.assert_allclose(metric.distance(points[1:], points[0]), expected, rtol=1e-6)


@every_metric
def test_distances_form_a_metric_with_values_in_0_to_1(metric: Metric) -> None:
    points = metric.directions(sketches(40))
    pairs = metric.by_level(points[:, None], points[None])
    assert pairs.dtype == numpy.float32
    assert pairs.min() >= 0
    assert pairs.max() <= 1
    numpy.testing.assert_allclose(pairs, pairs.swapaxes(0, 1), atol=TOLERANCE)
    assert (pairs[:, None] <= pairs[:, :, None] + pairs[None] + TOLERANCE).all()


@every_metric
def test_a_distance_is_zero_for_equal_directions_only(metric: Metric) -> None:
    points = metric.directions(sketches(40))
    pairs = metric.distance(points[:, None], points[None])
    numpy.testing.assert_allclose(numpy.diag(pairs), 0, atol=1e-7)
    zero = {(int(a), int(b)) for a, b in numpy.argwhere(pairs < 1e-6) if a < b}
    assert zero == {(0, 1)}


@every_metric
def test_a_zero_level_is_half_way_from_any_other_and_at_zero(metric: Metric) -> None:
    points = metric.directions(sketches(8))
    numpy.testing.assert_allclose(metric.by_level(points[4], points[[0, 2, 6]]), 0.5, atol=1e-7)
    numpy.testing.assert_allclose(metric.by_level(points[4], points[4]), 0, atol=1e-7)
    assert metric.by_level(points[4], points[5])[1] == 0


@pytest.mark.parametrize("metric", [*METRICS, Metric("l1", cauchy=4)], ids=str)
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e30, 1e300])
def test_directions_do_not_depend_on_scale(metric: Metric, scale: float) -> None:
    rows = sketches(10)
    numpy.testing.assert_allclose(metric.directions(rows * scale), metric.directions(rows), atol=1e-6)
    if scale <= 1e30:
        single = (rows * scale).astype(numpy.float32)
        numpy.testing.assert_allclose(metric.directions(single), metric.directions(rows), atol=1e-6)


@pytest.mark.parametrize("metric", METRICS, ids=str)
def test_directions_are_bit_equal_at_scales_that_are_powers_of_two(metric: Metric) -> None:
    rows = sketches(10).astype(numpy.float32)
    scales = 2.0 ** numpy.random.default_rng(1).integers(-40, 40, size=(10, 3, 1)).astype(numpy.float32)
    numpy.testing.assert_array_equal(metric.directions(rows * scales), metric.directions(rows))


def test_directions_of_many_rows_equal_those_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("methods.treelora.tree.metric.CHUNK", 100)
    rows = sketches(50)
    for metric in METRICS:
        expected = numpy.stack([metric.directions(row) for row in rows])
        numpy.testing.assert_allclose(metric.directions(rows), expected, atol=1e-6)


def test_chunks_cover_all_rows_even_wide_ones() -> None:
    assert [(part.start, part.stop) for part in chunks(5, 2**20)] == [(0, 2), (2, 4), (4, 5)]
    assert len(list(chunks(3, 2**30))) == 3
    assert list(chunks(0, 0)) == []


def test_cosine_and_its_angle_order_alike() -> None:
    rows = sketches(30)[6:, 0]
    units = rows / numpy.linalg.norm(rows, axis=1, keepdims=True)
    metric = Metric("cos")
    points = metric.directions(rows[:, None])
    angles = metric.distance(points[1:], points[0])
    numpy.testing.assert_array_equal(numpy.argsort(angles), numpy.argsort(1 - units[1:] @ units[0]))
    numpy.testing.assert_allclose(angles, numpy.arccos(units[1:] @ units[0]) / math.pi, atol=1e-6)


def test_the_median_of_cauchy_columns_estimates_the_l1_distance() -> None:
    """The spread of the estimate is pi / (2 sqrt(columns)) of it; here 0.05 with 1024 columns."""
    generator = numpy.random.default_rng(0)
    vectors = generator.normal(size=(30, 1, 500))
    projection = generator.standard_cauchy(size=(500, 1024))
    metric = Metric("l1", cauchy=1024)
    points = metric.directions(numpy.concatenate([vectors[..., :8], vectors @ projection], axis=-1))
    plain = Metric("l1")
    exact = plain.distance(plain.directions(vectors[1:]), plain.directions(vectors[:1]))
    estimated = metric.distance(points[1:], points[0])
    assert numpy.sqrt(numpy.mean((estimated / exact - 1) ** 2)) < 1.5 * 0.07
    numpy.testing.assert_array_equal(metric.distance(points, points), 0)


def test_cauchy_columns_are_left_out_of_means_and_of_l2() -> None:
    rows = sketches(10)
    other = numpy.concatenate([rows[..., :8], numpy.ones((10, 3, 4))], axis=-1)
    metric = Metric("l2", cauchy=4)
    assert metric.geometry(rows).shape == (10, 3, 8)
    points, others = metric.directions(rows), metric.directions(other)
    numpy.testing.assert_array_equal(metric.distance(points, points[0]), metric.distance(others, others[0]))


@every_metric
@pytest.mark.parametrize("chunk", [30, 2**21])
def test_the_closest_pair_is_that_of_all_pairs(metric: Metric, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("methods.treelora.tree.metric.CHUNK", chunk)
    points = metric.directions(numpy.random.default_rng(3).normal(size=(25, 2, 12)))
    pairs = metric.distance(points[:, None], points[None]) + 2 * numpy.eye(25)
    assert closest(points, metric) == divmod(int(pairs.argmin()), 25)


def test_of_several_closest_pairs_the_first_is_taken() -> None:
    metric = Metric()
    points = metric.directions(numpy.eye(4)[[0, 1, 2, 1, 2, 1]][:, None])
    assert closest(points, metric) == (1, 3)


def test_a_single_signature_has_no_closest_pair() -> None:
    with pytest.raises(ValueError, match="there are 1"):
        closest(numpy.ones((1, 1, 2), dtype=numpy.float32), Metric())
