"""Settings of TreeLoRA; docs/ has measurements of the choices."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from methods.lora import LoRAConfig
from methods.treelora.regulariser import RegulariserConfig
from methods.treelora.search.search import SearchConfig
from methods.treelora.sketch import SketchConfig
from methods.treelora.tree.tree import TreeConfig


class SignatureConfig(BaseModel):
    """Settings ``method.signature.<field>``: what stands for a task."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["gradient", "displacement", "a_param"] = Field(
        "gradient", description="running mean over the task: of gradients, of the way since its start, or of values"
    )
    factors: Literal["A", "B", "AB"] = Field("AB", description="factors of the adapter that count")


class TreeLoRAConfig(LoRAConfig):
    """Settings of TreeLoRA."""

    name: str = "treelora"
    sparsity: float = Field(0.0, ge=0, lt=1, description="share of each level's gradient that is dropped")
    adapter: Literal["shared", "per_task_fresh", "per_task_from_nearest"] = Field(
        "shared", description="one for all tasks, or one that starts anew, or at the end of the nearest task's"
    )
    inference: Literal["last", "mean", "tree"] = Field(
        "last", description="adapter to evaluate with: the last, the mean of all, or with branches counting alike"
    )
    signature: SignatureConfig = SignatureConfig()
    sketch: SketchConfig = SketchConfig()
    tree: TreeConfig = TreeConfig()
    search: SearchConfig = SearchConfig()
    regulariser: RegulariserConfig = RegulariserConfig()

    @model_validator(mode="after")
    def sketches_carry_the_metric(self) -> TreeLoRAConfig:
        if self.search.metric == "l1" and self.sketch.kind == "count" and not self.sketch.cauchy:
            raise ValueError("search.metric=l1 needs sketch.cauchy=256, or sketch.kind=exact: CountSketches lose L1")
        if self.sketch.cauchy and self.search.metric != "l1":
            raise ValueError("sketch.cauchy estimates L1 distances: set search.metric=l1, or sketch.cauchy=0")
        return self

    @property
    def keeps_adapters(self) -> bool:
        """Whether the adapter of every task is stored beside its signature."""
        fresh = self.search.observe == "fresh_grad" or self.regulariser.kind == "l1_hvp"
        return fresh or self.adapter == "per_task_from_nearest" or self.inference != "last"
