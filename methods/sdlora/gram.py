"""Inner products of low-rank directions, and how well old ones span a new one, without forming a product.

<B1 A1, B2 A2> is the sum of (B1' B2) * (A1 A2'), two small matrices. Everything here is in float64: a residual is a
difference of nearly equal numbers. Q counts projections, K stored directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST = 1e-12  # below it a direction is divided by this
SINGULAR = 1e-12  # eigenvalues of a Gram matrix below this share of the largest count as zero


def squares(a: Tensor, b: Tensor) -> Tensor:
    """|B A|^2 for A [Q, r, in] and B [Q, out, r]: [Q]."""
    a, b = a.double(), b.double()
    return ((b.mT @ b) * (a @ a.mT)).sum((-2, -1))


def normalisers(kind: str, a: Tensor, b: Tensor, together: Tensor) -> Tensor:
    """What divides the direction of each projection [Q]; ``together`` is |B A|^2 over all projections of the model."""
    if kind == "joint":
        found = together.sqrt().expand(len(a))
    elif kind == "product_fro":
        found = squares(a, b).sqrt()
    else:
        found = a.double().flatten(1).norm(dim=1) * b.double().flatten(1).norm(dim=1)
    return found.clamp(min=SMALLEST)


def products(stored_a: Tensor, stored_b: Tensor, ranks: list[int], a: Tensor, b: Tensor) -> Tensor:
    """Inner products of a new pair with each of the stored ones, which stand one after another: [Q, K]."""
    parts = ((stored_b.double().mT @ b.double()) * (stored_a.double() @ a.double().mT)).sum(-1)
    return torch.stack([part.sum(-1) for part in parts.split(ranks, dim=-1)], -1)


def grown(gram: Tensor, cross: Tensor, square: Tensor) -> Tensor:
    """``gram`` [Q, K, K] with one more row and column, of ``cross`` [Q, K] and ``square`` [Q]."""
    top = torch.cat([gram, cross[:, :, None]], 2)
    bottom = torch.cat([cross, square[:, None]], 1)
    return torch.cat([top, bottom[:, None, :]], 1)


@dataclass(frozen=True)
class Fit:
    """Least squares of a new direction by old ones: ``coefficients`` [Q, K], squared lengths of what they leave and of
    the direction, ``residual`` and ``square`` [Q]; Q is 1 where all projections share their coefficients.
    """

    coefficients: Tensor
    residual: Tensor
    square: Tensor

    def measured(self, kind: str) -> Tensor:
        """The residual [Q] as ``absorption.residual`` wants it measured."""
        if kind == "relative":
            return self.residual / self.square.clamp(min=SMALLEST**2)
        return self.residual.sqrt() if kind == "fro" else self.residual


def fit(gram: Tensor, cross: Tensor, square: Tensor, joint: bool) -> Fit:
    """Equation 7, for each projection or with one set of coefficients for all of them (``joint``).

    Directions that depend on one another leave the residual as it is, and the coefficients of least norm are taken.
    """
    if joint:
        gram, cross, square = gram.sum(0, True), cross.sum(0, True), square.sum(0, True)
    coefficients = (torch.linalg.pinv(gram, rtol=SINGULAR, hermitian=True) @ cross[:, :, None])[:, :, 0]
    explained = 2 * (coefficients * cross).sum(1) - torch.einsum("qk,qkl,ql->q", coefficients, gram, coefficients)
    return Fit(coefficients, (square - explained).clamp(min=0), square)
