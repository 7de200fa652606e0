"""Sketches: pinned hashes, exact linearity over any shards, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from methods.treelora import sketch as module
from methods.treelora.sketch import Sketch, SketchConfig, Sketcher, cauchy_entries, coordinate_hash, hashed

MASK = (1 << 64) - 1
COUNT, EXACT, BOTH = SketchConfig(width=64), SketchConfig(kind="exact"), SketchConfig(width=64, cauchy=16)


def random_vectors(sizes: list[int], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator) for size in sizes]


Sketching = Callable[[list[Tensor]], Sketch]  # one vector a slice


def whole(sizes: list[int], config: SketchConfig, seed: int = 0) -> Sketching:
    return joined(Sketcher([(level, 0, size) for level, size in enumerate(sizes)], sizes, config, seed))


def joined(sketcher: Sketcher) -> Sketching:
    return lambda vectors: sketcher(torch.cat(vectors) if vectors else torch.zeros(0))


def splitmix(value: int) -> int:
    """Splitmix64 in unsigned whole numbers, as published."""
    value = (value + 0x9E3779B97F4A7C15) & MASK
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & MASK
    return value ^ value >> 31


def close(left: Tensor, right: Tensor, tolerance: float) -> bool:
    return bool(((left - right).norm(dim=1) <= tolerance * right.norm(dim=1)).all())


def test_buckets_and_signs_are_pinned() -> None:
    """Stored sketches become worthless when these change: count up ``VERSION`` then."""
    first, second = hashed([(0, 0, 8), (1, 10**12, 4)], width=256, seed=0)
    assert first[1].tolist() == [154, 117, 32, 67, 106, 77, 159, 48]
    assert first[2].tolist() == [1, 0, 0, 1, 1, 0, 1, 0]
    assert second[1].tolist() == [90, 210, 5, 49]
    assert second[2].tolist() == [0, 1, 1, 0]


def test_a_sketch_is_pinned() -> None:
    config = SketchConfig(width=4, cauchy=2)
    values = whole([6, 3], config)([torch.arange(1.0, 7.0), torch.tensor([0.5, -2.0, 8.0])]).values
    expected = [[3.0, 8.0, -6.0, -4.0, -101.0031, -47.7619], [10.0, 0.0, -0.5, 0.0, 3.5570, -26.5720]]
    torch.testing.assert_close(values, torch.tensor(expected), rtol=1e-4, atol=0)


def test_cauchy_entries_are_pinned() -> None:
    expected = [[-27.264, -0.65794, -3.3251], [0.12593, 5.89896, -0.65840]]
    torch.testing.assert_close(cauchy_entries(torch.arange(3), 2, 0, 0), torch.tensor(expected), rtol=1e-4, atol=0)
    far = cauchy_entries(torch.tensor([10**12]), 2, 7, 3)
    torch.testing.assert_close(far.flatten(), torch.tensor([-1.0067, -0.6224]), rtol=1e-4, atol=0)


@pytest.mark.parametrize(("seed", "level"), [(0, 0), (7, 3), (2**40, 63)])
def test_hash_and_cauchy_entry_are_splitmix64_of_seed_version_level_coordinate_and_column(
    seed: int, level: int
) -> None:
    coordinates = [0, 1, 2, 4095, 2**33]
    key = splitmix(splitmix(splitmix(seed) + 1) + level)
    unsigned = [splitmix(coordinate + key) for coordinate in coordinates]
    assert [h & MASK for h in coordinate_hash(torch.tensor(coordinates), seed, level).tolist()] == unsigned
    for column, entries in enumerate(cauchy_entries(torch.tensor(coordinates), 3, seed, level)):
        uniform = [((splitmix(h + splitmix(column)) >> 11) + 0.5) / 2**53 for h in unsigned]
        assert entries.tolist() == pytest.approx([math.tan(math.pi * (u - 0.5)) for u in uniform], rel=1e-6)


def test_count_adds_signed_values_into_buckets() -> None:
    slices = [(1, 5, 2), (0, 0, 1), (1, 2, 1)]
    expected = torch.zeros(2, 3)
    for (level, bucket, minus), values in zip(hashed(slices, 3, 1), [[10.0, 200.0], [7.0], [4000.0]], strict=True):
        for one, sign, value in zip(bucket, minus, values, strict=True):
            expected[level, one] += value if sign == 0 else -value
    sketch = joined(Sketcher(slices, [1, 7], SketchConfig(width=3), seed=1))
    vectors = [torch.tensor([10.0, 200.0]), torch.tensor([7.0]), torch.tensor([4000.0])]
    assert torch.equal(sketch(vectors).values, expected)


def test_exact_places_values_at_their_coordinates_and_pads_with_zeros() -> None:
    sketch = joined(Sketcher([(0, 1, 1), (1, 3, 1), (1, 0, 2)], [2, 4], EXACT, seed=0))
    values = sketch([torch.tensor([5.0]), torch.tensor([6.0]), torch.tensor([7.0, 8.0])]).values
    assert values.tolist() == [[0, 5, 0, 0], [7, 8, 0, 6]]


@pytest.mark.parametrize("config", [COUNT, EXACT, BOTH])
def test_a_sketch_is_linear(config: SketchConfig) -> None:
    sizes = [5000, 300, 1]
    sketch, x, y = whole(sizes, config, 3), random_vectors(sizes, 0), random_vectors(sizes, 1)
    left = sketch([0.3 * a - 2.5 * b for a, b in zip(x, y, strict=True)])
    assert close(left.values, 0.3 * sketch(x).values - 2.5 * sketch(y).values, 1e-6)


@pytest.mark.parametrize("config", [COUNT, EXACT, BOTH])
@pytest.mark.parametrize("shards", [1, 2, 3, 7])
def test_sketches_of_any_partition_add_up_to_the_whole(shards: int, config: SketchConfig) -> None:
    sizes = [6000, 5, 129]
    generator = torch.Generator().manual_seed(shards)
    cuts = [torch.randint(size + 1, (shards - 1,), generator=generator).sort().values.tolist() for size in sizes]
    edges = [[0, *cut, size] for cut, size in zip(cuts, sizes, strict=True)]
    edges[1] = [0] * shards + [5]  # all but one shard hold nothing of this level
    vectors = random_vectors(sizes, 2)
    parts = []
    for shard in range(shards):
        ranges = [(edge[shard], edge[shard + 1]) for edge in edges]
        slices = [(level, first, last - first) for level, (first, last) in enumerate(ranges)]
        local = [vector[first:last] for vector, (first, last) in zip(vectors, ranges, strict=True)]
        parts.append(joined(Sketcher(slices, sizes, config, seed=0))(local))
    total = sum(parts[1:], start=parts[0])
    assert close(total.values, whole(sizes, config)(vectors).values, 1e-6)
    assert total.stamp == whole(sizes, config)(vectors).stamp


@pytest.mark.parametrize("config", [COUNT, EXACT, BOTH])
def test_a_shard_without_any_element_adds_zero(config: SketchConfig) -> None:
    full = whole([4, 3], config)([torch.ones(4), torch.ones(3)])
    for slices, vectors in ([(0, 0, 0), (1, 3, 0)], [torch.zeros(0)] * 2), ([], []):
        nothing = joined(Sketcher(slices, [4, 3], config, 0))(vectors)
        assert torch.equal((full + nothing).values, full.values)


def test_blocks_do_not_change_a_sketch(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = random_vectors([5000, 700], 5)
    one = whole([5000, 700], BOTH)(vectors)
    monkeypatch.setattr(module, "COUNT_BLOCK", 64)
    monkeypatch.setattr(module, "CAUCHY_BLOCK", 100)
    assert close(whole([5000, 700], BOTH)(vectors).values, one.values, 1e-6)


def test_vectors_of_other_types_and_with_gradients_give_plain_float32() -> None:
    vector = torch.arange(8.0, dtype=torch.bfloat16).requires_grad_()
    values = whole([8], COUNT)([vector]).values
    assert values.dtype == torch.float32
    assert not values.requires_grad
    assert torch.equal(values, whole([8], COUNT)([torch.arange(8.0)]).values)


def test_small_and_large_values_survive() -> None:
    sketch, x = whole([500], BOTH), random_vectors([500], 6)[0]
    for scale in (1e-30, 1e30):
        assert close(sketch([x * scale]).values / scale, sketch([x]).values, 1e-5)


CHANGES = {
    "seed": (COUNT, 1, [4, 3]),
    "width": (SketchConfig(width=65), 0, [4, 3]),
    "cauchy": (BOTH, 0, [4, 3]),
    "kind": (EXACT, 0, [4, 3]),
    "sizes": (COUNT, 0, [4, 2]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_sketches_that_were_made_differently_do_not_mix(name: str) -> None:
    config, seed, sizes = CHANGES[name]
    other = whole(sizes, config, seed)([torch.ones(size) for size in sizes])
    one = whole([4, 3], COUNT)([torch.ones(4), torch.ones(3)])
    with pytest.raises(ValueError, match=f"different {name} do not mix"):
        one + other


def test_sketches_of_another_version_do_not_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    one = whole([4], COUNT)([torch.ones(4)])
    monkeypatch.setattr(module, "VERSION", 2)
    other = whole([4], COUNT)([torch.ones(4)])
    assert not torch.equal(one.values, other.values)
    with pytest.raises(ValueError, match=r"different version do not mix \(1 and 2\)"):
        one + other


@pytest.mark.parametrize("config", [COUNT, EXACT, BOTH])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused_with_their_level(config: SketchConfig, value: float) -> None:
    vectors = [torch.ones(4), torch.tensor([1.0, value, 2.0])]
    with pytest.raises(ValueError, match="level 1 is not finite"):
        whole([4, 3], config)(vectors)


def test_infinities_of_both_signs_are_refused() -> None:
    with pytest.raises(ValueError, match="level 0 is not finite"):
        whole([100], SketchConfig(width=1))([torch.tensor([math.inf, -math.inf] * 50)])


def test_vectors_of_the_wrong_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"have 7 elements, the vectors \[6\]"):
        whole([4, 3], COUNT)([torch.ones(4), torch.ones(2)])


@pytest.mark.parametrize("one", [(0, 2, 3), (0, -1, 2), (2, 0, 1)])
def test_a_slice_outside_its_level_is_refused(one: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=f"level {one[0]}"):
        Sketcher([one], [4, 3], COUNT, 0)


def test_exact_refuses_a_cauchy_block() -> None:
    with pytest.raises(ValueError, match="cauchy needs"):
        SketchConfig(kind="exact", cauchy=16)


def test_a_cauchy_sketch_is_the_projection_on_its_entries() -> None:
    sizes = [5000, 40]
    x = random_vectors(sizes, 8)
    values = whole(sizes, SketchConfig(width=8, cauchy=16), seed=2)(x).values
    for level, vector in enumerate(x):
        expected = cauchy_entries(torch.arange(len(vector)), 16, 2, level).double() @ vector.double()
        torch.testing.assert_close(values[level, 8:], expected.float())
