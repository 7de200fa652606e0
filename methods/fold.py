"""The adapters of a trained backbone folded into its weights, so that it computes alike and needs no method."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from methods.lora import LoRALinear
from methods.stacked.layer import StackedLinear


@torch.no_grad()
def fold(backbone: nn.Module) -> None:
    """Put the pre-trained layers back in their places, with what adapters add to them in their weights.

    Called while the method's ``inference`` lasts, so that what is folded is what an evaluation uses.
    """
    backbone.float()  # half precision would round a small update away
    for name, layer in list(backbone.named_modules()):
        if isinstance(layer, LoRALinear | StackedLinear):
            weight = layer.base.get_parameter("weight")
            weight.copy_(whole_weight(layer).T if stored_transposed(layer.base) else whole_weight(layer))
            backbone.set_submodule(name, layer.base)
    # What a method trains on the backbone itself, as SD-LoRA's magnitudes, is in the weights now.
    for name, parameter in list(backbone.named_parameters(recurse=False)):
        if parameter.requires_grad:
            delattr(backbone, name)


def whole_weight(layer: LoRALinear | StackedLinear) -> Tensor:
    """The matrix [out, in] that ``layer`` multiplies by: its answers to unit vectors, without the bias."""
    base = layer.base
    weight, bias = base.get_parameter("weight"), getattr(base, "bias", None)
    inputs = weight.shape[0] if stored_transposed(base) else weight.shape[1]
    units = torch.eye(inputs, dtype=weight.dtype, device=weight.device)
    without = {} if bias is None else {"base.bias": torch.zeros_like(bias)}
    answers: Tensor = functional_call(layer, without, units)
    return answers.T


def stored_transposed(base: nn.Module) -> bool:
    """Whether the weight is [in, out], as in transformers' Conv1D."""
    return not isinstance(base, nn.Linear)
