"""The adapters of a model as one matrix of local values, whole, replicated or sharded alike.

A level is a group of adapter tensors that has one row in the matrix and one in every sketch. Each element has a global
coordinate in its level that does not depend on how the tensors are sharded: the tensors of a level stand one after
another, each flattened. FSDP2 shards rows, so that a rank's part of a tensor is one contiguous range of coordinates.
Rows shorter than the longest end in zeros, which change no sum, no norm and no sketch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

# The coordinate of padding: below every real one, so that ``>= 0`` leaves padding out when whole levels are put
# together. With 0 instead, all padding would be written to a level's first element.
NOWHERE = -1


@dataclass(frozen=True)
class Slice:
    """This rank's part of one tensor; ``coordinate`` is the level coordinate of its first element."""

    name: str
    parameter: nn.Parameter
    coordinate: int
    size: int


@dataclass(frozen=True)
class Buffer:
    """A matrix [levels, width] and views of it, one a slice, in the shape of the slice's tensor."""

    matrix: Tensor
    pieces: list[Tensor]


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
        # Mostly all blocks are alike and nothing is padded: then ``flat`` is a view, and no copy in every step.
        self.padded = min(self.lengths, default=0) < self.width
        self.tensors = [part.parameter for level in self.slices for part in level]

    def __len__(self) -> int:
        return len(self.slices)

    def only(self, wanted: Callable[[str], bool]) -> Levels:
        """The same levels with the tensors alone whose names are ``wanted``; a level without any is left out."""
        numbers = {part.name: number for number, level in enumerate(self.slices) for part in level}
        named = [(part.name, part.parameter) for level in self.slices for part in level if wanted(part.name)]
        return Levels(named, numbers.__getitem__, self.total, self.part, self.parts)

    @torch.no_grad()
    def parameters(self, into: Buffer | None = None) -> Tensor:
        """A copy of the local values, float32 [levels, width]; in a buffer's memory where one is given."""
        return self.read(self.tensors, into)

    @torch.no_grad()
    def gradients(self, into: Buffer | None = None) -> Tensor:
        """A copy of the local gradients, likewise; a missing gradient is zero."""
        return self.read(gradients(self.tensors), into)

    @torch.no_grad()
    def set_parameters(self, matrix: Tensor) -> None:
        """Write local values [levels, width] into the parameters, in place."""
        # Private, but torch's optimisers rest on it: one call for all tensors instead of one for each.
        torch._foreach_copy_(locals_of(self.tensors), self.pieces(matrix))

    @torch.no_grad()
    def set_gradients(self, matrix: Tensor | Buffer) -> None:
        """Write local gradients [levels, width] back, in place; a missing gradient is made."""
        pieces = matrix.pieces if isinstance(matrix, Buffer) else self.pieces(matrix)
        torch._foreach_copy_(locals_of(gradients(self.tensors)), pieces)

    def buffer(self) -> Buffer:
        """Memory for one matrix that is used again: fresh memory in every step costs more than the copy."""
        matrix = torch.zeros(len(self), self.width, device=self.tensors[0].device)
        return Buffer(matrix, self.pieces(matrix))

    def read(self, tensors: Sequence[Tensor], into: Buffer | None) -> Tensor:
        """One call for all slices: a step has no time for one each."""
        buffer = into or self.buffer()
        torch._foreach_copy_(buffer.pieces, locals_of(tensors))
        return buffer.matrix

    def pieces(self, matrix: Tensor) -> list[Tensor]:
        """Views of the matrix, one a slice, each in the shape of its local tensor."""
        found = []
        for row, level in zip(matrix, self.slices, strict=True):
            values = row[: sum(part.size for part in level)].split([part.size for part in level])
            shapes = [tensor.shape for tensor in locals_of(part.parameter for part in level)]
            found += [piece.view(shape) for piece, shape in zip(values, shapes, strict=True)]
        return found

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
        buffer = self.buffer()
        names = [part.name for level in self.slices for part in level]
        for name, piece in zip(names, buffer.pieces, strict=True):
            piece.fill_(word in name)
        return buffer.matrix > 0

    def whole(self, matrix: Tensor) -> list[Tensor]:
        """Local values [levels, width] to whole levels, on every rank: each element has one owner, the rest add 0."""
        # A sum and no gather: shards are uneven, and empty where a tensor has fewer rows than there are ranks.
        result = []
        for row, where, size in zip(matrix, self.coordinates().to(matrix.device), self.sizes, strict=True):
            full = torch.zeros(size, dtype=matrix.dtype, device=matrix.device)
            full[where[where >= 0]] = row[where >= 0]
            result.append(self.total(full))
        return result

    def named_wholes(self, matrix: Tensor) -> dict[str, Tensor]:
        """Local values [levels, width] as whole tensors by name, in their own shapes, on every rank."""
        found: dict[str, Tensor] = {}
        for slices, values in zip(self.slices, self.whole(matrix), strict=True):
            pieces = values.split([part.parameter.numel() for part in slices])
            found |= {p.name: v.view(p.parameter.shape) for p, v in zip(slices, pieces, strict=True)}
        return found

    def local_of(self, wholes: Mapping[str, Tensor]) -> Tensor:
        """The inverse, from all tensors."""
        return self.local([torch.cat([wholes[part.name].flatten() for part in slices]) for slices in self.slices])

    def local(self, levels: list[Tensor]) -> Tensor:
        """Whole levels to this rank's [levels, width]."""
        where = self.coordinates().to(levels[0].device)
        rows = [torch.where(w >= 0, level[w.clamp(min=0)], 0) for level, w in zip(levels, where, strict=True)]
        return torch.stack(rows)


def sliced(parameters: list[tuple[str, nn.Parameter]]) -> tuple[list[Slice], int]:
    """The local slices of one level and its whole size."""
    slices, size = [], 0
    for name, parameter in parameters:
        first, count = local_range(parameter)
        slices.append(Slice(name, parameter, size + first, count))
        size += parameter.numel()
    return slices, size


def local_range(parameter: Tensor) -> tuple[int, int]:
    """Flat index of the first local element in the whole tensor, and the number of local elements."""
    data = parameter.data
    if not is_sharded(data):
        return 0, parameter.numel()
    # Private, but DTensor has no public way to ask where an uneven shard begins.
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, offset = compute_local_shape_and_global_offset(data.shape, data.device_mesh, data.placements)
    rows = parameter.numel() // parameter.shape[0]
    count = data.to_local().numel()
    # An empty shard's offset is behind the tensor's end.
    return (offset[0] * rows if count else 0), count


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether FSDP2 holds the tensor in shards.

    ``torch.distributed.tensor`` takes nearly as long to import as torch; while nobody has, there are no such tensors.
    """
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def locals_of(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [tensor.to_local() if is_sharded(tensor) else tensor for tensor in tensors]


def gradients(parameters: list[nn.Parameter]) -> list[Tensor]:
    """The gradients; one that is missing is made."""
    for parameter in parameters:
        if parameter.grad is None:
            # zeros_like keeps a DTensor's placements.
            parameter.grad = torch.zeros_like(parameter)
    return [parameter.grad for parameter in parameters if parameter.grad is not None]
