"""The shipped backbone: that it is what it says, and that its pre-training is worth something."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.dataset import BenchmarkError
from benchmarks.model_card import datasets, frozen_accuracy
from benchmarks.models.backbones import check_backbone
from benchmarks.models.config import BackboneConfig
from benchmarks.models.heads import HeadConfig
from benchmarks.models.vision import MICRO_VIT_WEIGHTS
from benchmarks.sources import data_root
from tests.support.models import classifier

CIFAR = data_root() / "cifar100_100x100_50.npz"


def test_the_shipped_weights_are_small_half_precision_and_complete() -> None:
    tensors = load_file(MICRO_VIT_WEIGHTS)
    assert MICRO_VIT_WEIGHTS.stat().st_size <= 4_000_000
    assert {t.dtype for t in tensors.values()} == {torch.float16}
    model = classifier(BackboneConfig(), 10)
    kept = {k: v for k, v in tensors.items() if not k.startswith("head.")}
    assert model.backbone.state_dict().keys() == kept.keys()
    assert all(torch.equal(model.backbone.state_dict()[k], v.float()) for k, v in kept.items())


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_random_weights_are_clearly_worse_on_digits(seed: int) -> None:
    whole = datasets()["scikit-learn digits, 10 classes"]
    data = whole.model_copy(update={"train_per_class": 40, "test_per_class": 40})
    assert frozen_accuracy(data, True, seed) > frozen_accuracy(data, False, seed) + 0.1


@pytest.mark.realdata
@pytest.mark.skipif(not CIFAR.exists(), reason=f"no {CIFAR.name} in the data folder")
def test_random_weights_are_clearly_worse_on_cifar100() -> None:
    whole = datasets()["CIFAR-100, 100 classes, 79 train images each"]
    data = whole.model_copy(update={"classes": 20, "train_per_class": 20, "test_per_class": 10})
    assert frozen_accuracy(data, True, 0) > 2 * frozen_accuracy(data, False, 0)  # 0.49 and 0.17 of 20 classes


def test_images_of_another_size_are_resized() -> None:
    model = classifier(BackboneConfig(), 10).eval()
    large = torch.full((1, 3, 64, 64), 90, dtype=torch.uint8)
    small = torch.full((1, 3, 32, 32), 90, dtype=torch.uint8)
    assert torch.allclose(model.features(large), model.features(small), atol=1e-5)


def test_levels_are_the_blocks() -> None:
    model = classifier(BackboneConfig(), 2)
    names = [n for n, _ in model.named_parameters() if ".qkv." in n]
    assert [model.level_of(n) for n in names[::2]] == [0, 1, 2, 3, 4, 5]


def test_any_timm_model_can_be_named(tmp_path: Path) -> None:
    config = BackboneConfig(name="vit_tiny_patch16_224", pretrained=False)
    model = classifier(config, 7)
    save_file(model.backbone.state_dict(), tmp_path / "weights.safetensors")
    again = classifier(BackboneConfig(name=config.name, pretrained=tmp_path / "weights.safetensors"), 7)
    assert all(torch.equal(v, model.backbone.state_dict()[k]) for k, v in again.backbone.state_dict().items())
    assert len(again.blocks()) == 12


def test_wrong_names_and_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"backbone.name=micro_vti: .*did you mean micro_vit\?"):
        check_backbone(BackboneConfig(name="micro_vti"), HeadConfig())
    with pytest.raises(BenchmarkError, match=r"backbone.pretrained=.*none.safetensors: no such file"):
        check_backbone(BackboneConfig(pretrained=tmp_path / "none.safetensors"), HeadConfig())
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(BenchmarkError, match="not the weights of micro_vit"):
        classifier(BackboneConfig(pretrained=tmp_path / "other.safetensors"), 2)
