"""A frozen linear map plus scaled low-rank products, in two forms with gradients by hand.

On each section p of the output rows stands a projection of its own, all of them reading the same x:

    y = x W0^T + b,    y[section p] += (x R_p^T * s_p) L_p^T

R_p = [stored_A_p; A_p] and L_p = [stored_B_p, B_p] hold K directions each, s_p their K scales. Only x, the pair A, B
and the scales get gradients, and only where they ask for them; stored directions and W0 never do. A loop over tasks, as
the layer of SD-LoRA is written (Wu et al., ICLR 2025, equation 3), keeps one tensor as large as y for every old scale.

Both forms take x [n, in], weight [out, in], bias [out] or None, stored_A [P, R, in], stored_B [P, width, R],
A [P, r, in], B [P, width, r], scales [P, R + r] and the P sections. They agree up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

SINGLE = 32  # bits of an element, below which a weight rounds a small update away
Gradients = tuple[Tensor | None, ...]


def cheaper_form(directions: int, inputs: int, width: int, dtype: torch.dtype) -> type[Function]:
    """``TokenSpace`` while ``directions`` (K) is below a quarter of the projection's smaller side.

    For n tokens and d = in = width, token space costs 8 n d K in a step and weight space 2 n d^2, the one dense weight
    gradient that a frozen map has no need of: equal at K = d / 4. A weight of half precision cannot hold the sum
    W0 + L R while L R is small, so that it stays in token space.
    """
    few = 4 * directions < min(inputs, width)
    return TokenSpace if few or torch.finfo(dtype).bits < SINGLE else WeightSpace


def stacked_linear(
    form: type[Function],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    factors: Sequence[Tensor],
    sections: Sequence[slice],
) -> Tensor:
    """y [..., out] of x [..., in], in the type that a linear layer would compute in.

    Gradients come back in the tensors' own types. ``factors`` are stored_A, stored_B, A, B and scales.
    """
    dtype = computing_type(x)
    own = dtype if form is TokenSpace else weight.dtype
    bias = None if bias is None else bias.to(dtype)
    # Shaped outside: a view that a Function returns cannot be changed in place, as a residual stream may be.
    tokens = x.to(dtype).reshape(-1, x.shape[-1])
    y = form.apply(tokens, weight.to(own), bias, *(factor.to(own) for factor in factors), tuple(sections))
    return y.view(*x.shape[:-1], len(weight))


def computing_type(x: Tensor) -> torch.dtype:
    """What autocast makes of ``x``, which leaves double precision alone."""
    device = x.device.type
    cast = torch.is_autocast_enabled(device) and x.dtype != torch.float64
    return torch.get_autocast_dtype(device) if cast else x.dtype


class TokenSpace(Function):
    """Pushes the tokens through the directions; keeps x and x R^T [n, P, K]. All tensors are of one type."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stored_A: Tensor,
        stored_B: Tensor,
        A: Tensor,
        B: Tensor,
        scales: Tensor,
        sections: Sequence[slice],
    ) -> Tensor:
        inner = (x @ right(stored_A, A).flatten(0, 1).T).view(len(x), *scales.shape)
        y = functional.linear(x, weight, bias)
        scaled = left(stored_B, B) * scales[:, None]
        for section, values, factor in zip(sections, inner.unbind(1), scaled, strict=True):
            y[:, section].addmm_(values, factor.T)
        needs_scales = ctx.needs_input_grad[7]
        kept = inner if needs_scales else inner[..., stored_A.shape[1] :].contiguous()
        ctx.sections = sections
        ctx.save_for_backward(x, weight, stored_A, stored_B, A, B, scales, kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        x, weight, stored_A, stored_B, A, B, scales, inner = ctx.saved_tensors
        needs_x, *_, needs_A, needs_B, needs_scales, _ = ctx.needs_input_grad
        rank, stored = A.shape[1], stored_A.shape[1]
        for_x = for_A = for_B = for_scales = None
        pieces = [gradient[:, section] for section in ctx.sections]
        # Stored directions matter only on the way to x and to the scales.
        first = 0 if needs_x or needs_scales else stored
        outer = products(pieces, left(stored_B, B)[..., first:])
        if needs_scales:
            for_scales = (inner * outer).sum(0)
        if needs_x:
            scaled = right(stored_A, A) * scales[..., None]
            for_x = (gradient @ weight).addmm_(outer.flatten(1), scaled.flatten(0, 1))
        if needs_A:
            for_A = (outer[..., stored - first :].flatten(1).T @ x).view(A.shape) * scales[:, stored:, None]
        if needs_B:
            inner = inner[..., inner.shape[2] - rank :]
            dense = [piece.T @ values for piece, values in zip(pieces, inner.unbind(1), strict=True)]
            for_B = torch.stack(dense) * scales[:, None, stored:]
        return for_x, None, None, None, None, for_A, for_B, for_scales, None


class WeightSpace(Function):
    """Adds the products to the weight; keeps x, and forms the sum again for the backward pass.

    Weight and factors are of one type and the sum is rounded once, to the type of x. Kept sums would be as large as
    the backbone, whole on every worker even where it is sharded.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stored_A: Tensor,
        stored_B: Tensor,
        A: Tensor,
        B: Tensor,
        scales: Tensor,
        sections: Sequence[slice],
    ) -> Tensor:
        ctx.sections = sections
        ctx.save_for_backward(x, weight, stored_A, stored_B, A, B, scales)
        whole = with_products(weight, right(stored_A, A), left(stored_B, B) * scales[:, None], sections)
        return functional.linear(x, whole.to(x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        x, weight, stored_A, stored_B, A, B, scales = ctx.saved_tensors
        needs_x, *_, needs_A, needs_B, needs_scales, _ = ctx.needs_input_grad
        stored = stored_A.shape[1]
        for_x = for_A = for_B = for_scales = None
        rights, lefts = right(stored_A, A), left(stored_B, B)
        if needs_x:
            whole = with_products(weight, rights, lefts * scales[:, None], ctx.sections)
            for_x = gradient @ whole.to(gradient.dtype)
        if needs_A or needs_B or needs_scales:
            dense = weight_gradient(gradient, x, ctx.sections).to(weight.dtype)
        if needs_A:
            for_A = (B * scales[:, None, stored:]).mT @ dense
        first = 0 if needs_scales else stored
        if needs_B or needs_scales:
            outer = dense @ rights[:, first:].mT
        if needs_scales:
            for_scales = (lefts * outer).sum(1)
        if needs_B:
            for_B = outer[..., stored - first :] * scales[:, None, stored:]
        return for_x, None, None, None, None, for_A, for_B, for_scales, None


def right(stored_A: Tensor, A: Tensor) -> Tensor:
    """[P, K, in]"""
    return torch.cat([stored_A, A], 1)


def left(stored_B: Tensor, B: Tensor) -> Tensor:
    """[P, width, K]"""
    return torch.cat([stored_B, B], 2)


def with_products(weight: Tensor, rights: Tensor, lefts: Tensor, sections: Sequence[slice]) -> Tensor:
    """A copy of ``weight`` [out, in] plus L_p R_p on the rows of each section; the scales are in one of the factors."""
    result = weight.clone()
    for section, after, before in zip(sections, lefts, rights, strict=True):
        result[section].addmm_(after, before)
    return result


def products(pieces: Sequence[Tensor], factors: Tensor) -> Tensor:
    """The P pieces [n, width] times their factors [P, width, K], as [n, P, K]."""
    result = factors.new_empty(len(pieces[0]), len(factors), factors.shape[2])
    for piece, factor, place in zip(pieces, factors, result.unbind(1), strict=True):
        torch.mm(piece, factor, out=place)
    return result


def weight_gradient(gradient: Tensor, x: Tensor, sections: Sequence[slice]) -> Tensor:
    """g^T x on the rows of each section alone, [P, width, in]."""
    width = sections[0].stop - sections[0].start
    result = gradient.new_empty(len(sections), width, x.shape[1])
    for section, place in zip(sections, result, strict=True):
        torch.mm(gradient[:, section].T, x, out=place)
    return result
