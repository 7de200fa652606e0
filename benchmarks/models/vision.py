"""Vision backbones: any timm model by name; the micro ViT comes with the project."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from benchmarks.dataset import BenchmarkError
from benchmarks.models.config import MICRO_VIT, MICRO_VIT_PIXELS, BackboneConfig
from benchmarks.models.weights import named_file, read_weights

TARGETS = ("qkv",)  # query, key and value in one projection, as timm's transformers have them
MICRO_VIT_WEIGHTS = Path(__file__).parents[1] / "weights" / "micro_vit.safetensors"


def own_image_size(name: str) -> int:
    """Side in pixels that the model was pre-trained with."""
    pretrained = timm.get_pretrained_cfg(name)
    return pretrained.input_size[-1] if pretrained else 224


def suggestion(name: str) -> str:
    near = difflib.get_close_matches(name, [MICRO_VIT, *timm.list_models()], 1)
    return f"; did you mean {near[0]}?" if near else ""


def load(config: BackboneConfig) -> tuple[nn.Module, Tensor, Tensor]:
    """The backbone without classifier, and mean and deviation [3] of the pixels (0 to 1) that it expects."""
    if config.name == MICRO_VIT:
        backbone: nn.Module = micro_vit()
        mean = std = torch.full((3,), 0.5)
    else:
        backbone = create(config)
        expected = timm.data.resolve_model_data_config(backbone)
        mean, std = torch.tensor(expected["mean"]), torch.tensor(expected["std"])
    if file := weights_file(config):
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
    """Load all weights of the backbone from safetensors; a classifier in the file is left out."""
    tensors = {name: tensor for name, tensor in read_weights(file).items() if not name.startswith("head.")}
    try:
        backbone.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise BenchmarkError(f"backbone.pretrained={file}: not the weights of {config.name} ({reason})") from None
