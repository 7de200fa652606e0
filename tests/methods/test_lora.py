"""The LoRA layer beside peft's: drawn alike, the same output and gradients."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from methods.lora import LoRA, LoRAConfig, LoRALinear

INPUTS, OUTPUTS, RANK, ALPHA = 12, 20, 3, 6


def wrapped(base: nn.Module) -> nn.Module:
    model = nn.Module()
    model.add_module("proj", base)
    return model


def pair(model: nn.Module) -> tuple[nn.Parameter, nn.Parameter]:
    down, up = (p for _, p in sorted(model.named_parameters()) if p.requires_grad)
    return down, up


def with_gradients(model: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    y = model.get_submodule("proj")(x)
    y.square().sum().backward()
    return y, *(p.grad for p in pair(model) if p.grad is not None)


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_output_and_gradients_are_pefts(kind: str) -> None:
    torch.manual_seed(0)
    base = nn.Linear(INPUTS, OUTPUTS) if kind == "linear" else Conv1D(OUTPUTS, INPUTS)
    ours, theirs = wrapped(base), wrapped(base)
    LoRA(LoRAConfig(rank=RANK, alpha=ALPHA)).adapt(ours, ["proj"], [], 1)
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["proj"]), theirs)
    with torch.no_grad():
        for own, other in zip(pair(ours), pair(theirs), strict=True):
            own.copy_(torch.randn(own.shape))
            other.copy_(own)
    x = torch.randn(5, 7, INPUTS)
    for own, other in zip(with_gradients(ours, x), with_gradients(theirs, x), strict=True):
        torch.testing.assert_close(own, other)


def test_a_fresh_pair_is_drawn_in_pefts_range_and_changes_nothing() -> None:
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(INPUTS, OUTPUTS), RANK, 2.0, 0.0)
    bound = INPUTS**-0.5  # Kaiming-uniform with a = sqrt(5)
    assert 0.9 * bound < float(layer.lora_A.weight.detach().abs().max()) <= bound
    x = torch.randn(4, INPUTS)
    assert not layer.lora_B.weight.any()
    torch.testing.assert_close(layer(x), layer.base(x))


def test_dropout_is_the_pairs_alone_and_only_in_training() -> None:
    torch.manual_seed(0)
    layer, x = LoRALinear(nn.Linear(INPUTS, OUTPUTS), RANK, 2.0, 0.5), torch.randn(4, INPUTS)
    torch.testing.assert_close(layer(x), layer.base(x))
    nn.init.normal_(layer.lora_B.weight)
    assert (layer(x) - layer(x)).abs().max() > 0.1
    layer.eval()
    expected = layer.base(x) + 2.0 * x @ layer.lora_A.weight.T @ layer.lora_B.weight.T
    torch.testing.assert_close(layer(x), expected)


def test_a_module_that_is_not_linear_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"^backbone.targets: proj is a Conv2d; name linear layers$"):
        LoRA(LoRAConfig()).adapt(wrapped(nn.Conv2d(3, 4, 1)), ["proj"], [], 1)


@pytest.mark.parametrize("kind", ["linear", "conv1d", "bfloat16"])
@pytest.mark.parametrize("rows", [2, 200])
def test_without_gradients_the_output_is_the_same(kind: str, rows: int) -> None:
    """Many rows go through one merged weight, where the base is a linear layer in float32."""
    torch.manual_seed(0)
    base = Conv1D(OUTPUTS, INPUTS) if kind == "conv1d" else nn.Linear(INPUTS, OUTPUTS)
    layer = LoRALinear(base, RANK, 2.0, 0.0)
    nn.init.normal_(layer.lora_B.weight)
    if kind == "bfloat16":
        layer.base.to(torch.bfloat16)
    x = torch.randn(rows, INPUTS, dtype=next(layer.base.parameters()).dtype)
    expected = layer(x)
    with torch.no_grad():
        assert layer.merging_pays(x) == (kind == "linear" and rows == 200)
        torch.testing.assert_close(layer(x), expected.detach())
