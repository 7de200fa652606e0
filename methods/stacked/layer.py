"""A frozen linear layer with stored low-rank directions, whose number grows, and one low-rank pair that learns.

Past tasks stay one product however many they are: their factors are concatenated, and a fused layer's projections
share the product with x. ``product.py`` has the arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from methods.levels import local_range, locals_of
from methods.stacked.product import cheaper_form, stacked_linear, with_products


class StackedLinear(nn.Module):
    """y = base(x), plus (x [stored_A_p; A_p]^T * s_p) [stored_B_p, B_p]^T on the rows of each section p.

    ``sections`` are P equally wide slices of the output, each a projection that reads the same x: the whole output, or
    query and value of a fused layer. ValueError where they or ``rank`` do not fit ``base``, which gets frozen.

    - ``lora_A`` [P rank, in] and ``lora_B`` [P width, rank] learn, projection 0 first, as far as ``active``, the number
      of directions of each pair that take part; the rest gets zero gradients. A fresh pair is drawn as peft does it, B
      being zero.
    - ``stored_A`` [P, R, in] and ``stored_B`` [P, width, R] are float32 and no buffers: a wrapper that shards or
      broadcasts a model's tensors leaves them whole.
    - ``scales`` returns s [P, R + active], whose last ``active`` columns are those of the pair; what it depends on gets
      gradients. A method sets it; ones by default.
    - ``dropout`` is the share of the pair's input that training drops; stored directions see all of it.
    """

    def __init__(self, base: nn.Linear, rank: int, sections: Sequence[slice], dropout: float = 0.0) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.sections = checked_sections(sections, base.out_features)
        self.width = self.sections[0].stop - self.sections[0].start
        limit = min(base.in_features, self.width)
        if not 1 <= rank <= limit:
            raise ValueError(f"rank {rank}: a projection of {base.in_features} to {self.width} takes 1 to {limit}")
        self.rank = self.active = rank
        self.dropout = dropout
        self.scales: Callable[[], Tensor] = self.ones
        projections = len(self.sections)
        self.lora_A = nn.Parameter(torch.empty(projections * rank, base.in_features))
        self.lora_B = nn.Parameter(torch.zeros(projections * self.width, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # depends on the columns alone: alike in all projections
        self.stored_A = torch.zeros(projections, 0, base.in_features)
        self.stored_B = torch.zeros(projections, self.width, 0)
        self.unfolded: Tensor | None = None  # the local weight without the fold

    def forward(self, x: Tensor) -> Tensor:
        if self.unfolded is not None:
            return self.base(x)
        pair, scales = self.pair(self.lora_A, self.lora_B), self.scales()
        if self.training and self.dropout > 0:
            return self.with_dropout(x, *pair, scales)
        return self.product(x, *pair, scales)

    def product(self, x: Tensor, A: Tensor, B: Tensor, scales: Tensor) -> Tensor:
        weight = self.base.weight
        form = cheaper_form(scales.shape[1], self.base.in_features, self.width, weight.dtype)
        factors = (self.stored_A, self.stored_B, A, B, scales)
        return stacked_linear(form, x, weight, self.base.bias, factors, self.sections)

    def with_dropout(self, x: Tensor, A: Tensor, B: Tensor, scales: Tensor) -> Tensor:
        """The pair apart, as its input is another one than that of the stored directions."""
        stored = self.stored_A.shape[1]
        y = self.product(x, A[:, :0], B[..., :0], scales[:, :stored])
        dropped = functional.dropout(x, self.dropout)
        scaled = B * scales[:, None, stored:].to(B.dtype)
        for section, before, after in zip(self.sections, A, scaled, strict=True):
            y[..., section] += functional.linear(functional.linear(dropped, before), after)
        return y

    def pair(self, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        """What is active of tensors shaped as ``lora_A`` and ``lora_B``: [P, active, in] and [P, width, active]."""
        projections = len(self.sections)
        A = A.unflatten(0, (projections, self.rank))[:, : self.active]
        return A, B.unflatten(0, (projections, self.width))[..., : self.active]

    def ones(self) -> Tensor:
        return self.stored_A.new_ones(len(self.sections), self.stored_A.shape[1] + self.active)

    def store(self, A: Tensor, B: Tensor) -> None:
        """Append frozen directions A [P, r, in] and B [P, width, r]; ValueError unless they fit and are finite."""
        A, B = self.checked(A, B)
        self.stored_A = torch.cat([self.stored_A, A], 1)
        self.stored_B = torch.cat([self.stored_B, B], 2)

    def restore(self, A: Tensor, B: Tensor) -> None:
        """Put A [P, R, in] and B [P, width, R] in place of all stored directions; errors as in ``store``."""
        self.stored_A, self.stored_B = self.checked(A, B)

    def checked(self, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        """Copies in float32 beside the base."""
        projections, inputs = len(self.sections), self.base.in_features
        count = A.shape[1] if A.dim() == 3 else "r"
        wanted = (projections, count, inputs), (projections, self.width, count)
        if (tuple(A.shape), tuple(B.shape)) != wanted:
            found = f"A {tuple(A.shape)} and B {tuple(B.shape)}"
            raise ValueError(f"directions {found}: this layer stores A {wanted[0]} and B {wanted[1]}")
        if not (A.isfinite().all() and B.isfinite().all()):
            raise ValueError("directions A and B are not finite: training diverged, lower the learning rate")
        target = self.stored_A
        return A.detach().to(target, copy=True), B.detach().to(target, copy=True)

    @torch.no_grad()
    def delta(self, A: Tensor, B: Tensor, scales: Tensor) -> Tensor:
        """The whole update [out, in] that stored directions and a pair make of the weight; zero outside the sections.

        A and B are whole tensors shaped as ``lora_A`` and ``lora_B``, scales [P, R + active].
        """
        A, B = self.pair(A, B)
        rights = torch.cat([self.stored_A.to(A), A], 1)
        lefts = torch.cat([self.stored_B.to(A), B], 2) * scales[:, None].to(A)
        return with_products(A.new_zeros(self.base.out_features, self.base.in_features), rights, lefts, self.sections)

    @torch.no_grad()
    def fold(self, delta: Tensor) -> None:
        """Add a whole update [out, in] to the weight, of which each worker changes its own rows.

        Until ``unfold`` the layer is the base alone: directions and pair take no part. RuntimeError if folded already.
        """
        if self.unfolded is not None:
            raise RuntimeError("the layer is folded already: unfold it first")
        parameter = self.base.get_parameter("weight")
        [weight] = locals_of([parameter])
        # A copy, as subtracting the update again would not give the same bits.
        self.unfolded = weight.clone()
        start = local_range(parameter)[0] // self.base.in_features
        weight += delta[start : start + len(weight)].to(weight)

    @torch.no_grad()
    def unfold(self) -> None:
        """Put the weight back as it was, bit for bit; RuntimeError if nothing is folded."""
        if self.unfolded is None:
            raise RuntimeError("the layer is not folded: nothing to unfold")
        locals_of([self.base.weight])[0].copy_(self.unfolded)
        self.unfolded = None

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """Moves stored directions along with the base."""
        super()._apply(fn, recurse)
        device = self.base.weight.device
        self.stored_A, self.stored_B = self.stored_A.to(device), self.stored_B.to(device)
        return self


def checked_sections(sections: Sequence[slice], outputs: int) -> tuple[slice, ...]:
    """The sections, with their bounds written out; ValueError unless they are equally wide and inside the output."""
    bounds = [(s.start or 0, outputs if s.stop is None else s.stop) for s in sections]
    inside = all(0 <= start < stop <= outputs for start, stop in bounds)
    if (
        not inside
        or len({stop - start for start, stop in bounds}) != 1
        or any(s.step not in (None, 1) for s in sections)
    ):
        text = ", ".join(f"{start}:{stop}" for start, stop in bounds)
        raise ValueError(f"sections [{text}]: name equally wide ranges of rows inside the {outputs} outputs")
    return tuple(slice(start, stop) for start, stop in bounds)
