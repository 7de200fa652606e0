"""Vision backbones: any timm model by name; the micro ViT comes with the project."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from benchmarks.dataset import BenchmarkError
from benchmarks.models.config import MICRO_VIT, MICRO_VIT_PIXELS, BackboneConfig
from benchmarks.models.deferred import defer, without_weights
from benchmarks.models.tensor_files import StoredTensor
from benchmarks.models.weights import named_file, read_weights

TARGETS = ("qkv",)  # query, key and value in one projection, as timm's transformers have them
MICRO_VIT_WEIGHTS = Path(__file__).parents[1] / "weights" / "micro_vit.safetensors"


def own_image_size(name: str) -> int:
    """Side in pixels that the model was pre-trained with; BenchmarkError where timm has no such weights."""
    try:
        pretrained = timm.get_pretrained_cfg(name)
    except RuntimeError:
        model = name.split(".")[0]
        there = ", ".join(timm.list_pretrained(f"{model}.*")) or f"{model} alone"
        raise BenchmarkError(f"backbone.name={name}: timm has no such weights of {model}; it has {there}") from None
    return pretrained.input_size[-1] if pretrained else 224


def hub_name(name: str) -> str:
    """Where timm's weights of this name lie on the hub."""
    pretrained = timm.get_pretrained_cfg(name)
    return str(pretrained.hf_hub_id or f"timm/{name}") if pretrained else f"timm/{name}"


def suggestion(name: str) -> str:
    near = difflib.get_close_matches(name, [MICRO_VIT, *timm.list_models()], 1)
    return f"; did you mean {near[0]}?" if near else ""


def load(config: BackboneConfig) -> tuple[nn.Module, Tensor, Tensor]:
    """The backbone without classifier, and mean and deviation [3] of the pixels (0 to 1) that it expects.

    Weights of a file are left to be filled in, see ``deferred.py``; those that timm brings are there.
    """
    file = weights_file(config)
    make: Callable[[], nn.Module] = micro_vit if config.name == MICRO_VIT else partial(create, config)
    backbone = without_weights(make) if file else make()
    if config.name == MICRO_VIT:
        mean = std = torch.full((3,), 0.5)
    else:
        expected = timm.data.resolve_model_data_config(backbone)
        mean, std = torch.tensor(expected["mean"]), torch.tensor(expected["std"])
    if file:
        load_weights(backbone, file, config)
    return backbone, mean, std


def create(config: BackboneConfig) -> nn.Module:
    """timm's model; another image size than its own needs one that can interpolate its positions."""
    other_size = config.image_size not in (None, own_image_size(config.name))
    sized: dict[str, Any] = {"dynamic_img_size": True} if other_size else {}
    try:
        return timm.create_model(config.name, pretrained=config.pretrained is True, num_classes=0, **sized)
    except TypeError:
        raise BenchmarkError(
            f"backbone.image_size={config.image_size}: {config.name} reads images of "
            f"{own_image_size(config.name)} pixels only"
        ) from None
    except (OSError, RuntimeError) as error:
        raise BenchmarkError(
            f"backbone.name={config.name}: its weights cannot be had ({str(error).splitlines()[0]}); "
            "name a safetensors file with backbone.pretrained=FILE or say backbone.pretrained=false"
        ) from None


def micro_vit(classes: int = 0) -> VisionTransformer:
    """A ViT of 1.0 M parameters for 32 px images; ``classes=0`` leaves out the classifier."""
    return VisionTransformer(
        img_size=MICRO_VIT_PIXELS,
        patch_size=4,
        embed_dim=128,
        depth=6,
        num_heads=4,
        mlp_ratio=3,
        class_token=False,
        global_pool="avg",
        num_classes=classes,
    )


def weights_file(config: BackboneConfig) -> Path | None:
    """The safetensors file to read; None where timm brings the weights, or none are wanted."""
    shipped = config.pretrained is True and config.name == MICRO_VIT
    return MICRO_VIT_WEIGHTS if shipped else named_file(config)


def load_weights(backbone: nn.Module, file: Path, config: BackboneConfig) -> None:
    """Note where the file has all weights of the backbone, and read its buffers; a classifier is left out."""
    wanted = backbone.state_dict()
    tensors = by_own_names(read_weights(file), wanted, file)
    wrong = differences(tensors, wanted, classifiers(backbone))
    if wrong:
        raise BenchmarkError(f"backbone.pretrained={file}: not the weights of {config.name} ({'; '.join(wrong)})")
    defer(backbone, tensors)


def by_own_names(tensors: dict[str, StoredTensor], wanted: Iterable[str], file: Path) -> dict[str, StoredTensor]:
    """Without what training programs put before all names, as ``module.`` or ``model.backbone.``."""
    wanted = set(wanted)
    dots = [(name, place) for name in tensors for place in (0, *(m.end() for m in re.finditer(r"\.", name)))]
    found = Counter(name[:place] for name, place in dots if name[place:] in wanted)
    whole = [prefix for prefix, count in found.items() if count == len(wanted)]
    if len(whole) > 1:
        names = " and ".join(f"{prefix}…" for prefix in whole)
        raise BenchmarkError(f"backbone.pretrained={file}: has all weights more than once ({names}); keep one of them")
    prefix = max(found, key=lambda one: found[one], default="")
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def classifiers(backbone: nn.Module) -> tuple[str, ...]:
    """How the names of a classifier's weights begin."""
    own = getattr(backbone, "pretrained_cfg", {}).get("classifier") or ()
    return tuple(f"{name}." for name in ("head", *([own] if isinstance(own, str) else own)))


def differences(tensors: dict[str, StoredTensor], wanted: dict[str, Tensor], classifiers: tuple[str, ...]) -> list[str]:
    """What is missing, too much, or of another shape, in words."""
    # Files of old have no counts of batches, and nothing reads them in evaluation.
    missing = [name for name in wanted if name not in tensors and not name.endswith("num_batches_tracked")]
    extra = [name for name in tensors if name not in wanted and not name.startswith(classifiers)]
    other = [
        f"{name} {list(tensors[name].shape)} and not {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    kinds = {"missing": missing, "not in the model": extra, "of another shape": other}
    return [f"{kind}: {first_of(names)}" for kind, names in kinds.items() if names]


def first_of(names: list[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]
