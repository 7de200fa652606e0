"""``method.levels``: only the named transformer blocks get adapters."""

from __future__ import annotations

import pytest

from benchmarks.models.config import BackboneConfig
from methods.lora import LoRA, LoRAConfig, modules_to_adapt
from tests.support.models import classifier

BLOCKS = [f"blocks.{i}" for i in range(6)]


def adapted_blocks(levels: tuple[int, ...] | None, targets: tuple[str, ...] = ("qkv",)) -> list[str]:
    """Names of the modules of a micro ViT that got adapters."""
    model = classifier(BackboneConfig(), 3)
    LoRA(LoRAConfig(rank=2, levels=levels)).adapt(model.backbone, targets, BLOCKS, 1)
    names = [name for name, _ in model.adapters()]
    assert [model.level_of(name) for name in names] == sorted(model.level_of(name) for name in names)
    return list(dict.fromkeys(name.removeprefix("backbone.").partition(".lora_")[0] for name in names))


@pytest.mark.parametrize("levels", [(0,), (5,), (1, 4), (4, 1), (0, 1, 2, 3, 4, 5), (2, 2)])
def test_only_the_named_blocks_get_adapters(levels: tuple[int, ...]) -> None:
    assert adapted_blocks(levels) == [f"blocks.{level}.attn.qkv" for level in sorted(set(levels))]


def test_without_levels_every_block_gets_adapters() -> None:
    expected = [f"blocks.{level}.{name}" for level in range(6) for name in ("attn.qkv", "mlp.fc1")]
    assert adapted_blocks(None, ("qkv", "fc1")) == expected


@pytest.mark.parametrize("levels", [(9,), (), (-1,), (0, 6)])
def test_blocks_that_are_not_there_are_refused_in_one_line(levels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^method\.levels=\[.*\]: name some of the blocks 0 to 5$") as caught:
        adapted_blocks(levels)
    assert "\n" not in str(caught.value)
    assert str(list(levels)) in str(caught.value)


def test_blocks_without_a_module_to_adapt_are_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"^method\.levels=\[1\]: none of \['0\.attn\.qkv'\] is in these blocks$"):
        adapted_blocks((1,), ("0.attn.qkv",))


def test_a_target_is_the_end_of_a_name_or_all_of_it() -> None:
    """As ``lm_head`` is in a language model, and never the end of a word."""
    model = classifier(BackboneConfig(), 3)
    assert modules_to_adapt(model.backbone, ("blocks.3.attn.qkv", "kv"), BLOCKS, None) == ["blocks.3.attn.qkv"]
