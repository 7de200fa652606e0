"""Weights of backbones that read texts: from the folder, from a file or random, and always all of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM

from benchmarks.models.classifier import TextClassifier
from benchmarks.models.config import BackboneConfig
from benchmarks.models.weight_files import weight_files
from tests.support.models import built, told
from tests.support.tiny import MODELS, changed, named, sizes


def weights_of(config: BackboneConfig) -> dict[str, torch.Tensor]:
    return built(config).backbone.state_dict()


@pytest.mark.parametrize("kind", MODELS)
def test_weights_are_the_folder_s_a_file_s_or_random(tiny_models: dict[str, Path], kind: str) -> None:
    """The file lacks weights that are tied to others, and is in half precision."""
    folder, file = tiny_models[kind], tiny_models[kind].parent / f"{kind}.safetensors"
    expected = {k: v.half().float() for k, v in weights_of(named(folder)).items()}
    save_file({k: v.half() for k, v in load_file(folder / "model.safetensors").items()}, file)
    found = weights_of(named(folder, pretrained=file))
    assert expected.keys() == found.keys()
    assert all(v.dtype == torch.float32 and torch.equal(v, expected[k]) for k, v in found.items())
    random = weights_of(named(folder, pretrained=False))
    assert expected.keys() == random.keys()
    assert not any(torch.equal(v, expected[k]) for k, v in random.items() if v.ndim == 2 and "bias" not in k)


def test_the_tiny_models_do_tie_weights(tiny_models: dict[str, Path]) -> None:
    model = built(named(tiny_models["t5"])).backbone
    assert model.lm_head.weight is model.shared.weight
    assert "lm_head.weight" not in load_file(tiny_models["t5"] / "model.safetensors")


@pytest.mark.parametrize("pretrained", [True, False])
def test_weights_are_in_full_precision_whatever_the_folder_says(
    tiny_models: dict[str, Path], tmp_path: Path, pretrained: bool
) -> None:
    folder = changed(tiny_models["llama"], tmp_path / "model", dtype="bfloat16")
    assert {v.dtype for v in weights_of(named(folder, pretrained=pretrained)).values()} == {torch.float32}


def test_a_head_that_the_folder_has_besides_is_left_out_and_a_pooler_may_be_missing(tmp_path: Path) -> None:
    other = BertForMaskedLM(BertConfig(**sizes(intermediate_size=64)))
    other.save_pretrained(tmp_path)
    model = built(named(tmp_path))
    assert type(model) is TextClassifier
    expected = other.bert.encoder.layer[0].output.dense.weight
    assert torch.equal(model.backbone.encoder.layer[0].output.dense.weight, expected)


def test_a_file_of_other_weights_is_told(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    other = tiny_models["gpt2"] / "model.safetensors"
    line = f"backbone.pretrained={other}: not the weights of {tiny_models['llama']} ('"
    assert told(named(tiny_models["llama"], pretrained=other)).startswith(line)
    wider = changed(tiny_models["llama"], tmp_path / "wider", hidden_size=64)
    file = tiny_models["llama"] / "model.safetensors"
    line = f"backbone.pretrained={file}: not the weights of {wider} ('"
    assert told(named(wider, pretrained=file)).startswith(line)
    absent = tmp_path / "none.safetensors"
    line = f"backbone.pretrained={absent}: no such file, nor in the model folder"
    assert told(named(tiny_models["llama"], pretrained=absent)).startswith(line)


@pytest.mark.parametrize("name", ["micro_vit", "vit_tiny_patch16_224", "llama"])
def test_a_file_that_is_no_safetensors_is_told(tiny_models: dict[str, Path], tmp_path: Path, name: str) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"anything else but that")
    config = BackboneConfig(name=str(tiny_models.get(name, name)), pretrained=file)
    assert told(config).startswith(f"backbone.pretrained={file}: not a safetensors file (")


def test_a_folder_with_other_weights_or_none_is_told(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(tiny_models["llama"], tmp_path / "model", num_hidden_layers=4)
    assert told(named(folder)) == (
        f"backbone.name={folder}: not the weights of {folder} "
        "('model.layers.3.input_layernorm.weight' is missing or of another size); name others"
    )
    (folder / "model.safetensors").write_bytes(b"anything else but that")
    assert told(named(folder)).startswith(f"backbone.name={folder}: its weights cannot be loaded (")
    (folder / "model.safetensors").unlink()
    assert told(named(folder)).startswith(f"backbone.name={folder}: its weights cannot be loaded (")


def test_the_files_that_weights_come_from(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    folder, file = tiny_models["bert"], tmp_path / "own.safetensors"
    file.write_bytes((folder / "model.safetensors").read_bytes())
    assert weight_files(named(folder)) == [folder / "model.safetensors"]
    assert weight_files(named(folder, pretrained=file)) == [file]
    assert weight_files(named(folder, pretrained=False)) == []
    assert [found.name for found in weight_files(BackboneConfig())] == ["micro_vit.safetensors"]


def test_files_of_the_hub_are_found_once_they_are_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    config = BackboneConfig(name="vit_tiny_patch16_224.augreg_in21k")
    assert weight_files(config) == []
    stored = tmp_path / "models--timm--vit_tiny_patch16_224.augreg_in21k"
    snapshot = stored / "snapshots" / "0a1b"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"some")
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text("0a1b")
    assert weight_files(config) == [snapshot / "model.safetensors"]


def test_a_pointer_of_git_lfs_is_called_one(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "own.safetensors"
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    expected = f"backbone.pretrained={file}: only Git LFS's pointer to it is here; fetch it with git lfs pull"
    assert told(named(tiny_models["bert"], pretrained=file)) == told(BackboneConfig(pretrained=file)) == expected


def test_code_that_comes_with_a_model_is_neither_run_nor_asked_about(
    tiny_models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *words: pytest.fail("asked"))
    folder = tmp_path / "own"
    folder.mkdir()
    mapped = {"AutoConfig": "own.Config", "AutoModel": "own.Model"}
    (folder / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": mapped}))
    (folder / "own.py").write_text("raise SystemExit")
    said = told(named(folder))
    assert said.startswith(f"backbone.name={folder}: no model that transformers can read (") and "custom code" in said
