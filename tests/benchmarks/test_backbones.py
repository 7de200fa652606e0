"""The shipped backbone: that it is what it says, and that its pre-training is worth something."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from benchmarks.dataset import BenchmarkError
from benchmarks.formats import ImageFormat
from benchmarks.model_card import datasets, frozen_accuracy
from benchmarks.models.backbones import check_backbone, input_format
from benchmarks.models.config import BackboneConfig
from benchmarks.models.deferred import filled
from benchmarks.models.heads import HeadConfig
from benchmarks.models.vision import MICRO_VIT_WEIGHTS, load
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


VIT = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return classifier(BackboneConfig(name=VIT, pretrained=False), 7).backbone.state_dict()


def from_file(folder: Path, tensors: dict[str, torch.Tensor], name: str = VIT) -> dict[str, torch.Tensor]:
    save_file(tensors, folder / "weights.safetensors")
    return classifier(BackboneConfig(name=name, pretrained=folder / "weights.safetensors"), 7).backbone.state_dict()


@pytest.mark.parametrize("prefix", ["model.", "module.", "backbone.", "model.backbone.", "0.auto_model."])
def test_weights_are_found_behind_a_prefix_and_beside_a_classifier(
    tmp_path: Path, weights: dict[str, torch.Tensor], prefix: str
) -> None:
    file = {f"{prefix}{name}": tensor for name, tensor in weights.items()}
    found = from_file(tmp_path, file | {f"{prefix}head.weight": torch.zeros(3, 192), "head.bias": torch.zeros(3)})
    assert found.keys() == weights.keys() and all(torch.equal(t, weights[name]) for name, t in found.items())


def test_norms_that_a_model_has_below_its_head_are_read(tmp_path: Path) -> None:
    expected = classifier(BackboneConfig(name="mobilevit_xxs", pretrained=False), 7).backbone.state_dict()
    without_counts = {name: tensor for name, tensor in expected.items() if "num_batches" not in name}
    found = from_file(tmp_path, without_counts | {"head.fc.weight": torch.zeros(2, 320)}, "mobilevit_xxs")
    assert all(torch.equal(tensor, found[name]) for name, tensor in without_counts.items())
    norm = timm.create_model("convnext_atto", num_classes=0)
    assert "head.norm.weight" in norm.state_dict()
    norm.head.norm.weight.data.fill_(3)
    save_file(norm.state_dict(), tmp_path / "norm.safetensors")
    other = filled(load(BackboneConfig(name="convnext_atto", pretrained=tmp_path / "norm.safetensors"))[0])
    assert torch.equal(other.head.norm.weight, norm.head.norm.weight)


def test_weights_that_do_not_fit_are_named(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    def told(**tensors: torch.Tensor) -> str:
        changed = {name: tensor for name, tensor in (weights | tensors).items() if len(tensor)}
        with pytest.raises(BenchmarkError) as caught:
            from_file(tmp_path, {f"model.{name}": tensor for name, tensor in changed.items()})
        return str(caught.value).removeprefix(f"backbone.pretrained={tmp_path}/weights.safetensors: ")

    none, some = torch.empty(0), torch.zeros(2, 3)
    start = f"not the weights of {VIT} ("
    assert told(cls_token=none, pos_embed=none) == f"{start}missing: cls_token and 1 more)"
    assert told(more=some) == f"{start}not in the model: more)"
    assert told(**{"norm.bias": some}) == f"{start}of another shape: norm.bias [2, 3] and not [192])"
    told_of = f"{tmp_path}/weights.safetensors: norm.bias is stored as int8; give weights that are not quantised"
    assert told(**{"norm.bias": torch.zeros(192, dtype=torch.int8)}) == told_of
    twice = {f"{name}.{k}": t.clone() for name in ("student", "teacher") for k, t in weights.items()}
    with pytest.raises(BenchmarkError, match=r"has all weights more than once \(student.… and teacher.…\); keep one"):
        from_file(tmp_path, twice)


@pytest.mark.parametrize("old", [False, True])
def test_a_pickle_is_refused_with_the_way_out(tmp_path: Path, old: bool) -> None:
    file = tmp_path / "weights.bin"
    torch.save({"x": torch.zeros(1)}, file, _use_new_zipfile_serialization=not old)
    with pytest.raises(BenchmarkError) as caught:
        classifier(BackboneConfig(pretrained=file), 2)
    assert str(caught.value) == (
        f"backbone.pretrained={file}: a file of torch.save, which may run code when it is read; convert it with "
        "safetensors.torch.save_file(torch.load('weights.bin', weights_only=True), 'weights.safetensors')"
    )


@pytest.mark.parametrize("prefix", ["timm/", "hf-hub:timm/", "hf_hub:timm/"])
def test_timms_models_have_their_hub_names_too(prefix: str) -> None:
    config = BackboneConfig(name=f"{prefix}{VIT}.augreg_in21k", pretrained=False)
    assert config == BackboneConfig(name=f"{VIT}.augreg_in21k", pretrained=False)
    assert input_format(config) == ImageFormat(224) and len(classifier(config, 2).blocks()) == 12
    assert BackboneConfig(name="./timm/model").name == "./timm/model"


def test_unknown_weights_of_a_timm_model_are_told_with_those_there_are() -> None:
    line = rf"^backbone.name={VIT}.nothing: timm has no such weights of {VIT}; it has {VIT}.augreg_in21k, "
    with pytest.raises(BenchmarkError, match=line):
        check_backbone(BackboneConfig(name=f"{VIT}.nothing"), HeadConfig())
