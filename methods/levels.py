"""The adapters of a model as levels of flat local slices, whole, replicated or sharded alike.

A level is a group of adapter tensors that has one row in every sketch. Each element has a global coordinate in its
level that does not depend on how the tensors are sharded: the tensors of a level stand one after another, each
flattened. FSDP2 shards rows, so that a rank's part of a tensor is one contiguous range of coordinates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


@dataclass(frozen=True)
class Slice:
    """This rank's part of one tensor; ``coordinate`` is the level coordinate of its first element."""

    parameter: nn.Parameter
    coordinate: int
    size: int


class Levels:
    """Local slices of all adapter tensors, grouped by level.

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
        grouped: dict[int, list[nn.Parameter]] = {}
        for name, parameter in parameters:
            grouped.setdefault(level_of(name), []).append(parameter)
        self.slices, self.sizes = [], []
        for level in sorted(grouped):
            slices, size = sliced(grouped[level])
            self.slices.append(slices)
            self.sizes.append(size)

    def __len__(self) -> int:
        return len(self.slices)

    def parameters(self) -> list[Tensor]:
        """A copy of each level's local values, float32 [local size]."""
        return [torch.cat([flat(s.parameter.data) for s in level]).float() for level in self.slices]

    def gradients(self) -> list[Tensor]:
        """A copy of each level's local gradient, float32 [local size]; a missing gradient is zero."""
        return [torch.cat([local_gradient(s) for s in level]).float() for level in self.slices]

    def set_gradients(self, vectors: list[Tensor]) -> None:
        """Write the local gradients back, in place."""
        for level, vector in zip(self.slices, vectors, strict=True):
            for part, values in zip(level, vector.split([s.size for s in level]), strict=True):
                gradient = part.parameter.grad
                if gradient is not None and part.size:
                    local(gradient).copy_(values.view_as(local(gradient)))

    def coordinates(self) -> list[Tensor]:
        """The level coordinate of every local element, int64 [local size]."""
        return [torch.cat([torch.arange(s.coordinate, s.coordinate + s.size) for s in level]) for level in self.slices]

    def whole(self, vectors: list[Tensor]) -> list[Tensor]:
        """Local slices to whole levels, on every rank: each element has one owner, the rest add zero."""
        result = []
        for vector, where, size in zip(vectors, self.coordinates(), self.sizes, strict=True):
            full = torch.zeros(size, dtype=vector.dtype, device=vector.device)
            full[where.to(vector.device)] = vector
            result.append(self.total(full))
        return result

    def local(self, vectors: list[Tensor]) -> list[Tensor]:
        """Whole levels to this rank's slices."""
        return [v[where.to(v.device)] for v, where in zip(vectors, self.coordinates(), strict=True)]


def sliced(parameters: list[nn.Parameter]) -> tuple[list[Slice], int]:
    """The local slices of one level and its whole size."""
    slices, size = [], 0
    for parameter in parameters:
        first, count = local_range(parameter)
        slices.append(Slice(parameter, size + first, count))
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


def flat(tensor: Tensor) -> Tensor:
    return local(tensor).detach().flatten()


def local_gradient(part: Slice) -> Tensor:
    if part.parameter.grad is None:
        return torch.zeros(part.size, device=part.parameter.device)
    return flat(part.parameter.grad)
