"""The shipped backbone: that it is what it says, and that its pre-training is worth something."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.backbones import MICRO_VIT_WEIGHTS, BackboneConfig, build_classifier, check_backbone, level_of
from benchmarks.dataset import BenchmarkError, Dataset, StreamConfig
from benchmarks.images import digits
from benchmarks.model_card import datasets, frozen_accuracy
from benchmarks.sources import data_root

CIFAR = data_root() / "cifar100_100x100_50.npz"


def test_the_shipped_weights_are_small_half_precision_and_complete() -> None:
    tensors = load_file(MICRO_VIT_WEIGHTS)
    assert MICRO_VIT_WEIGHTS.stat().st_size <= 4_000_000
    assert {t.dtype for t in tensors.values()} == {torch.float16}
    model = build_classifier(BackboneConfig(), 10)
    kept = {k: v for k, v in tensors.items() if not k.startswith("head.")}
    assert model.backbone.state_dict().keys() == kept.keys()
    assert all(torch.equal(model.backbone.state_dict()[k], v.float()) for k, v in kept.items())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_random_weights_are_clearly_worse_on_digits(seed: int) -> None:
    data = digits(StreamConfig(name="digits", source="digits", tasks=1))
    assert frozen_accuracy(data, True, seed) > frozen_accuracy(data, False, seed) + 0.1


@pytest.mark.realdata
@pytest.mark.skipif(not CIFAR.exists(), reason=f"no {CIFAR.name} in the data folder")
def test_random_weights_are_clearly_worse_on_cifar100() -> None:
    whole = datasets()["CIFAR-100, 100 classes, 80 train images each"]
    every_third = [part.take(torch.arange(0, len(part), 3)) for part in (whole.train, whole.test)]
    data = Dataset(*every_third, whole.class_names)
    assert frozen_accuracy(data, True, 0) > 2 * frozen_accuracy(data, False, 0)


def test_images_of_another_size_are_resized() -> None:
    model = build_classifier(BackboneConfig(), 10).eval()
    large = torch.full((1, 3, 64, 64), 90, dtype=torch.uint8)
    small = torch.full((1, 3, 32, 32), 90, dtype=torch.uint8)
    assert torch.allclose(model.features(large), model.features(small), atol=1e-5)


def test_levels_are_the_blocks() -> None:
    names = [n for n, _ in build_classifier(BackboneConfig(), 2).named_parameters() if ".qkv." in n]
    assert [level_of(n) for n in names[::2]] == [0, 1, 2, 3, 4, 5]


def test_any_timm_model_can_be_named(tmp_path: Path) -> None:
    config = BackboneConfig(name="vit_tiny_patch16_224", pretrained=False)
    model = build_classifier(config, 7)
    save_file(model.backbone.state_dict(), tmp_path / "weights.safetensors")
    again = build_classifier(BackboneConfig(name=config.name, pretrained=tmp_path / "weights.safetensors"), 7)
    assert all(torch.equal(v, model.backbone.state_dict()[k]) for k, v in again.backbone.state_dict().items())
    assert len(again.blocks()) == 12


def test_wrong_names_and_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"backbone.name=micro_vti: .*did you mean micro_vit\?"):
        check_backbone(BackboneConfig(name="micro_vti"))
    with pytest.raises(BenchmarkError, match=r"backbone.pretrained=.*none.safetensors: no such file"):
        check_backbone(BackboneConfig(pretrained=tmp_path / "none.safetensors"))
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(BenchmarkError, match="not the weights of micro_vit"):
        build_classifier(BackboneConfig(pretrained=tmp_path / "other.safetensors"), 2)
