"""Linear sketches of adapter gradients, keyed by global coordinate.

Three compressions of a level's vector x:
- ``count``: CountSketch with one row (Charikar, Chen and Farach-Colton 2002). It keeps inner products and L2 norms:
  the variance of an estimated inner product is at most (|x|^2 |y|^2 + <x, y>^2) / width.
- ``cauchy`` > 0 adds columns of a 1-stable projection (Indyk 2006). The median of their magnitudes estimates the L1
  norm with a relative error of about pi / (2 sqrt(columns)). Its entries are kept: 4 bytes x columns x local elements.
- ``exact``: the vector itself, the reference for small adapters.

Bucket, sign and Cauchy entry depend on (seed, version, level, coordinate) alone, never on rank or shard, so that the
sketches of the shards add up to the sketch of the whole. The paper (Qian et al. 2025) keeps whole vectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

VERSION = 1
# The constants of splitmix64 (Steele, Lea and Flood 2014) as signed 64-bit numbers.
GOLDEN = -7046029254386353131
FIRST, SECOND = -4658895280553007687, -7723592293110705685

# Share of Cauchy entries that is cut off on each side: no entry is beyond 5.4e6, so that float32 holds every column.
# Only elements that outweigh all others of a column are cut, which the median does not see up to a million elements.
TAIL = 2.0**-24
STAMP = ("seed", "version", "kind", "width", "cauchy")  # then the sizes of the levels
KINDS = ("count", "exact")  # numbered in stamps
COUNT_BLOCK = 2**17  # elements; more than a cache holds took twice as long
CAUCHY_BLOCK = 2**17  # entries; 1 MiB of float64

Slices = list[tuple[int, int, int]]


class SketchConfig(BaseModel):
    """Settings ``method.sketch.<field>``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["count", "exact"] = Field("count", description="compressed, or the vectors themselves")
    width: int = Field(256, gt=0, description="numbers a level is compressed to by count")
    cauchy: int = Field(0, ge=0, description="further numbers a level, from which L1 distances are estimated")

    @model_validator(mode="after")
    def _exact_has_l1(self) -> Self:
        if self.kind == "exact" and self.cauchy:
            raise ValueError("sketch.cauchy needs sketch.kind=count: exact sketches give L1 distances by themselves")
        return self


@dataclass(frozen=True)
class Sketch:
    """``values`` [levels, columns] float32; ``stamp`` is what two sketches must share to be added or compared."""

    values: Tensor
    stamp: tuple[int, ...]

    def __add__(self, other: Sketch) -> Sketch:
        """The sketch of the sum of both vectors; ValueError where the two were made differently."""
        require_same(self.stamp, other.stamp)
        return Sketch(self.values + other.values, self.stamp)


