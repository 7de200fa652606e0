"""Weights that are read last: the model ends as its library reads it, and each worker reads its own rows alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
)

from benchmarks.models import language, vision
from benchmarks.models.config import BackboneConfig
from benchmarks.models.deferred import fill, filled, sources
from benchmarks.models.tensor_files import StoredTensor, stored_tensors
from methods.levels import locals_of
from methods.lora import LoRA, LoRAConfig
from orchestrator.run.sharding import Place, adapters_and_head
from tests.support.models import built
from tests.support.pair import WORLD, Pair
from tests.support.tiny import MODELS, named

LIBRARY: dict[str, Any] = {
    "bert": AutoModel,
    "llama": AutoModelForCausalLM,
    "gpt2": AutoModelForCausalLM,
    "t5": AutoModelForSeq2SeqLM,
    "bart": AutoModelForSeq2SeqLM,
}


def same_state(found: nn.Module, expected: nn.Module) -> bool:
    """All parameters, and all buffers, those included that are in no file."""
    pairs = [(found.named_parameters(remove_duplicate=False), expected.named_parameters(remove_duplicate=False))]
    pairs.append((found.named_buffers(), expected.named_buffers()))  # type: ignore[arg-type]
    for mine, others in ((dict(one), dict(other)) for one, other in pairs):
        assert mine.keys() == others.keys()
        if not all(torch.equal(mine[name], others[name]) and mine[name].dtype == others[name].dtype for name in mine):
            return False
    return True


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_is_what_transformers_reads(tiny_models: dict[str, Path], kind: str) -> None:
    deferred = language.load(named(tiny_models[kind]))
    assert all(parameter.is_meta for parameter in deferred.parameters())
    expected = LIBRARY[kind].from_pretrained(tiny_models[kind], dtype=torch.float32)
    found = filled(deferred)
    assert same_state(found, expected) and found.training == expected.training
    tied = [id(parameter) for parameter in found.parameters()]
    assert len(tied) == len(list(expected.parameters())), "what was tied still is"


def test_a_body_is_read_from_a_whole_model_and_a_whole_model_from_a_body(tmp_path: Path) -> None:
    sizes = {"vocab_size": 24, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertForMaskedLM(BertConfig(**sizes, intermediate_size=8)).save_pretrained(tmp_path / "bert")
    GPT2LMHeadModel(GPT2Config(vocab_size=24, n_embd=8, n_layer=2, n_head=2)).save_pretrained(tmp_path / "gpt2")
    file = tmp_path / "gpt2" / "model.safetensors"
    bare = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
    save_file(bare, file, metadata={"format": "pt"})
    # The whole BERT has no pooler, which transformers draws: nothing uses it, and all else is read.
    bert = filled(language.load(BackboneConfig(name=str(tmp_path / "bert"))))
    stored = load_file(tmp_path / "bert" / "model.safetensors")
    read = {f"bert.{name}": tensor for name, tensor in bert.state_dict().items() if "pooler" not in name}
    assert all(torch.equal(tensor, stored[name]) for name, tensor in read.items())
    gpt2 = language.load(BackboneConfig(name=str(tmp_path / "gpt2")))
    assert all(parameter.is_meta for parameter in gpt2.parameters())
    assert same_state(filled(gpt2), AutoModelForCausalLM.from_pretrained(tmp_path / "gpt2"))


def test_a_model_in_parts_is_read_whole(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    expected = AutoModelForCausalLM.from_pretrained(tiny_models["llama"])
    expected.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    (tmp_path / "other.safetensors").write_bytes(b"no part of it")
    assert same_state(filled(language.load(BackboneConfig(name=str(tmp_path)))), expected)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "mobilevit_xxs", "swin_tiny_patch4_window7_224"])
def test_an_image_model_is_what_timm_made(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    expected = timm.create_model(name, num_classes=0)
    save_file({k: v.contiguous() for k, v in expected.state_dict().items()}, tmp_path / "own.safetensors")
    backbone, _, _ = vision.load(BackboneConfig(name=name, pretrained=tmp_path / "own.safetensors"))
    assert same_state(filled(backbone), expected)


def test_rows_of_every_type_are_read_as_safetensors_reads_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    floats = {str(kind): torch.randn(7, 3, 2).to(kind) for kind in (torch.float64, torch.float16, torch.bfloat16)}
    whole = {"int64": torch.arange(12).reshape(6, 2), "bool": torch.tensor([True, False]), "none": torch.empty(0, 4)}
    save_file(floats | whole | {"number": torch.tensor(3.5)}, tmp_path / "a.safetensors")
    stored = stored_tensors([tmp_path / "a.safetensors"])
    for name, tensor in load_file(tmp_path / "a.safetensors").items():
        expected = tensor.float() if tensor.dtype.is_floating_point else tensor
        assert torch.equal(stored[name].rows(), expected) and stored[name].rows().dtype == expected.dtype
    assert torch.equal(stored["torch.float16"].rows(2, 5), floats["torch.float16"][2:5].float())
    assert stored["torch.bfloat16"].rows(7, 7).shape == (0, 3, 2)


def on_two(process: int, folder: Path) -> None:
    """Shard a model whose weights lie in a file; note what was read, and what this worker holds."""
    read: list[tuple[str, int]] = []
    elements = StoredTensor.elements

    def counted(self: StoredTensor, first: int, stop: int, dtype: torch.dtype) -> Tensor:
        read.append((str(self.start), stop - first))
        return elements(self, first, stop, dtype)

    with pytest.MonkeyPatch.context() as patched:
        model = deferred_model(folder)
        patched.setattr(StoredTensor, "elements", counted)
        Place(process, WORLD, "fsdp2", by_blocks_from=0).spread(model)
    trained = adapters_and_head(model)
    write_held(model, folder / f"{process}.safetensors")
    save_file(trained, folder / f"trained{process}.safetensors")
    (folder / f"{process}.json").write_text(json.dumps(read))


def small_on_two(process: int, folder: Path) -> None:
    model = deferred_model(folder)
    Place(process, WORLD, "fsdp2").spread(model)
    write_held(model, folder / f"{process}.safetensors")


def write_held(model: Any, file: Path) -> None:
    """What this worker has of each parameter."""
    held = dict(zip(dict(model.named_parameters()), locals_of(model.parameters()), strict=True))
    save_file({name: tensor.detach().clone() for name, tensor in held.items()}, file)


def test_a_small_backbone_is_whole_on_every_worker_and_its_adapters_are_split(pair: Pair, tmp_path: Path) -> None:
    write_weights(tmp_path)
    alone = filled(deferred_model(tmp_path))
    pair.run(small_on_two, tmp_path)
    shards = [load_file(tmp_path / f"{process}.safetensors") for process in range(WORLD)]
    for name, value in alone.named_parameters():
        found = [shard[name] for shard in shards]
        expected = torch.cat(found) if value.requires_grad else found[0]
        assert torch.equal(expected, value) and (value.requires_grad or torch.equal(found[1], value)), name


def write_weights(folder: Path) -> None:
    """The file that ``deferred_model`` reads."""
    torch.manual_seed(1)
    made = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    save_file({name: value.contiguous() for name, value in made.state_dict().items()}, folder / "own.safetensors")


def deferred_model(folder: Path) -> Any:
    from benchmarks.models.backbones import build_model
    from benchmarks.models.heads import HeadConfig
    from tests.support.models import one_task_stream

    config = BackboneConfig(name="vit_tiny_patch16_224", pretrained=folder / "own.safetensors")
    model = build_model(config, HeadConfig(kind="linear"), one_task_stream(3), seed=4)
    LoRA(LoRAConfig()).adapt(model.backbone, model.targets, ["blocks.0"], 1)
    return model


def test_each_worker_reads_its_own_rows_alone_and_all_start_alike(pair: Pair, tmp_path: Path) -> None:
    write_weights(tmp_path)
    alone = deferred_model(tmp_path)
    size = sum(stored.rows().numel() for stored in sources(alone).values())
    fill(alone, sources(alone), lambda parameter, stored: stored.rows())
    pair.run(on_two, tmp_path)
    shards = [load_file(tmp_path / f"{process}.safetensors") for process in range(WORLD)]
    for name, value in alone.named_parameters():
        assert torch.equal(torch.cat([shard[name] for shard in shards]), value), name
    counts = [sum(count for _, count in json.loads((tmp_path / f"{n}.json").read_text())) for n in range(WORLD)]
    assert sum(counts) == size and max(counts) < 0.51 * size
    first = load_file(tmp_path / "trained0.safetensors")
    assert first and all(torch.equal(value, dict(alone.named_parameters())[name]) for name, value in first.items())


def test_other_names_are_left_to_transformers(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    """As those that an earlier version of a library gave."""
    folder = tmp_path / "old"
    AutoModel.from_pretrained(tiny_models["bert"]).save_pretrained(folder)
    file = folder / "model.safetensors"
    renamed = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): value for name, value in load_file(file).items()}
    save_file(renamed, file, metadata={"format": "pt"})
    found = language.load(BackboneConfig(name=str(folder)))
    assert not any(parameter.is_meta for parameter in found.parameters())
    assert same_state(found, built(named(tiny_models["bert"])).backbone)
