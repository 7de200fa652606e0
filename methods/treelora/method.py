"""TreeLoRA: sequential LoRA, drawn towards the most similar earlier task that a bandit finds in a tree of tasks.

Qian, Xu, Zhang, Zhao and Zhou, "TreeLoRA: Efficient Continual Learning via Layer-Wise LoRAs Guided by a Hierarchical
Gradient-Similarity Tree", ICML 2025. ``configs/method`` has three readings of it: ``treelora`` (default),
``treelora_paper`` (as printed) and ``treelora_released`` (as its released code behaves, defects included).

Deviations from the paper in the default:
- A task's signature is the running mean of its own adapter gradient (factors A and B), sketched; the paper's extra
  gradient through the old adapter (section 3.1) is ``search.observe=fresh_grad``.
- The regulariser compares displacements of the adapter (now minus at the start of the task) and its gradient is the
  closed form, scaled to the loss; equation 3 differentiates gradients, which is ``regulariser.kind=l1_hvp``.
- One shared adapter is trained throughout and used at inference, as the paper's section 3.3 has it at test.
- Search and tree: see ``bandit.py`` and ``tree.py``.
Deviations everywhere: gradients at an old adapter are taken with the present head, which alone knows the classes at
hand; a second derivative (``l1_hvp``) is a central difference of gradients, which also works under shards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor

from methods.base import Again, Chooser, MethodConfig, register
from methods.levels import Levels
from methods.lora import LoRA
from methods.sparsity import sparsify
from methods.treelora.config import TreeLoRAConfig
from methods.treelora.memory import Memory
from methods.treelora.regulariser import edit, ramp
from methods.treelora.service import TreeService
from methods.treelora.signature import Signature
from methods.treelora.sketch import Sketch, Sketcher

SKETCH_SEED = 0  # shared by all runs, so that trees of different runs can be compared


@register("treelora")
class TreeLoRA(LoRA):
    """LoRA drawn towards the most similar earlier task, found by bandit search over a task tree."""

    Config: ClassVar[type[MethodConfig]] = TreeLoRAConfig
    config: TreeLoRAConfig

    @classmethod
    def search_space(cls) -> dict[str, object]:
        regularised = {"unless": {"method.regulariser.kind": "none"}}
        in_a_tree = {"when": {"method.search.kind": "tree"}}
        return super().search_space() | {
            "method.sparsity": {"uniform": [0.0, 0.9]},
            "method.regulariser.kind": {"choice": ["cos", "l1", "none"]},
            "method.regulariser.strength": {"loguniform": [0.01, 3.0]} | regularised,
            "method.search.kind": {"choice": ["tree", "flat", "random"]} | regularised,
            "method.search.every": {"logint": [1, 16]} | regularised,
            "method.search.rounds": {"logint": [2, 32]} | regularised,
            "method.search.confidence": {"loguniform": [0.02, 0.5]} | regularised,
            "method.search.bonus": {"choice": ["horizon", "paper"]} | regularised,
            "method.search.granularity": {"choice": ["path", "per_layer"]} | regularised,
            "method.search.statistics": {"choice": ["task", "epoch"]} | regularised,
            "method.search.diameter_scale": {"uniform": [0.0, 1.0]} | in_a_tree | regularised,
        }

    def service(self, seed: int) -> TreeService:
        return TreeService(self.config.search, self.config.tree, self.config.sketch, seed)

    def bind(self, levels: Levels, chooser: Chooser | None) -> None:
        assert chooser is not None
        self.levels, self.chooser = levels, chooser
        self.sketch = Sketcher(levels.layout, levels.sizes, self.config.sketch, SKETCH_SEED)
        self.signature = Signature(self.config.signature, levels)
        self.memory = Memory(levels, bounded=self.config.tree.budget is not None)
        self.first = levels.parameters()  # where a fresh adapter starts
        self.buffer = levels.buffer()  # of the gradients

    def begin_task(self, task: int, steps: int, epochs: int) -> None:
        self.task, self.steps, self.epochs = task, steps, epochs
        self.chosen: list[int] = []
        self.asked = -1
        if self.config.adapter != "shared" and task > 0:
            self.levels.set_parameters(self.first)
        self.signature.begin(self.levels.parameters())

    def edit_gradients(self, step: int, loss: Tensor, again: Again) -> None:
        """Observe the gradient, sparsify it (the S of equation 3), add the regulariser's."""
        gradients = self.levels.gradients(self.buffer)
        if step % self.period == 0:
            self.signature.forget()
        self.signature.take(gradients)
        if len(self.memory) and step > 0 and step % self.config.search.every == 0:
            self.search_point(step, gradients, again)
        gradients = sparsify(self.levels, gradients, self.config.sparsity)
        if self.chosen:
            self.regularise(step, gradients, loss, again)
        self.levels.set_gradients(gradients if self.config.sparsity else self.buffer)

    @property
    def period(self) -> int:
        """Steps that share the search's statistics."""
        return max(1, self.steps // self.epochs) if self.config.search.statistics == "epoch" else self.steps

    def search_point(self, step: int, gradients: Tensor, again: Again) -> None:
        """Send this rank's sketch; take the answer to the last point, or with staleness 0 to this one."""
        search, own = self.config.search, self.signature.mean
        # Asked for one interval late, so that the actor answers while the steps go on and none of them waits.
        if search.staleness == 1 and self.asked >= 0:
            self.approach(self.chooser.choose(self.task, self.asked))
        other = None
        if search.observe == "fresh_grad":
            own = gradients
            other = self.memory.gradient_at(self.chosen, again) if self.chosen else None
        self.send(step, own, other)
        if search.staleness == 0:
            self.approach(self.chooser.choose(self.task, step))
        self.asked = step

    def send(self, step: int, own: Tensor, other: Tensor | None) -> None:
        if self.levels.part is not None:
            sketches = [None if seen is None else self.sketched(self.signature.counted(seen)) for seen in (own, other)]
            self.chooser.observe(self.task, step, self.levels.part, sketches[0], self.period, sketches[1])

    def sketched(self, matrix: Tensor) -> Sketch:
        return self.sketch(self.levels.flat(matrix))

    def approach(self, chosen: list[int]) -> None:
        """Regularise towards these entries from now on; ``per_task_from_nearest`` starts at the first ones' adapter."""
        starts_there = self.config.adapter == "per_task_from_nearest" and not self.chosen and chosen
        self.chosen = chosen
        if starts_there:
            adapter = self.memory.adapter(chosen)
            self.levels.set_parameters(adapter)
            self.signature.start = adapter

    def regularise(self, step: int, gradients: Tensor, loss: Tensor, again: Again) -> None:
        """Add the gradient of the regulariser (section 3.3, equation 3)."""
        settings = self.config.regulariser
        share = ramp(settings.schedule, step, self.steps, self.epochs)
        if settings.kind == "none" or settings.strength * share == 0:
            return
        if settings.kind == "l1_hvp":
            self.memory.edit_by_gradients(settings, gradients, self.chosen, loss, share, again)
            return
        current, stored = self.signature.carrier(), self.memory.target(self.chosen)
        edit(settings, self.levels, gradients, current, stored, loss, share)

    def end_task(self) -> None:
        adapter = self.levels.parameters() if self.config.keeps_adapters else None
        self.memory.add(self.signature.target(), adapter)
        if self.levels.part is not None:
            self.chooser.close_task(self.task, self.levels.part, self.sketched(self.signature.mean))
        if self.config.tree.budget is not None:
            self.memory.join(self.chooser.merged(self.task))
        if self.config.inference == "tree":
            self.memory.weights = self.chooser.weights(self.task)

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Section 3.3 evaluates with the last adapter; here also with the mean over all tasks, or over the tree."""
        trained = self.levels.parameters()
        self.levels.set_parameters(self.inference_adapter())
        yield
        self.levels.set_parameters(trained)

    def inference_adapter(self) -> Tensor:
        """The adapter [levels, width] to evaluate with."""
        if self.config.inference == "last" or not len(self.memory):
            return self.levels.parameters()
        return self.memory.mean_adapter(over_tree=self.config.inference == "tree")

    def state_dict(self, since: int = 0) -> dict[str, Tensor]:
        now = [self.task, self.steps, self.epochs, self.asked, *self.chosen]
        matrices = self.signature.state_dict() | self.memory.state_dict(since) | {"first": self.first}
        state = {"now": torch.tensor(now), "counts": torch.tensor([self.signature.count, *self.memory.counts])}
        state["weights"] = torch.tensor(self.memory.weights, dtype=torch.float64)
        for name, matrix in matrices.items():
            state |= {f"{name}.{level}": v for level, v in enumerate(self.levels.whole(matrix))}
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.task, self.steps, self.epochs, self.asked, *self.chosen = state["now"].tolist()
        self.signature.count, *self.memory.counts = state["counts"].tolist()
        self.memory.weights = state["weights"].tolist()
        names = [key.removesuffix(".0") for key in state if key.endswith(".0")]  # those of level 0
        matrices = {name: self.restored(state, name) for name in names}
        self.first = matrices.pop("first")
        self.signature.load_state_dict(matrices)
        self.memory.load_state_dict(matrices)

    def restored(self, state: dict[str, Any], name: str) -> Tensor:
        device = self.first.device
        return self.levels.local([state[f"{name}.{level}"].to(device) for level in range(len(self.levels))])
