"""Language backbones: any transformers encoder, decoder or encoder-decoder, by folder or hub name.

``package:NAME/FOLDER`` names a folder inside an installed Python package, for models that come from PyPI.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN_TARGETS
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PretrainedConfig

from benchmarks.dataset import BenchmarkError
from benchmarks.models import vision
from benchmarks.models.weights import named_file
from benchmarks.sources import models_root

if TYPE_CHECKING:
    from benchmarks.models.backbones import BackboneConfig

Kind = Literal["encoder", "decoder", "encoder_decoder"]
AUTO = {"encoder": AutoModel, "decoder": AutoModelForCausalLM, "encoder_decoder": AutoModelForSeq2SeqLM}


def located(name: str) -> str | Path:
    """The folder of a local model, else the name itself for the hub; BenchmarkError for what can be neither."""
    if name.startswith("package:"):
        return in_package(name)
    for folder in (Path(name).expanduser(), models_root() / name):
        if folder.is_dir():
            return folder.absolute()
    if "/" in name and not name.startswith((".", "/", "~")):
        return name
    raise BenchmarkError(
        f"backbone.name={name}: no timm model, no folder here or in {models_root()}, and no hub name "
        f"(OWNER/NAME){vision.suggestion(name)}"
    )


def in_package(name: str) -> Path:
    package, _, folder = name.removeprefix("package:").partition("/")
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise BenchmarkError(f"backbone.name={name}: the package {package} is not installed; install it with pip")
    return Path(found.submodule_search_locations[0]) / folder


@cache
def architecture(name: str, gguf_file: str | None) -> PretrainedConfig:
    """The model's own description of itself."""
    try:
        return AutoConfig.from_pretrained(located(name), **gguf(gguf_file))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise BenchmarkError(
            f"backbone.name={name}: no model that transformers can read ({reason}); "
            "name a folder with config.json, or a hub name where there is a network"
        ) from None


def gguf(file: str | None) -> dict[str, str]:
    return {"gguf_file": file} if file else {}


def kind(config: BackboneConfig) -> Kind:
    """Encoders give features to a head; the other two write answers."""
    found = architecture(config.name, config.gguf_file)
    if found.is_encoder_decoder:
        return "encoder_decoder"
    writes = any(name.endswith(("CausalLM", "LMHeadModel")) for name in found.architectures or [])
    return "decoder" if writes or config.gguf_file else "encoder"


def load(config: BackboneConfig) -> nn.Module:
    """The backbone in float32, with its language-modelling head where it writes answers."""
    auto = AUTO[kind(config)]
    if config.pretrained is True:
        return auto.from_pretrained(located(config.name), dtype="float32", **gguf(config.gguf_file))
    backbone: nn.Module = auto.from_config(architecture(config.name, config.gguf_file))
    if file := named_file(config):
        load_weights(backbone, file, config)
    return backbone


def load_weights(backbone: nn.Module, file: Path, config: BackboneConfig) -> None:
    """Load all weights from safetensors; weights that are tied to others may be missing in the file."""
    missing, unexpected = backbone.load_state_dict({k: v.float() for k, v in load_file(file).items()}, strict=False)
    tied = set(getattr(backbone, "all_tied_weights_keys", None) or {})
    lost = [name for name in missing if name not in tied]
    if lost or unexpected:
        what = f"{lost[0]!r} is missing" if lost else f"{unexpected[0]!r} is not one of its"
        raise BenchmarkError(f"backbone.pretrained={file}: not the weights of {config.name} ({what})")


def known_targets(config: BackboneConfig) -> tuple[str, ...] | None:
    """Where peft puts LoRA on this architecture (query and value projections); None if it does not know it."""
    found = KNOWN_TARGETS.get(architecture(config.name, config.gguf_file).model_type)
    return tuple(found) if found else None
