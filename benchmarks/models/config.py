"""The settings of a backbone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

MICRO_VIT = "micro_vit"  # ships with the project
MICRO_VIT_PIXELS = 32


class BackboneConfig(BaseModel):
    """Settings ``backbone.<field>``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field("micro_vit", description="micro_vit, a timm model, a transformers folder or hub name")
    pretrained: bool | Path = Field(True, description="true, false, or a safetensors file")
    targets: tuple[str, ...] | None = Field(
        None, description="endings of the module names that adapters go to; null: known from the architecture"
    )
    image_size: int | None = Field(None, gt=0, description="side of the images in pixels; null: the model's own")
    dtype: Literal["auto", "float32", "bf16"] = Field(
        "auto", description="of the frozen matrices; auto: bf16 on a GPU that computes in it, float32 elsewhere"
    )
    gguf_file: str | None = Field(None, description="file in the folder, where the weights are GGUF")

    @field_validator("name")
    @classmethod
    def without_hub(cls, name: str) -> str:
        """timm's models are on the hub as ``timm/NAME``, and known to timm as NAME."""
        return re.sub(r"^(hf[-_]hub:)?timm/", "", name)

    @field_validator("pretrained")
    @classmethod
    def found(cls, value: bool | Path) -> bool | Path:
        """A file that exists here is made absolute, since workers start elsewhere."""
        exists = isinstance(value, Path) and value.expanduser().exists()
        return value.expanduser().absolute() if exists and isinstance(value, Path) else value