def require_same(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    """ValueError that names what differs between the stamps of two sketches."""
    for name, left, right in zip(STAMP, one, other, strict=False):
        if left != right:
            raise ValueError(f"sketches of different {name} do not mix ({left} and {right}): sketch both alike")
    if one != other:
        sizes = f"{list(one[len(STAMP) :])} and {list(other[len(STAMP) :])}"
        raise ValueError(f"sketches of adapters of different sizes do not mix ({sizes}): use the same adapters")


class Sketcher:
    """Sketch this rank's slices of all levels.

    ``slices`` are (level, coordinate of the first element, number of elements), ``sizes`` the number of elements of
    each whole level. ValueError for a slice outside its level.
    """

    def __init__(self, slices: Slices, sizes: list[int], config: SketchConfig, seed: int) -> None:
        check_slices(slices, sizes)
        self.elements = sum(size for _, _, size in slices)
        self.parts: list[Placed | Count | Cauchy] = []
        if config.kind == "exact":
            self.parts.append(Placed(slices, sizes))
        else:
            self.parts.append(Count(slices, len(sizes), config.width, seed))
        if config.cauchy:
            self.parts.append(Cauchy(slices, len(sizes), config.cauchy, seed))
        width = 0 if config.kind == "exact" else config.width
        self.stamp = (seed, VERSION, KINDS.index(config.kind), width, config.cauchy, *sizes)

    def __call__(self, vectors: Tensor) -> Sketch:
        """The slices' elements one after another [local], on any device, to a sketch; ValueError for NaN and Inf."""
        flat = vectors.detach().cpu().float()
        if flat.shape != (self.elements,):
            raise ValueError(f"the slices to sketch have {self.elements} elements, the vectors {list(flat.shape)}")
        values = torch.cat([part(flat) for part in self.parts], dim=1)
        # Sums in float64 cannot overflow, and NaN or Inf anywhere in a vector stays in its row.
        for level in (~values.sum(dim=1, dtype=torch.float64).isfinite()).nonzero():
            message = "is not finite (NaN, Inf or beyond float32); clip it or lower the learning rate"
            raise ValueError(f"the vector to sketch at level {int(level)} {message}")
        return Sketch(values, self.stamp)


class Placed:
    """Elements [local] at their coordinates, zero elsewhere: [levels, size of the largest level]."""

    def __init__(self, slices: Slices, sizes: list[int]) -> None:
        self.slices, self.shape = slices, (len(sizes), max(sizes, default=0))

    def __call__(self, flat: Tensor) -> Tensor:
        rows = torch.zeros(self.shape)
        for (level, first, size), vector in zip(self.slices, flat.split([s[2] for s in self.slices]), strict=True):
            rows[level, first : first + size] = vector
        return rows


class Count:
    """Signed sums of elements [local] that share a bucket: [levels, width], float32.

    ``keys`` number the buckets of all levels, each twice: even keys gather elements of sign +1, odd ones those of
    sign -1. All slices are one int32 index of 4 bytes an element, and nothing is multiplied.
    """

    def __init__(self, slices: Slices, levels: int, width: int, seed: int) -> None:
        self.shape = (levels, width, 2)
        keys = [2 * (level * width + bucket) + minus for level, bucket, minus in hashed(slices, width, seed)]
        self.keys = torch.cat(keys).int() if keys else torch.zeros(0, dtype=torch.int32)

    def __call__(self, flat: Tensor) -> Tensor:
        sums = torch.zeros(math.prod(self.shape))
        for keys, values in zip(self.keys.split(COUNT_BLOCK), flat.split(COUNT_BLOCK), strict=True):
            sums += torch.bincount(keys, values, len(sums))
        plus, minus = sums.view(self.shape).unbind(-1)
        return plus - minus


class Cauchy:
    """Projections of elements [local] on Cauchy entries, summed in float64: [levels, columns], float32."""

    def __init__(self, slices: Slices, levels: int, columns: int, seed: int) -> None:
        self.shape = (levels, columns)
        self.blocks = [
            (level, cauchy_entries(part, columns, seed, level))
            for level, first, size in slices
            for part in torch.arange(first, first + size).split(max(1, CAUCHY_BLOCK // columns))
        ]

    def __call__(self, flat: Tensor) -> Tensor:
        rows = torch.zeros(self.shape, dtype=torch.float64)
        vectors = flat.double().split([entries.shape[1] for _, entries in self.blocks])
        for (level, entries), vector in zip(self.blocks, vectors, strict=True):
            rows[level] += entries.double() @ vector
        return rows.float()


def check_slices(slices: Slices, sizes: list[int]) -> None:
    for level, first, size in slices:
        if not 0 <= level < len(sizes):
            raise ValueError(f"a slice names level {level}, but there are levels 0 to {len(sizes) - 1}")
        if first < 0 or size < 0 or first + size > sizes[level]:
            raise ValueError(f"a slice of level {level} is [{first}, {first + size}), the level has {sizes[level]}")


def hashed(slices: Slices, width: int, seed: int) -> list[tuple[int, Tensor, Tensor]]:
    """For each slice its level, the bucket of every element and 1 where its sign is minus."""
    found = []
    for level, first, size in slices:
        bits = coordinate_hash(torch.arange(first, first + size), seed, level)
        found.append((level, (bits >> 1) % width, bits & 1))  # torch's % takes the sign of the divisor
    return found


def cauchy_entries(coordinates: Tensor, columns: int, seed: int, level: int) -> Tensor:
    """Standard Cauchy numbers [columns, coordinates], float32; at most TAIL is cut off on each side."""
    keys = mix(torch.arange(columns))[:, None]
    bits = mix(coordinate_hash(coordinates, seed, level) + keys)
    uniform = (shift_right(bits, 11).double() + 0.5) / 2**53
    return torch.tan(math.pi * (uniform.clamp(TAIL, 1 - TAIL) - 0.5)).float()


def coordinate_hash(coordinates: Tensor, seed: int, level: int) -> Tensor:
    """64 well-mixed bits for each coordinate, int64."""
    key = mix(mix(mix(torch.tensor(seed)) + VERSION) + level)
    return mix(coordinates + key)


def mix(value: Tensor) -> Tensor:
    """One step of splitmix64; int64 arithmetic wraps as the unsigned one does."""
    value = value + GOLDEN
    value = (value ^ shift_right(value, 30)) * FIRST
    value = (value ^ shift_right(value, 27)) * SECOND
    return value ^ shift_right(value, 31)


def shift_right(value: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's >> on int64 keeps the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)
