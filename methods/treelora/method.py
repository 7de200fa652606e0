"""TreeLoRA: sequential LoRA, drawn towards the most similar earlier task that a bandit finds in a tree of tasks.

Qian, Xu, Zhang, Zhao and Zhou, "TreeLoRA: Efficient Continual Learning via Layer-Wise LoRAs Guided by a Hierarchical
Gradient-Similarity Tree", ICML 2025.

Deviations from the paper, all of them in the variant ``default``:
- A task's signature is the running mean of its own adapter gradient (factors A and B), sketched; the paper's extra
  gradient through the old adapter (section 3.1) is not taken, so an observation costs no backward pass.
- The regulariser compares displacements of the adapter (now minus at the start of the task) and its gradient is the
  closed form, scaled to the loss; equation 3 differentiates gradients, which needs second derivatives.
- One shared adapter is trained throughout and used at inference, as the paper's section 3.3 has it at test.
- Search and tree: see ``search.py`` and ``tree.py``.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from methods.base import Chooser, MethodConfig, register
from methods.levels import Levels
from methods.lora import LoRA, LoRAConfig
from methods.sparsity import sparsify
from methods.treelora.regulariser import RegulariserConfig, regulariser
from methods.treelora.search import SearchConfig
from methods.treelora.service import TreeService
from methods.treelora.sketch import CountSketch

SKETCH_SEED = 0  # shared by all runs, so that trees of different runs can be compared


class SketchConfig(BaseModel):
    """Settings ``method.sketch.<field>``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: int = Field(256, gt=0, description="numbers a level is compressed to")


class TreeLoRAConfig(LoRAConfig):
    """Settings of TreeLoRA."""

    name: str = "treelora"
    variant: Literal["default"] = "default"
    sparsity: float = Field(0.0, ge=0, lt=1, description="share of each level's gradient that is dropped")
    search: SearchConfig = SearchConfig()
    sketch: SketchConfig = SketchConfig()
    regulariser: RegulariserConfig = RegulariserConfig()


@register("treelora")
class TreeLoRA(LoRA):
    """LoRA drawn towards the most similar earlier task, found by bandit search over a task tree."""

    Config: ClassVar[type[MethodConfig]] = TreeLoRAConfig
    config: TreeLoRAConfig

    @classmethod
    def search_space(cls) -> dict[str, object]:
        confidence = {"loguniform": [0.02, 0.5]}
        return {"method.rank": [4, 8], "method.sparsity": [0.0, 0.5], "method.search.confidence": confidence}

    def service(self, seed: int) -> TreeService:
        return TreeService(self.config.search, seed)

    def bind(self, levels: Levels, chooser: Chooser | None) -> None:
        assert chooser is not None
        self.levels, self.chooser = levels, chooser
        self.sketch = CountSketch(levels.coordinates(), self.config.sketch.width, SKETCH_SEED)
        self.displacements: list[list[Tensor]] = []  # of every finished task, local slices

    def begin_task(self, task: int, steps: int) -> None:
        self.task, self.steps, self.observed = task, steps, 0
        self.start = self.levels.parameters()
        self.mean = [torch.zeros_like(p) for p in self.start]
        self.leaf, self.asked = -1, -1

    def edit_gradients(self, step: int, loss: Tensor) -> None:
        """Observe the gradient, sparsify it (the S of equation 3), add the regulariser's."""
        gradients = self.levels.gradients()
        self.observed += 1
        for mean, gradient in zip(self.mean, gradients, strict=True):
            mean += (gradient - mean) / self.observed
        if self.task > 0 and step > 0 and step % self.config.search.every == 0:
            self.search_point(step)
        gradients = sparsify(self.levels, gradients, self.config.sparsity)
        if self.leaf >= 0 and self.config.regulariser.kind != "none":
            self.regularise(gradients, loss)
        self.levels.set_gradients(gradients)

    def search_point(self, step: int) -> None:
        """Send this rank's sketch; take the answer to the last point, or with staleness 0 to this one."""
        if self.levels.part is not None:
            rounds = self.config.search.rounds * max(1, (self.steps - 1) // self.config.search.every)
            self.chooser.observe(self.task, step, self.levels.part, self.sketch(self.mean), rounds)
        due = step if self.config.search.staleness == 0 else self.asked
        if due >= 0:
            self.leaf = self.chooser.choose(self.task, due)
        self.asked = step

    def regularise(self, gradients: list[Tensor], loss: Tensor) -> None:
        """Add the regulariser's gradient, scaled so that its value is ``strength`` times the task loss."""
        current = [now - start for now, start in zip(self.levels.parameters(), self.start, strict=True)]
        settings = self.config.regulariser
        value, edits = regulariser(settings.kind, self.levels, current, self.displacements[self.leaf])
        factor = settings.strength * loss / value.clamp(min=1e-8)
        for gradient, edit in zip(gradients, edits, strict=True):
            gradient += factor * edit

    def end_task(self) -> None:
        moved = [now - start for now, start in zip(self.levels.parameters(), self.start, strict=True)]
        self.displacements.append(moved)
        if self.levels.part is not None:
            self.chooser.close_task(self.task, self.levels.part, self.sketch(self.mean))

    def state_dict(self) -> dict[str, Tensor]:
        now = [self.task, self.steps, self.observed, self.leaf, self.asked]
        state = {"now": torch.tensor(now)}
        named = {"start": self.start, "mean": self.mean}
        named |= {f"displacement.{task}": moved for task, moved in enumerate(self.displacements)}
        for name, vectors in named.items():
            state |= {f"{name}.{level}": v for level, v in enumerate(self.levels.whole(vectors))}
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.task, self.steps, self.observed, self.leaf, self.asked = state["now"].tolist()
        self.start, self.mean = self.restored(state, "start"), self.restored(state, "mean")
        stored = {key.split(".")[1] for key in state if key.startswith("displacement.")}
        self.displacements = [self.restored(state, f"displacement.{task}") for task in range(len(stored))]

    def restored(self, state: dict[str, Any], name: str) -> list[Tensor]:
        device = self.levels.parameters()[0].device
        return self.levels.local([state[f"{name}.{level}"].to(device) for level in range(len(self.levels))])
