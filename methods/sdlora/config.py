"""Settings of SD-LoRA and of its variants; docs/ has measurements of the choices."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from methods.base import MethodConfig


class ReductionConfig(BaseModel):
    """Settings ``method.reduction.<field>``: ranks that fall in two steps (section 3.5, SD-LoRA-RR)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    counting: Literal["paper", "released"] = Field("paper", description="released: each step comes one task later")
    mu: int = Field(4, ge=1, description="task, counted from 1, with which the rank falls to rank_mu")
    nu: int = Field(8, ge=1, description="task with which it falls to rank_nu")
    rank_mu: int = Field(8, gt=0)
    rank_nu: int = Field(6, gt=0)

    @model_validator(mode="after")
    def falls(self) -> ReductionConfig:
        if self.mu >= self.nu:
            raise ValueError(f"reduction.mu={self.mu} has to come before reduction.nu={self.nu}")
        if self.rank_nu > self.rank_mu:
            raise ValueError(f"reduction.rank_nu={self.rank_nu} is above reduction.rank_mu={self.rank_mu}; ranks fall")
        return self

    def rank(self, task: int, first: int) -> int:
        """Rank of the direction that ``task`` (from 0) learns; ``first`` is that of the first one."""
        number = task + 1 if self.counting == "paper" else task
        if number < self.mu:
            return first
        return self.rank_mu if number < self.nu else self.rank_nu


class AbsorptionConfig(BaseModel):
    """Settings ``method.absorption.<field>``: when old directions take over a new one (section 3.5, SD-LoRA-KD)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    threshold: float = Field(9e-4, ge=0, allow_inf_nan=False, description="largest residual that is given up")
    residual: Literal["relative", "fro", "fro_sq"] = Field(
        "relative", description="share of the squared norm that old directions leave; the norm itself; its square"
    )
    merge: Literal["preserving", "literal"] = Field(
        "preserving", description="coefficients times the magnitude of the new direction, or as equation 8 has them"
    )
    scope: Literal["joint", "per_projection"] = Field(
        "joint", description="one fit for all projections, or one for each, whose coefficients become its own offsets"
    )


class SDLoRAConfig(MethodConfig):
    """Settings of SD-LoRA."""

    name: str = "sdlora"
    rank: int = Field(10, gt=0, description="rank of each direction")
    levels: tuple[int, ...] | None = Field(None, description="transformer blocks that are adapted; null: all")
    variant: Literal["full", "rr", "kd", "one_direction"] = Field(
        "full",
        description="rr: later ones of lower rank; kd: absorbed ones; one_direction: only that of the first task",
    )
    norm: Literal["joint", "product_fro", "factor_fro"] = Field(
        "joint", description="what divides a frozen direction: one norm over all projections, |B A| or |B||A| of each"
    )
    alpha_at_task_start: Literal["carry", "reset"] = Field(
        "carry", description="magnitudes go on from where they are, or all start anew"
    )
    magnitude: float = Field(1.0, allow_inf_nan=False, description="of a new direction; of all of them where reset")
    reduction: ReductionConfig = ReductionConfig()
    absorption: AbsorptionConfig = AbsorptionConfig()

    @model_validator(mode="after")
    def starts_highest(self) -> SDLoRAConfig:
        if self.variant == "rr" and self.rank < self.reduction.rank_mu:
            raise ValueError(f"rank={self.rank} is below reduction.rank_mu={self.reduction.rank_mu}; ranks fall")
        return self

    def rank_of(self, task: int) -> int:
        """Rank of the direction that ``task`` (from 0) learns; 0: none."""
        if self.variant == "one_direction":
            return self.rank if task == 0 else 0
        return self.reduction.rank(task, self.rank) if self.variant == "rr" else self.rank
