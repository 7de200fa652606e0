"""Backbones of every architecture: what they are, where adapters go, which levels they have, and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel

from benchmarks.dataset import BenchmarkError, StreamConfig
from benchmarks.formats import ImageFormat, TextFormat
from benchmarks.models.backbones import check_backbone, input_format
from benchmarks.models.classifier import ImageClassifier, TextClassifier
from benchmarks.models.config import BackboneConfig
from benchmarks.models.heads import HeadConfig
from benchmarks.models.language import position_limit
from benchmarks.models.writer import Decoder, EncoderDecoder
from benchmarks.sources import models_root
from benchmarks.stream import build_stream
from orchestrator.settings.compose import load_experiment
from tests.support.models import adapted, built, told
from tests.support.tiny import POSITIONS, changed, named

DINOV2 = models_root() / "vit_small_patch14_dinov2.fp16.safetensors"


# --- what they are ---

BERT, LLAMA, GPT2 = "backbone.encoder.layer", "backbone.model.layers", "backbone.transformer.h"
BART = "backbone.model"
ARCHITECTURES = {
    "bert": (TextClassifier, ("query", "value"), {BERT: 4}),
    "llama": (Decoder, ("q_proj", "v_proj"), {LLAMA: 4}),
    "gpt2": (Decoder, ("c_attn",), {GPT2: 2}),
    "t5": (EncoderDecoder, ("q", "v"), {"backbone.encoder.block": 4, "backbone.decoder.block": 8}),
    "bart": (
        EncoderDecoder,
        ("q_proj", "v_proj"),
        {"backbone.model.encoder.layers": 4, "backbone.model.decoder.layers": 8},
    ),
}
BLOCKS = {"llama": 3}  # of each stack; others have two


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_an_architecture_tells_its_kind_its_targets_and_its_levels(tiny_models: dict[str, Path], kind: str) -> None:
    expected, targets, stacks = ARCHITECTURES[kind]
    model = built(named(tiny_models[kind]))
    assert type(model) is expected
    assert model.targets == targets
    assert model.block_names == [f"{stack}.{i}" for stack in stacks for i in range(BLOCKS.get(kind, 2))]
    of_level = Counter(model.level_of(name) for name, _ in adapted(model).adapters())
    assert of_level == {level: stacks[block.rpartition(".")[0]] for level, block in enumerate(model.block_names)}


def test_what_lies_outside_of_the_blocks_is_of_level_zero(tiny_models: dict[str, Path]) -> None:
    model = adapted(built(named(tiny_models["llama"], targets=["v_proj", "lm_head"])))
    names = [name for name, _ in model.adapters()]
    assert [model.level_of(name) for name in names if "lm_head" in name] == [0, 0]
    assert [model.level_of(name) for name in names if "v_proj" in name] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(("kind", "answers"), [("bert", False), ("llama", True), ("gpt2", True), ("bart", True)])
def test_texts_are_read_with_the_tokenizer_of_the_folder_up_to_its_positions(
    tiny_models: dict[str, Path], kind: str, answers: bool
) -> None:
    assert input_format(named(tiny_models[kind])) == TextFormat(str(tiny_models[kind]), answers, None, POSITIONS)


@pytest.mark.parametrize(("kind", "padding"), [("roberta", 1), ("mpnet", 1), ("xlm-roberta", 5)])
def test_positions_up_to_the_paddings_number_are_not_counted(tmp_path: Path, kind: str, padding: int) -> None:
    """As many tokens as the limit says are read, and one more is beyond the table of positions."""
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    about = AutoConfig.for_model(kind, **sizes, intermediate_size=16, max_position_embeddings=34, pad_token_id=padding)
    model = AutoModel.from_config(about)
    model.save_pretrained(tmp_path)
    limit = position_limit(named(tmp_path))
    assert limit == 34 - padding - 1
    tokens = torch.full((1, limit + 1), padding + 1)
    assert model(input_ids=tokens[:, :limit]).last_hidden_state.shape == (1, limit, 16)
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        model(input_ids=tokens)


@pytest.mark.parametrize("name", ["timm/vit_tiny_patch16_224.augreg_in21k", "hf-hub:timm/vit_tiny_patch16_224"])
def test_a_model_of_timm_may_be_named_as_on_the_hub(name: str) -> None:
    assert input_format(BackboneConfig(name=name)) == ImageFormat(224)


def test_relative_positions_have_no_limit(tiny_models: dict[str, Path]) -> None:
    assert input_format(named(tiny_models["t5"])) == TextFormat(str(tiny_models["t5"]), True, None, None)


def test_images_are_read_in_the_size_of_the_model_or_of_the_settings() -> None:
    assert input_format(BackboneConfig()) == ImageFormat(32)
    assert input_format(BackboneConfig(name="vit_tiny_patch16_224")) == ImageFormat(224)
    assert input_format(BackboneConfig(name="vit_tiny_patch16_224", image_size=64)) == ImageFormat(64)


@pytest.mark.parametrize(("name", "blocks"), [("micro_vit", 6), ("vit_tiny_patch16_224", 12)])
def test_a_vit_has_a_level_for_each_block(name: str, blocks: int) -> None:
    model = adapted(built(BackboneConfig(name=name, pretrained=name == "micro_vit")))
    assert type(model) is ImageClassifier and model.targets == ("qkv",)
    assert [model.level_of(name) for name, _ in model.adapters()[::2]] == list(range(blocks))


@pytest.mark.realdata
@pytest.mark.skipif(not DINOV2.exists(), reason=f"no {DINOV2.name} in the model folder")
def test_dinov2_is_read_from_its_file_for_images_of_another_size() -> None:
    config = load_experiment(["backbone=dinov2_small_file", "backbone.image_size=70"]).backbone
    model = adapted(built(config)).eval()
    assert len(model.blocks()) == len({model.level_of(name) for name, _ in model.adapters()}) == 12
    assert isinstance(model, ImageClassifier)
    assert model.features(torch.zeros(2, 3, 70, 70, dtype=torch.uint8)).shape == (2, 384)
    file = load_file(DINOV2)
    assert all(torch.equal(v, file[k].float()) for k, v in built(config).backbone.state_dict().items())


# --- targets ---


@pytest.mark.parametrize("targets", [["query"], ["attention.self.key", "dense"]])
def test_adapters_go_where_the_settings_say(tiny_models: dict[str, Path], targets: list[str]) -> None:
    model = adapted(built(named(tiny_models["bert"], targets=targets)))
    owners = {name.split(".lora_")[0] for name, _ in model.adapters()}
    assert owners and all(any(owner.endswith(f".{t}") for t in targets) for owner in owners)
    assert all(any(owner.endswith(f".{t}") for owner in owners) for t in targets)


@pytest.mark.parametrize("wrong", [["qurey"], ["query", "qurey"], ["self", "qurey"]])
def test_targets_that_are_not_there_are_told_with_those_there_are(
    tiny_models: dict[str, Path], wrong: list[str]
) -> None:
    missing = "self" if "self" in wrong else "qurey"
    assert told(named(tiny_models["bert"], targets=wrong)) == (
        f"backbone.targets: no linear module ends in {missing!r}; "
        f"the linear modules of {tiny_models['bert']} end in dense, key, query, value"
    )


def test_an_architecture_without_known_targets_asks_for_them(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(tiny_models["bert"], tmp_path / "model", model_type="splinter", architectures=["SplinterModel"])
    assert told(named(folder)) == (
        "backbone.targets: not known for this architecture; "
        f"the linear modules of {folder} end in dense, key, query, value"
    )
    assert built(named(folder, targets=["value"])).targets == ("value",)


def test_a_model_without_attention_has_no_targets_by_itself() -> None:
    line = told(BackboneConfig(name="resnet18", pretrained=False))
    assert line == (
        "backbone.targets: no linear module ends in 'qkv'; the linear modules of resnet18 end in nothing, it has none"
    )


# --- names ---


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("micro_vti", "backbone.name=micro_vti: no timm model, no folder here or in .*did you mean micro_vit.$"),
        ("./nothing/here", "backbone.name=./nothing/here: no timm model, no folder here"),
        ("nobody/nothing", r"backbone.name=nobody/nothing: no model that transformers can read \(.*where there is a n"),
        ("package:nopackage/x", "backbone.name=package:nopackage/x: the package nopackage is not installed; "),
        ("package:no.package/x", "backbone.name=package:no.package/x: the package no.package is not installed; "),
        ("package:timm/nothing", "backbone.name=package:timm/nothing: the package timm has no folder nothing$"),
    ],
)
def test_unknown_names_are_told(name: str, line: str) -> None:
    config = BackboneConfig(name=name)
    assert told(config).startswith(line.split(":")[0])
    with pytest.raises(BenchmarkError, match=f"^{line}"):
        check_backbone(config, HeadConfig())
    with pytest.raises(BenchmarkError, match=f"^{line}"):
        input_format(config)


@pytest.mark.parametrize(
    "content",
    [None, "{}", '{"model_type": "bert"', '{"model_type": "other"}', '{"model_type": "bert", "hidden_size": "wide"}'],
)
def test_a_folder_without_a_model_is_told(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    line = told(named(tmp_path))
    assert line.startswith(f"backbone.name={tmp_path}: no model that transformers can read (")


def test_a_gguf_file_that_is_none_is_told(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(tiny_models["llama"], tmp_path / "model")
    (folder / "model.gguf").write_bytes(b"nothing")
    assert told(named(folder, gguf_file="model.gguf")).startswith(f"backbone.name={folder}: no model that")


# --- lengths ---


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes of short texts."""
    monkeypatch.setenv("EVERGREEN_CACHE", str(tmp_path / "cache"))
    rows = [{"text": f"a {word} dog", "label": label} for label, word in (("yes", "big"), ("no", "bad"))] * 2
    for split in ("train", "test"):
        file = tmp_path / "texts" / "dogs" / f"{split}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "texts"


