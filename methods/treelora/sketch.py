"""CountSketch of each level: a linear compression keyed by global coordinate.

Bucket and sign of a coordinate depend on (seed, version, level, coordinate) alone, never on rank or shard size, so
the sketches of the shards add up to the sketch of the whole (Charikar, Chen and Farach-Colton 2002; the errors of
estimated inner products are at most (|x|^2 |y|^2 + <x, y>^2) / width in variance).
"""

from __future__ import annotations

import torch
from torch import Tensor

VERSION = 1
# The constants of splitmix64 (Steele, Lea and Flood 2014) as signed 64-bit numbers.
GOLDEN = -7046029254386353131
FIRST, SECOND = -4658895280553007687, -7723592293110705685


class CountSketch:
    """Sketch ``vectors`` [local size] of every level to [levels, width], float32."""

    def __init__(self, coordinates: list[Tensor], width: int, seed: int) -> None:
        self.width = width
        hashes = [coordinate_hash(c, seed, level) for level, c in enumerate(coordinates)]
        self.buckets = [(h >> 1) % width for h in hashes]  # torch's % takes the sign of the divisor
        self.signs = [1.0 - 2.0 * (h & 1) for h in hashes]

    def __call__(self, vectors: list[Tensor]) -> Tensor:
        rows = []
        for vector, bucket, sign in zip(vectors, self.buckets, self.signs, strict=True):
            row = torch.zeros(self.width)
            rows.append(row.index_add_(0, bucket, vector.cpu().float() * sign))
        return torch.stack(rows)


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
