"""A protected space: orthonormal directions S [d, k] in which a matrix must not move, collected task after task.

The directions come from a summary of each task's gradients by the energy rule of GPM (arXiv 2103.09762, equations 8
and 9), as GORP applies it (arXiv 2507.02503): what the space explains already counts, and each task adds the fewest
left singular vectors that reach the wanted share.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

Selection = Literal["reach", "below"]
Side = Literal["rows", "columns"]
ROUNDING = 1e-9  # in cap x d, so that 0.29 x 100 is 29


def protect(
    values: Tensor, space: Tensor, side: Side = "rows", total: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """``values`` [d, c] less their part in the span of ``space`` [d, k]: V - S (S^T V), never S S^T.

    ``columns``: values [c, d], and V - (V S) S^T. ``total`` adds over the ranks where the rows of both are split. An
    empty space returns ``values`` themselves.
    """
    if side == "columns":
        return protect(values.t(), space, "rows", total).t()
    if not space.shape[1]:
        return values
    inside = times(space.t(), values)
    return values - times(space, inside if total is None else total(inside))


def times(matrix: Tensor, vectors: Tensor) -> Tensor:
    """The product of a large matrix and few vectors, stored by columns.

    Computed as its transpose, for which libraries of matrix products use their fast kernels: the plain form took twice
    as long for a matrix stored by rows and six to ten times as long for one stored by columns.
    """
    return (vectors.t() @ matrix.t()).t()


def extend(
    space: Tensor, summary: Tensor, energy: float, cap: float, selection: Selection = "reach", label: str = "a space"
) -> Tensor:
    """``space`` [d, k] and after it the new directions that ``summary`` [d, c] brings, its columns being the carriers.

    With M the summary and M~ its part outside the space, ``reach`` adds the fewest left singular vectors j of M~ for
    which (|M|^2 - |M~|^2 + |M~_j|^2) / |M|^2 >= ``energy``; ``below``, which the released code counts, as many as
    there are j with |M~_j|^2 / |M~|^2 < ``energy``, one fewer and possibly none. Directions that rounding alone could
    make are never added. A warning that calls the space ``label`` is logged where it would exceed ``cap`` x d, or
    where it spans everything.
    """
    size, known = space.shape
    carriers = summary.double()
    # The stored space is orthonormal to its own precision only, which is too little to tell a small new part from it.
    old = torch.linalg.qr(space.double()).Q
    rest = carriers - old @ (old.t() @ carriers)
    vectors, values, _ = torch.linalg.svd(rest, full_matrices=False)
    length = torch.linalg.matrix_norm(carriers).item()
    noise = length * max(summary.shape) * torch.finfo(summary.dtype).eps
    wanted = min(count(values.square(), length**2, energy, selection), int((values > noise).sum()))
    added = limited(wanted, known, size, cap, label)
    return torch.cat([space, vectors[:, :added].to(space)], 1)


def count(squares: Tensor, whole: float, energy: float, selection: Selection) -> int:
    """How many singular vectors to add; ``squares`` of the singular values of M~, and ``whole`` = |M|^2."""
    captured = torch.cat([squares.new_zeros(1), squares.cumsum(0)])
    outside = captured[-1].item()
    if selection == "below":
        return int((captured[1:] < energy * outside).sum())
    return int((whole - outside + captured < energy * whole).sum())


def limited(wanted: int, known: int, size: int, cap: float, label: str) -> int:
    """``wanted`` new directions, or as many as ``cap`` leaves room for beside those ``known``."""
    most = math.floor(cap * size + ROUNDING)
    added = min(wanted, max(0, most - known))
    if added < wanted:
        logger.warning(
            "%s in %d dimensions is full at %d; new directions left out: %d", label, size, most, wanted - added
        )
    if added and known + added == size:
        logger.warning("%s spans all %d dimensions: its matrix does not move any more", label, size)
    return added


def check(space: Tensor, size: int, label: str) -> None:
    """ValueError unless ``space`` is [size, k] and its columns are orthonormal to 1e-4."""
    if space.dim() != 2 or space.shape[0] != size or space.shape[1] > size:
        raise ValueError(f"the space of {label} must be [{size}, k] with k <= {size}, got {list(space.shape)}")
    found = space.double().t() @ space.double()
    if not torch.allclose(found, torch.eye(space.shape[1], dtype=found.dtype, device=found.device), rtol=0, atol=1e-4):
        raise ValueError(
            f"the columns of the space of {label} are not orthonormal to 1e-4; give the Q of torch.linalg.qr"
        )