def widest(folder: Path, texts: Path, length: int, answer_length: int = 50) -> int:
    """Columns of the prepared texts."""
    text = {"length": length, "answer_length": answer_length}
    config = {"name": "dogs", "source": "jsonl_folder", "path": texts, "scenario": "task", "text": text}
    stream = build_stream(StreamConfig.model_validate(config), None, input_format(named(folder)))
    return stream.tasks[0].train.inputs.shape[1]


def test_texts_longer_than_the_positions_are_refused(tiny_models: dict[str, Path], texts: Path) -> None:
    assert widest(tiny_models["bert"], texts, POSITIONS) == 5
    line = "^benchmark.text.length=65: the backbone reads 64 tokens at most; use 64 or less$"
    with pytest.raises(BenchmarkError, match=line):
        widest(tiny_models["bert"], texts, POSITIONS + 1)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_prompt_has_to_leave_room_for_its_answer(tiny_models: dict[str, Path], texts: Path, kind: str) -> None:
    widest(tiny_models[kind], texts, 54, answer_length=10)
    line = "^benchmark.text.length=55: the backbone reads 64 tokens with an answer of 10 at most; use 54 or less$"
    with pytest.raises(BenchmarkError, match=line):
        widest(tiny_models[kind], texts, 55, answer_length=10)


def test_relative_positions_take_any_length(tiny_models: dict[str, Path], texts: Path) -> None:
    widest(tiny_models["t5"], texts, 10_000)
