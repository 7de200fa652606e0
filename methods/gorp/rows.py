"""A matrix that is whole on every rank, or split by rows over ranks as FSDP2 splits it.

Split, the ranks exchange only what ``total`` and ``whole`` are given; where every rank holds the matrix whole (one
process, DDP) both are the identity and nothing is exchanged. Shards may be uneven, and empty where there are more ranks
than rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from methods.levels import is_sharded


@dataclass(frozen=True)
class Rows:
    """This rank's ``count`` rows of a tensor of ``shape``, from row ``first`` on.

    ``group`` joins the ranks that hold the other rows; None: this rank holds all of them.
    """

    shape: tuple[int, ...]
    first: int
    count: int
    group: dist.ProcessGroup | None = None

    @classmethod
    def of(cls, parameter: Tensor) -> Rows:
        """How ``parameter`` is split; ValueError where it is split by anything but rows."""
        data, shape = parameter.data, tuple(parameter.shape)
        split = [n for n, p in enumerate(data.placements) if not p.is_replicate()] if is_sharded(data) else []
        if not is_sharded(data) or not split:
            return cls(shape, 0, shape[0] if shape else 1)
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        if len(split) > 1 or not data.placements[split[0]].is_shard(0):
            raise ValueError(f"placements {data.placements} of a {list(shape)} parameter; split it by rows: Shard(0)")
        mesh = data.device_mesh
        # Private, but DTensor has no public way to ask for the first row of an uneven shard.
        local, offset = compute_local_shape_and_global_offset(data.shape, mesh, data.placements)
        group = mesh.get_group(split[0]) if mesh.size(split[0]) > 1 else None
        return cls(shape, offset[0] if local[0] else 0, local[0], group)

    @staticmethod
    def local(tensor: Tensor) -> Tensor:
        """This rank's rows of a parameter or its gradient, in the same memory."""
        return tensor.to_local() if is_sharded(tensor) else tensor

    def total(self, part: Tensor) -> Tensor:
        """Sum of the ranks' parts, on every rank; may overwrite ``part``."""
        if self.group is None:
            return part
        # all_reduce refuses transposed views.
        part = part.contiguous()
        dist.all_reduce(part, group=self.group)
        return part

    def whole(self, rows: Tensor) -> Tensor:
        """Rows [count, ...] of every rank to all rows [shape[0], ...], on every rank."""
        if self.group is None:
            return rows
        # all_gather wants shards of equal size; a sum with zeros takes uneven and empty ones.
        found = rows.new_zeros(self.shape[0], *rows.shape[1:])
        found[self.first : self.first + self.count] = rows
        return self.total(found)

    def own(self, whole: Tensor) -> Tensor:
        """All rows [shape[0], ...] to this rank's rows [count, ...]."""
        return whole if self.group is None else whole[self.first : self.first + self.count].clone()


def wide(dtype: torch.dtype) -> torch.dtype:
    """What is computed and stored for values of ``dtype``: never less than float32."""
    return torch.promote_types(dtype, torch.float32)
