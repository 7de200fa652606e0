"""Which weights GORP trains whole and which by pairs, for each architecture and by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.models.config import BackboneConfig
from benchmarks.models.model import Model
from benchmarks.models.writer import AnswerWriter
from methods.gorp import GORPConfig, GradientProjection
from orchestrator.run.sharding import Place
from tests.benchmarks.test_memory_and_precision import batch_for
from tests.support.models import built, free_task, one_task
from tests.support.tiny import named

OPENED: dict[str, tuple[list[str], list[str]]] = {
    "micro_vit": (
        [f"blocks.{block}.mlp.fc1" for block in range(6)],
        [f"blocks.{block}.attn.qkv" for block in range(6)],
    ),
    "bert": (
        [f"encoder.layer.{block}.intermediate.dense" for block in range(2)],
        [f"encoder.layer.{block}.attention.self.{name}" for block in range(2) for name in ("query", "value")],
    ),
    "llama": (
        [f"model.layers.{block}.mlp.gate_proj" for block in range(3)],
        [f"model.layers.{block}.self_attn.{name}" for block in range(3) for name in ("q_proj", "v_proj")],
    ),
    "t5": (
        [f"decoder.block.{block}.layer.1.EncDecAttention.{name}" for block in range(2) for name in "qv"],
        [
            f"{side}.block.{block}.layer.0.SelfAttention.{name}"
            for side in ("encoder", "decoder")
            for block in range(2)
            for name in "qv"
        ],
    ),
}


def opened(tiny_models: dict[str, Path], kind: str, **settings: Any) -> tuple[Model, GradientProjection]:
    torch.manual_seed(0)
    model = built(named(tiny_models[kind]) if kind in tiny_models else BackboneConfig(name=kind))
    method = GradientProjection(GORPConfig.model_validate({"rank": 2} | settings))
    method.adapt(model.backbone, model.targets, [], 2)
    method.bind(Place().levels(model), None)
    return model, method


def with_gradients(model: Model, kind: str) -> set[str]:
    """Whatever a loss after some steps reaches, below ``backbone.``."""
    task = free_task() if isinstance(model, AnswerWriter) else one_task(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or name == "head.parts.0.weight":
            nn.init.normal_(parameter, std=0.1)
    model.eval()(batch_for(model, kind), task).mean().backward()
    found = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    return {name.removeprefix("backbone.") for name in found if not name.startswith("head.")}


def names_of(whole: list[str], pairs: list[str]) -> set[str]:
    return {f"{name}.weight" for name in whole} | {f"{name}.lora_{factor}" for name in pairs for factor in "AB"}


@pytest.mark.parametrize("kind", OPENED)
def test_each_architecture_opens_its_own_weights_and_no_pair_sits_on_them(
    tiny_models: dict[str, Path], kind: str
) -> None:
    model, method = opened(tiny_models, kind)
    whole, pairs = OPENED[kind]
    assert (method.full_rank, list(method.layers)) == (whole, pairs)
    assert {name.removeprefix("backbone.") for name, _ in model.adapters()} == names_of(whole, pairs)
    assert with_gradients(model, kind) == names_of(whole, pairs)


@pytest.mark.parametrize(("chosen", "whole"), [([], []), (["attn.proj"], [f"blocks.{n}.attn.proj" for n in range(6)])])
def test_weights_are_chosen_by_hand(tiny_models: dict[str, Path], chosen: list[str], whole: list[str]) -> None:
    model, method = opened(tiny_models, "micro_vit", full_rank=chosen)
    assert method.full_rank == whole
    assert with_gradients(model, "micro_vit") == names_of(whole, OPENED["micro_vit"][1])


def test_only_pairs_alone_are_an_update_of_low_rank(tiny_models: dict[str, Path]) -> None:
    _, method = opened(tiny_models, "micro_vit", full_rank=[])
    assert len(method.pairs()) == 6
    with pytest.raises(ValueError, match=r"trains blocks\.0\.mlp\.fc1 whole; train with method\.full_rank=\[\] to exp"):
        opened(tiny_models, "micro_vit")[1].pairs()
