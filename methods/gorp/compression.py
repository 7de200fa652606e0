"""One-sided compression of a matrix's gradients, and the side that stays free for protection.

Of a gradient G [m, n], m >= n, right compression keeps G V [m, rank]; else left compression keeps U^T G, here as its
transpose G^T U [n, rank]. The rows of these values are true outputs or inputs of the layer whatever the basis is, so
that a space on them survives a refresh of the basis. Without compression the values are G itself.

A basis is the span of the leading singular vectors on the shorter side, found by a randomised range finder with one
power step and a Rayleigh-Ritz step (Halko, Martinsson, Tropp 2011, algorithms 4.4 and 5.1): three passes over G.

Where the matrix is split by rows, right compression exchanges [n, rank + 8] at a refresh, and left compression [n,
rank] in every step and [n, rank + 8] twice and [m, rank + 8] at a refresh; beyond that only squares of width rank + 8.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from methods.gorp.rows import Rows, wide
from methods.gorp.space import protect, times

EXTRA = 8  # directions beside the wanted ones: with 8, the chance of a poor range is negligible (Halko et al., 10.3)
RANK_DEFICIENT = 1e-14  # of the largest eigenvalue of a Gram matrix in float64; below is rounding


@dataclass(frozen=True)
class Compression:
    """Of one parameter: ``rank`` None keeps its gradients as they are, of any shape.

    ``free``: the side that a protected space lives on, "rows" in R^m or "columns" in R^n; None: nothing is protected.
    ``number`` sets the parameter's random directions apart from those of others.
    """

    rows: Rows
    number: int
    rank: int | None = None
    free: Literal["rows", "columns"] | None = None

    @classmethod
    def of(cls, group: Mapping[str, Any], parameter: Tensor, number: int, label: str) -> Compression:
        """What the options of a parameter's group make of it; ValueError where they do not suit its shape."""
        if not group["projected"]:
            return cls(Rows.of(parameter), number)
        if parameter.dim() != 2:
            raise ValueError(f"{label} is not a matrix; put it into a group with projected=False")
        least, rank = min(parameter.shape), group["rank"]
        if rank is not None and rank > least:
            raise ValueError(f"rank {rank} of {label} is above {least}; take at most that, or None not to compress")
        rank = None if rank == least else rank
        outputs = parameter.shape[0] >= parameter.shape[1]
        if group["side"] == "rows" and rank is not None and not outputs:
            raise ValueError(
                f"side='rows' of {label} needs rank=None, as its compression mixes the rows; or side='free'"
            )
        found = cls(Rows.of(parameter), number, rank, "rows" if outputs or group["side"] == "rows" else "columns")
        if found.rank is not None and found.rows.group is not None and group["refresh"] == "svd":
            raise ValueError(f"refresh='svd' of {label} needs whole matrices, and it is split; take 'randomised'")
        return found

    def fresh(self, parameter: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """Zeros for the values' moments ``names``, and for the basis; an empty space."""
        local = Rows.local(parameter.detach())
        dtype = wide(local.dtype)
        found = {"space": local.new_zeros(self.rows.count if self.free == "rows" else self.size, 0, dtype=dtype)}
        if self.rank is None:
            return found | {name: torch.zeros_like(local, dtype=dtype) for name in names}
        basis, values = reversed(local.shape) if not self.left else local.shape
        found["basis"] = local.new_zeros(basis, self.rank, dtype=dtype)
        return found | {name: local.new_zeros(values, self.rank, dtype=dtype) for name in names}

    @property
    def left(self) -> bool:
        """Whether the basis is on the rows."""
        return self.rank is not None and self.free == "columns"

    @property
    def size(self) -> int:
        """Dimensions of the free side."""
        return self.rows.shape[self.free == "columns"] if self.free else 0

    def is_split(self, name: str) -> bool:
        """Whether the state ``name`` is split as the matrix's rows are; what is not is the same on every rank."""
        if name == "space":
            return self.free == "rows"
        return self.left if name == "basis" else not self.left

    def protected(self, values: Tensor, space: Tensor) -> Tensor:
        """``values`` without their part in ``space``, exactly zero where it spans everything."""
        if not space.shape[1]:
            return values
        if space.shape[1] == self.size:  # else rounding would be left, which Adam enlarges to full steps
            return torch.zeros_like(values)
        if self.free == "columns" and self.rank is None:
            return protect(values, space, "columns")
        return protect(values, space, total=self.rows.total if self.free == "rows" else None)

    def carriers(self, summary: Tensor) -> Tensor:
        """A summary [like the values] as a whole matrix [size, c], on every rank."""
        whole = self.rows.whole(summary) if self.is_split("summary") else summary
        return whole.t() if self.free == "columns" and self.rank is None else whole

    def add(self, weight: Tensor, update: Tensor, basis: Tensor | None, factor: float) -> None:
        """weight += factor x the update in the weight's coordinates, in place and without a matrix between."""
        if basis is None:
            weight.add_(update, alpha=factor)
        else:
            self.tall(weight).addmm_(update.to(weight.dtype), basis.t().to(weight.dtype), alpha=factor)

    def compress(self, gradient: Tensor, vectors: Tensor) -> Tensor:
        """Gradient times vectors on the shorter side, which are split as a basis is."""
        product = times(self.tall(gradient), vectors).contiguous()
        return self.rows.total(product) if self.left else product

    def overlap(self, old: Tensor, new: Tensor) -> Tensor:
        """Coefficients [rank, rank] of the new basis in the old one."""
        product = old.t() @ new
        return self.rows.total(product) if self.left else product

    def sketch(self, gradient: Tensor, basis: Tensor, refreshes: int) -> Tensor:
        """The gradient times random directions, and times the ``basis`` there is after the first of the refreshes."""
        # Of a seed, the generator takes the lower 32 bits.
        generator = torch.Generator().manual_seed(self.number * 2**20 + refreshes)
        size = min(self.rows.shape)
        known = basis.shape[1] if refreshes else 0
        width = min(basis.shape[1] + EXTRA, size) - known
        drawn = torch.randn(size, width, generator=generator).to(basis)
        drawn = self.rows.own(drawn) if self.left else drawn
        return self.compress(gradient, torch.cat([basis, drawn], 1) if known else drawn)

    def refreshed(self, gradient: Tensor, sketch: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """A new basis, from the gradient's ``sketch``, and the gradient's values in it."""
        product = times(self.tall(gradient).t(), self.conditioned(sketch))
        found = torch.linalg.qr(self.rows.whole(product) if self.left else self.rows.total(product)).Q
        found = self.rows.own(found) if self.left else found
        values = self.compress(gradient, found)
        leading = torch.linalg.eigh(self.gram(values)).eigenvectors[:, -rank:].flip(1).to(found)
        return found @ leading, values @ leading

    def decomposed(self, gradient: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """The same from a full singular value decomposition; of whole matrices only."""
        vectors = torch.linalg.svd(self.tall(gradient), full_matrices=False).Vh
        basis = vectors[:rank].t().contiguous()
        return basis, self.compress(gradient, basis)

    def tall(self, matrix: Tensor) -> Tensor:
        """The matrix, or its transpose, with the basis on its columns."""
        return matrix.t() if self.left else matrix

    def conditioned(self, sketch: Tensor) -> Tensor:
        """Vectors that span what ``sketch`` spans and are nearly orthonormal.

        Without this the next product would square the fall of the singular values, and the last of them would vanish in
        float32. By eigenvectors, as a Cholesky factor needs full rank.
        """
        values, vectors = torch.linalg.eigh(self.gram(sketch))
        scale = torch.where(values > RANK_DEFICIENT * values[-1], values.rsqrt(), 0)
        return sketch @ (vectors * scale).to(sketch)

    def gram(self, tall: Tensor) -> Tensor:
        """Inner products of the columns, in float64."""
        product = tall.double().t() @ tall.double()
        return product if self.left else self.rows.total(product)


def rotate(state: dict[str, Any], coefficients: Tensor) -> None:
    """Moments and mean into the new basis, whose ``coefficients`` [rank, rank] are in the old one.

    Old second moments become those that a gradient with uncorrelated coordinates would have: a sum's variance adds up
    with squared coefficients. Coefficients that are not squared could make them negative.
    """
    for name in state.keys() & {"first", "mean"}:
        state[name] = state[name] @ coefficients
    if "second" in state:
        state["second"] = state["second"] @ coefficients.square()
