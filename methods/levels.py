"""The adapters of a model as one matrix of local values, whole, replicated or sharded alike.

A level is a group of adapter tensors that has one row in the matrix and one in every sketch. Each element has a global
coordinate in its level that does not depend on how the tensors are sharded: the tensors of a level stand one after
another, each flattened. FSDP2 shards rows, so that a rank's part of a tensor is one contiguous range of coordinates.
Rows shorter than the longest end in zeros, which change no sum, no norm and no sketch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

NOWHERE = -1  # the coordinate of padding


@dataclass(frozen=True)
class Slice:
    """This rank's part of one tensor; ``coordinate`` is the level coordinate of its first element."""

    name: str
    parameter: nn.Parameter
    coordinate: int
    size: int


class Levels:
    """Local values of all adapter tensors as [levels, width], ``width`` being that of the widest local level.

    ``total`` adds a tensor over the shards (the identity where every rank holds everything); ``part`` of ``parts``
    numbers this rank's share of a sketch, and ``part`` is None on a rank whose share another one sends.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        level_of: Callable[[str], int],
        total: Callable[[Tensor], Tensor],
        part: int | None = 0,
        parts: int = 1,
    ) -> None:
        self.total, self.part, self.parts = total, part, parts
        grouped: dict[int, list[tuple[str, nn.Parameter]]] = {}
        for name, parameter in parameters:
            grouped.setdefault(level_of(name), []).append((name, parameter))
        laid_out = [sliced(grouped[level]) for level in sorted(grouped)]
        self.slices = [slices for slices, _ in laid_out]
        self.sizes = [size for _, size in laid_out]
        self.lengths = [sum(part.size for part in level) for level in self.slices]
        self.width = max(self.lengths, default=0)
        self.padded = min(self.lengths, default=0) < self.width

    def __len__(self) -> int:
        return len(self.slices)

    def parameters(self) -> Tensor:
        """A copy of the local values, float32 [levels, width]."""
        return self.matrix(lambda part: part.parameter.data)

    def gradients(self) -> Tensor:
        """A copy of the local gradients, float32 [levels, width]; a missing gradient is zero."""
        return self.matrix(gradient)

    def set_parameters(self, matrix: Tensor) -> None:
        """Write local values [levels, width] into the parameters, in place."""
        self.write(matrix, lambda part: part.parameter.data)

    def set_gradients(self, matrix: Tensor) -> None:
        """Write local gradients [levels, width] back, in place; a missing gradient is made."""
        self.write(matrix, gradient)

    def coordinates(self) -> Tensor:
        """The level coordinate of every local element, int64 [levels, width]; -1 for padding."""
        result = torch.full((len(self), self.width), NOWHERE)
        for row, level in zip(result, self.slices, strict=True):
            places = [torch.arange(s.coordinate, s.coordinate + s.size) for s in level]
            row[: sum(s.size for s in level)] = torch.cat(places)
        return result

    @property
    def layout(self) -> list[tuple[int, int, int]]:
        """Level, coordinate of the first element and size of every slice, in the order of ``flat``."""
        return [(number, part.coordinate, part.size) for number, level in enumerate(self.slices) for part in level]

    def flat(self, matrix: Tensor) -> Tensor:
        """The local values one slice after another, without padding."""
        if not self.padded:
            return matrix.flatten()
        return torch.cat([row[:length] for row, length in zip(matrix, self.lengths, strict=True)])

    def named(self, word: str) -> Tensor:
        """Which local elements belong to tensors whose name contains ``word``, bool [levels, width]."""
        return self.matrix(lambda part: local(part.parameter.data).new_full((part.size,), float(word in part.name))) > 0

    def whole(self, matrix: Tensor) -> list[Tensor]:
        """Local values [levels, width] to whole levels, on every rank: each element has one owner, the rest add 0."""
        result = []
        for row, where, size in zip(matrix, self.coordinates().to(matrix.device), self.sizes, strict=True):
            full = torch.zeros(size, dtype=matrix.dtype, device=matrix.device)
            full[where[where >= 0]] = row[where >= 0]
            result.append(self.total(full))
        return result

    def local(self, levels: list[Tensor]) -> Tensor:
        """Whole levels to this rank's [levels, width]."""
        where = self.coordinates().to(levels[0].device)
        rows = [torch.where(w >= 0, level[w.clamp(min=0)], 0) for level, w in zip(levels, where, strict=True)]
        return torch.stack(rows)

    def matrix(self, values: Callable[[Slice], Tensor]) -> Tensor:
        """One copy of what ``values`` gives for each slice, padded level by level."""
        pieces = [local(values(part)).detach().reshape(-1) for level in self.slices for part in level]
        if self.padded:
            rows = zip(self.slices, self.lengths, strict=True)
            found = iter(pieces)
            zeros = pieces[0].new_zeros
            pieces = [p for level, n in rows for p in (*itertools.islice(found, len(level)), zeros(self.width - n))]
        return torch.cat(pieces).float().view(len(self), self.width)

    @torch.no_grad()
    def write(self, matrix: Tensor, values: Callable[[Slice], Tensor]) -> None:
        parts = [part for level in self.slices for part in level]
        pieces = self.flat(matrix).split([part.size for part in parts])
        places = [local(values(part)).view(-1) for part in parts]
        torch._foreach_copy_(places, list(pieces))  # one call: a step has no time for one a slice


def sliced(parameters: list[tuple[str, nn.Parameter]]) -> tuple[list[Slice], int]:
    """The local slices of one level and its whole size."""
    slices, size = [], 0
    for name, parameter in parameters:
        first, count = local_range(parameter)
        slices.append(Slice(name, parameter, size + first, count))
        size += parameter.numel()
    return slices, size


def local_range(parameter: nn.Parameter) -> tuple[int, int]:
    """Flat index of the first local element in the whole tensor, and the number of local elements."""
    if not isinstance(parameter.data, DTensor):
        return 0, parameter.numel()
    data = parameter.data
    _, offset = compute_local_shape_and_global_offset(data.shape, data.device_mesh, data.placements)
    rows = parameter.numel() // parameter.shape[0]
    count = data.to_local().numel()
    return (offset[0] * rows if count else 0), count


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gradient(part: Slice) -> Tensor:
    if part.parameter.grad is None:
        part.parameter.grad = torch.zeros_like(part.parameter)
    return part.parameter.grad
