"""Pre-trained models by name; the micro ViT comes with the project."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

import timm
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.dataset import BenchmarkError

MICRO_VIT_WEIGHTS = Path(__file__).parent / "weights" / "micro_vit.safetensors"


class BackboneConfig(BaseModel):
    """Settings ``backbone.<field>``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "micro_vit"
    pretrained: bool | Path = Field(True, description="true, false, or a safetensors file")
    targets: tuple[str, ...] = Field(("qkv",), description="endings of the module names that adapters go to")

    @field_validator("pretrained")
    @classmethod
    def absolute(cls, value: bool | Path) -> bool | Path:
        return value.expanduser().absolute() if isinstance(value, Path) else value


class Classifier(nn.Module):
    """Normalise, backbone, linear head; forward takes uint8 images [n, 3, h, w] and gives logits [n, classes]."""

    def __init__(self, backbone: Any, image_size: int, mean: Tensor, std: Tensor, classes: int) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.head = nn.Linear(backbone.num_features, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.image_size = image_size
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", mean.view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", std.view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """Pooled features [n, width]."""
        pixels = (images.float() / 255 - self.mean) / self.std
        if pixels.shape[-1] != self.image_size:
            pixels = functional.interpolate(pixels, size=self.image_size, mode="bicubic", antialias=True)
        return self.backbone(pixels)

    def blocks(self) -> list[nn.Module]:
        """The transformer blocks: the units that sharding gathers and that levels stand for."""
        return list(getattr(self.backbone, "blocks", []))


def check_backbone(config: BackboneConfig) -> None:
    """BenchmarkError for a name or a weights file that does not exist, without building anything."""
    if config.name != "micro_vit" and not timm.is_model(config.name):
        near = difflib.get_close_matches(config.name, ["micro_vit", *timm.list_models()], 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise BenchmarkError(f"backbone.name={config.name}: timm has no such model{hint}")
    if isinstance(config.pretrained, Path) and not config.pretrained.is_file():
        raise BenchmarkError(
            f"backbone.pretrained={config.pretrained}: no such file; name a safetensors file or say false"
        )


def build_classifier(config: BackboneConfig, classes: int) -> Classifier:
    """A frozen backbone by name with a fresh head for ``classes`` labels."""
    check_backbone(config)
    if config.name == "micro_vit":
        small = micro_vit()
        load_weights(small, micro_vit_file(config), config)
        half = torch.full((3,), 0.5)
        return Classifier(small, 32, half, half, classes)
    backbone = timm.create_model(config.name, pretrained=config.pretrained is True, num_classes=0)
    if isinstance(config.pretrained, Path):
        load_weights(backbone, config.pretrained, config)
    data = timm.data.resolve_model_data_config(backbone)
    return Classifier(backbone, data["input_size"][-1], torch.tensor(data["mean"]), torch.tensor(data["std"]), classes)


def micro_vit(classes: int = 0) -> VisionTransformer:
    """A ViT of 1.0 M parameters for 32 px images; ``classes=0`` leaves out the classifier."""
    return VisionTransformer(
        img_size=32,
        patch_size=4,
        embed_dim=128,
        depth=6,
        num_heads=4,
        mlp_ratio=3,
        class_token=False,
        global_pool="avg",
        num_classes=classes,
    )


def micro_vit_file(config: BackboneConfig) -> Path | None:
    if isinstance(config.pretrained, Path):
        return config.pretrained
    return MICRO_VIT_WEIGHTS if config.pretrained else None


def load_weights(backbone: nn.Module, file: Path | None, config: BackboneConfig) -> None:
    """Load all weights of the backbone from safetensors; a classifier in the file is left out."""
    if file is None:
        return
    tensors = {k: v.float() for k, v in load_file(file).items() if not k.startswith("head.")}
    try:
        backbone.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise BenchmarkError(f"backbone.pretrained={file}: not the weights of {config.name} ({reason})") from None


def level_of(parameter: str) -> int:
    """The level of a parameter: the first number in its dotted name (the transformer block), else 0."""
    found = re.search(r"\.(\d+)\.", parameter)
    return int(found.group(1)) if found else 0
