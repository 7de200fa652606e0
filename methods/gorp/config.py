"""Settings of GORP; docs/ has measurements of the choices."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from methods.lora import LoRAConfig


class CompressionConfig(BaseModel):
    """Settings ``method.compression.<field>``: how gradients of whole matrices are compressed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(8, ge=1, description="singular vectors that the compressed gradient is written in")
    every: int = Field(10, ge=1, description="steps between new singular vectors")
    scale: float = Field(1.0, gt=0, allow_inf_nan=False, description="times the update, mapped back")
    refresh: Literal["randomised", "svd"] = Field("randomised", description="how singular vectors are found")
    moments: Literal["rotate", "keep"] = Field("rotate", description="Adam's moments at new singular vectors")


class SpaceConfig(BaseModel):
    """Settings ``method.space.<field>``: the gradient directions of earlier tasks, which updates stay out of."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    energy: float = Field(0.9, gt=0, le=1, description="share of a task's gradient energy that the space has to hold")
    cap: float = Field(0.5, gt=0, le=1, description="largest share of a matrix's dimensions that is protected")
    protect: Literal["update", "gradient", "none"] = Field(
        "update", description="gradient and update; the gradient alone, which Adam's division leaks from; neither"
    )
    summary: Literal["mean", "first"] = Field(
        "mean", description="what stands for a task: mean gradient before protection, or Adam's first moment at the end"
    )
    selection: Literal["reach", "below"] = Field(
        "reach", description="fewest directions that reach the energy, or as many as stay below it"
    )
    lora: Literal["input", "output"] = Field("input", description="side of LoRA's A on which directions are protected")


class GORPConfig(LoRAConfig):
    """Settings of GORP."""

    name: str = "gorp"
    rank: int = Field(8, gt=0, description="rank of each task's LoRA pair")
    alpha: int = Field(32, gt=0, description="a pair's output is scaled by alpha / rank")
    full_rank: tuple[str, ...] | None = Field(
        None, description="endings of the modules whose whole weight is trained; null: known from the architecture"
    )
    full_rank_learning_rate: float = Field(1e-5, gt=0, allow_inf_nan=False, description="of the whole weights")
    keep_full_rank: bool = Field(True, description="false: whole weights start each task as they were pre-trained")
    compression: CompressionConfig = CompressionConfig()
    space: SpaceConfig = SpaceConfig()
