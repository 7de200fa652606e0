"""CountSketch: pinned hashes, exact linearity over any shards, and the errors that theory promises."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from methods.treelora.sketch import CountSketch, coordinate_hash

MASK = (1 << 64) - 1


def random_vectors(sizes: list[int], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator) for size in sizes]


def whole_sketch(sizes: list[int], width: int, seed: int) -> CountSketch:
    return CountSketch([torch.arange(size) for size in sizes], width, seed)


def splitmix(value: int) -> int:
    """Splitmix64 in unsigned whole numbers, as published."""
    value = (value + 0x9E3779B97F4A7C15) & MASK
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & MASK
    return value ^ value >> 31


def test_buckets_and_signs_are_pinned() -> None:
    """Stored sketches become worthless when these change: count up ``VERSION`` then."""
    sketch = CountSketch([torch.arange(8), torch.arange(10**12, 10**12 + 4)], width=256, seed=0)
    assert sketch.buckets[0].tolist() == [154, 117, 32, 67, 106, 77, 159, 48]
    assert sketch.signs[0].tolist() == [-1, 1, 1, -1, -1, 1, -1, 1]
    assert sketch.buckets[1].tolist() == [90, 210, 5, 49]
    assert sketch.signs[1].tolist() == [1, -1, -1, 1]


@pytest.mark.parametrize(("seed", "level"), [(0, 0), (7, 3), (2**40, 63)])
def test_the_hash_is_splitmix64_of_seed_version_level_and_coordinate(seed: int, level: int) -> None:
    coordinates = [0, 1, 2, 4095, 2**33]
    key = splitmix(splitmix(splitmix(seed) + 1) + level)
    unsigned = [splitmix(coordinate + key) for coordinate in coordinates]
    assert [h & MASK for h in coordinate_hash(torch.tensor(coordinates), seed, level).tolist()] == unsigned


def test_a_sketch_adds_signed_values_into_buckets() -> None:
    sketch = CountSketch([torch.tensor([5, 3, 900])], width=2, seed=1)
    expected = [0.0, 0.0]
    for bucket, sign, value in zip(sketch.buckets[0], sketch.signs[0], [10.0, 200.0, 4000.0], strict=True):
        expected[bucket] += float(sign) * value
    assert sketch([torch.tensor([10.0, 200.0, 4000.0])]).tolist() == [expected]


def test_a_sketch_is_linear() -> None:
    sizes = [5000, 300, 1]
    sketch, x, y = whole_sketch(sizes, 64, 3), random_vectors(sizes, 0), random_vectors(sizes, 1)
    left = sketch([0.3 * a - 2.5 * b for a, b in zip(x, y, strict=True)])
    right = 0.3 * sketch(x) - 2.5 * sketch(y)
    assert ((left - right).norm(dim=1) <= 1e-6 * right.norm(dim=1)).all()


@pytest.mark.parametrize("shards", [1, 2, 3, 7])
@pytest.mark.parametrize("contiguous", [True, False])
def test_sketches_of_any_partition_add_up_to_the_whole(shards: int, contiguous: bool) -> None:
    sizes = [4000, 5, 129]  # with seven shards some are empty
    generator = torch.Generator().manual_seed(shards)
    owners = [torch.randint(shards, (size,), generator=generator) for size in sizes]
    if contiguous:
        owners = [owner.sort().values for owner in owners]
    vectors = random_vectors(sizes, 2)
    total = torch.zeros(3, 32)
    for shard in range(shards):
        coordinates = [(owner == shard).nonzero().flatten() for owner in owners]
        local = [vector[c] for vector, c in zip(vectors, coordinates, strict=True)]
        total += CountSketch(coordinates, 32, seed=0)(local)
    whole = whole_sketch(sizes, 32, seed=0)(vectors)
    assert ((total - whole).norm(dim=1) <= 1e-5 * whole.norm(dim=1)).all()


def test_an_empty_slice_gives_a_zero_row() -> None:
    row = CountSketch([torch.arange(0), torch.arange(3)], 16, 0)([torch.zeros(0), torch.ones(3)])
    assert row[0].tolist() == [0.0] * 16
    assert row[1].abs().sum() > 0


@pytest.mark.parametrize("width", [64, 256])
def test_inner_products_are_unbiased_with_the_promised_error(width: int) -> None:
    size, seeds = 6144, 300
    x, noise = random_vectors([size, size], 4)
    y = 0.7 * x + noise
    estimates = torch.empty(seeds)
    for seed in range(seeds):
        sketch = whole_sketch([size], width, seed)
        estimates[seed] = (sketch([x]) * sketch([y])).sum()
    bound = float(((x @ x) * (y @ y) + (x @ y) ** 2).div(width).sqrt())
    errors = estimates - x @ y
    assert abs(errors.mean()) < 4 * bound / seeds**0.5
    assert bound / 1.3 < errors.square().mean().sqrt() < 1.3 * bound


@pytest.mark.parametrize("stride", [1, 4096])
def test_buckets_and_signs_are_balanced_and_independent(stride: int) -> None:
    """A chi-squared statistic of the 2 x 64 table has mean 127 and standard deviation 16."""
    count, width = 50_000, 64
    sketch = CountSketch([torch.arange(count) * stride], width, 0)
    cells = torch.bincount(2 * sketch.buckets[0] + (sketch.signs[0] < 0), minlength=2 * width).double()
    expected = count / (2 * width)
    assert 127 - 5 * 16 < ((cells - expected) ** 2 / expected).sum() < 127 + 5 * 16


@pytest.mark.parametrize(("other_seed", "level"), [(0, 1), (0, 2), (1, 0), (1, 1)])
def test_levels_and_seeds_hash_independently(other_seed: int, level: int) -> None:
    """Two independent hashes agree on one bucket in ``width`` and on half of the signs."""
    count, width = 20_000, 32
    coordinates = [torch.arange(count)] * 3
    one, other = CountSketch(coordinates, width, 0), CountSketch(coordinates, width, other_seed)
    same_bucket = (one.buckets[0] == other.buckets[level]).double().mean()
    same_sign = (one.signs[0] == other.signs[level]).double().mean()
    assert abs(same_bucket - 1 / width) < 5 * (1 / width / count) ** 0.5
    assert abs(same_sign - 0.5) < 5 * 0.5 / count**0.5
