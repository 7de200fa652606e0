"""SD-LoRA: each task learns a low-rank direction; directions are frozen, the magnitudes of all of them go on learning.

Wu, Piao, Huang, Wang, Li, Pfister, Meng, Ma and Wei, "SD-LoRA: Scalable Decoupled Low-Rank Adaptation for Class
Incremental Learning", ICLR 2025 (equations 3 and 4), with the variants RR (later directions of lower rank) and KD (a
direction that the old ones span is given to them, equations 7 and 8). ``configs/method`` has its readings: ``sdlora``
(default), ``sdlora_paper`` (as printed) and ``sdlora_released`` (as the released code trains), each with ``_rr`` and
``_kd``.

Deviations from the paper in the default:
- One norm over all projections divides a frozen direction and multiplies its magnitude (``norm=joint``,
  ``alpha_at_task_start=carry``), so that nothing moves between tasks. As printed, each projection has a norm of its own
  and all magnitudes start anew, which changes the model at every start of a task.
- What KD gives to the old directions is multiplied by the magnitude of the new one, which equation 8 leaves out, and
  the residual is relative to the direction's length, since the paper does not say what its threshold is compared with.
- A task's own pair is trained as it is and divided by its norm when the next task begins: at the start B A / |B A| is
  0 / 0. So training and evaluation see one and the same model (where KD gives a direction away: with ``joint``).
Not carried over from the released code: magnitudes that are lost between tasks and at most 20 of them, a second copy of
the backbone, an evaluation with the last adapter alone, files that are read in every step. KD was never released.
With ``reset``, what a joint fit adds to magnitudes lasts until the next task begins: the two printed rules exclude each
other. What a projection has of its own (``scope=per_projection``) stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from methods.base import Chooser, MethodConfig, register
from methods.levels import Levels
from methods.lora import modules_to_adapt
from methods.sdlora.config import SDLoRAConfig
from methods.sdlora.directions import Directions
from methods.sdlora.gram import fit
from methods.stacked.method import Pairs, StackedMethod

MAGNITUDES = "magnitudes"


@register("sdlora")
class SDLoRA(StackedMethod):
    """Low-rank directions that are frozen task by task, with magnitudes that all go on learning."""

    Config: ClassVar[type[MethodConfig]] = SDLoRAConfig
    config: SDLoRAConfig

    @classmethod
    def search_space(cls) -> dict[str, object]:
        return super().search_space() | {
            "method.rank": {"choice": [8, 10, 16]},  # not below the ranks that variant rr falls to
            "method.magnitude": {"loguniform": [0.1, 3.0]},
            "method.alpha_at_task_start": {"choice": ["carry", "reset"]},
            "method.variant": {"choice": ["full", "rr", "kd", "one_direction"]},
            "method.absorption.threshold": {"loguniform": [1e-4, 0.5], "when": {"method.variant": "kd"}},
        }

    def adapt(self, model: nn.Module, targets: Sequence[str], blocks: Sequence[str], tasks: int) -> None:
        """Layers with room for directions in the place of all targets, and beside them one magnitude for each task."""
        self.stack(model, modules_to_adapt(model, targets, blocks, self.config.levels), self.config.rank)
        # On the backbone and for all tasks at once: FSDP2 shards only what is there when the model is wrapped.
        model.register_parameter(MAGNITUDES, nn.Parameter(torch.full((tasks,), self.config.magnitude)))
        self.directions = Directions(list(self.layers.values()))
        self.task, self.rank = 0, self.config.rank
        self.absorbed: list[int] = []  # tasks whose direction the old ones took over
        self.residuals: list[float] = []

    def bind(self, levels: Levels, chooser: Chooser | None) -> None:
        super().bind(levels, chooser)
        self.arrange()

    def begin_task(self, task: int, steps: int, epochs: int) -> None:
        """Divide the last direction by its norm, set the magnitudes, start fresh pairs."""
        wholes, count = self.wholes(), len(self.directions)
        # Changed in place below: ``put`` writes all of ``wholes`` back to the model.
        magnitudes = self.magnitudes(wholes)
        if self.directions.fresh and self.config.norm == "joint":
            magnitudes[count - 1] *= self.directions.norms[0, -1].to(magnitudes)
        self.directions.settle()
        first = 0 if self.config.alpha_at_task_start == "reset" else count
        magnitudes[first : count + 1] = self.config.magnitude
        self.task, self.rank = task, self.config.rank_of(task)
        self.start_pairs(wholes, task)
        self.put(wholes)
        self.arrange()

    def end_task(self) -> None:
        """Store the direction, or give it to the old ones where these span it (algorithm 1)."""
        wholes = self.wholes()
        if self.rank:
            self.keep(self.active_pairs(wholes), self.magnitudes(wholes))
        self.close()
        self.rank = 0
        self.put(wholes)
        self.arrange()

    def keep(self, pairs: Pairs, magnitudes: Tensor) -> None:
        """Store what no old direction takes over; a projection that is taken over stores zeros."""
        norms, cross, square = self.directions.measured(pairs, self.config.norm)
        # The share of each projection that is stored, 0 or 1.
        left = torch.ones_like(square)
        if self.config.variant == "kd" and len(self.directions):
            left = 1 - self.absorbed_by_old(magnitudes, norms, cross, square).to(left)
        if left.any():
            shares = [left[rows][:, None, None] for rows in self.directions.rows]
            pairs = [(a * share.to(a), b * share.to(b)) for (a, b), share in zip(pairs, shares, strict=True)]
            self.directions.add(pairs, norms, cross * left[:, None], square * left)

    def absorbed_by_old(self, magnitudes: Tensor, norms: Tensor, cross: Tensor, square: Tensor) -> Tensor:
        """Which projections [Q] the old directions take over; their magnitudes grow by it (equations 7 and 8)."""
        settings, count = self.config.absorption, len(self.directions)
        found = fit(self.directions.gram, cross, square, joint=settings.scope == "joint")
        residual = found.measured(settings.residual)
        merged = residual <= settings.threshold
        own = magnitudes[count].double().cpu() * (norms[0] if self.config.norm == "joint" else 1)
        given = found.coefficients * merged[:, None] * (own if settings.merge == "preserving" else 1)
        if settings.scope == "joint":
            magnitudes[:count] += given[0].to(magnitudes)
        else:
            self.directions.offsets += given
        self.residuals.append(float(residual.max()))
        self.absorbed += [self.task] if merged.all() else []
        return merged.expand(len(norms))

    def magnitudes(self, wholes: Mapping[str, Tensor]) -> Tensor:
        return wholes[self.prefix + MAGNITUDES]

    def arrange(self) -> None:
        """Which magnitude, gain and own magnitude belongs to each row of factors, for ``scales``."""
        ranks, device = [*self.directions.ranks, self.rank], self.levels.tensors[0].device
        self.index = torch.arange(len(ranks)).repeat_interleave(torch.tensor(ranks)).to(device)
        self.gains, self.own = dict[str, Tensor](), dict[str, Tensor]()
        for number, (name, layer) in enumerate(self.layers.items()):
            layer.active = self.rank
            new = torch.ones(len(layer.sections), self.rank)
            self.gains[name] = torch.cat([self.directions.gains(number).float(), new], 1).to(device)
            self.own[name] = torch.cat([self.directions.own_magnitudes(number).float(), 0 * new], 1).to(device)

    def scales(self, name: str, wholes: Mapping[str, Tensor] | None = None) -> Tensor:
        """Magnitudes over norms; gradients flow into the magnitudes of all tasks."""
        magnitudes = self.model.get_parameter(MAGNITUDES) if wholes is None else self.magnitudes(wholes)
        return (magnitudes[self.index] + self.own[name]) * self.gains[name]

    def stored_parameters(self) -> int:
        """Directions, magnitudes and what projections have of their own, and the pair under way."""
        own = int((self.directions.offsets != 0).sum())
        return self.pair_parameters() + len(self.directions) + bool(self.rank) + own

    def report(self) -> dict[str, Any]:
        """Ranks and magnitudes of the directions, tasks that were absorbed, residuals of the fits."""
        magnitudes = self.magnitudes(self.wholes())[: len(self.directions)]
        found = {"ranks": self.directions.ranks, "magnitudes": magnitudes.tolist()}
        return found | {"absorbed": self.absorbed, "residuals": self.residuals}

    def state_dict(self, since: int = 0) -> dict[str, Tensor]:
        now = {"now": torch.tensor([self.task, self.rank, *self.absorbed])}
        now |= {"residuals": torch.tensor(self.residuals, dtype=torch.float64)}
        return now | self.stored_state(since) | self.directions.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.task, self.rank, *self.absorbed = state["now"].tolist()
        self.residuals = state["residuals"].tolist()
        self.restore_stored(state)
        self.directions.load_state_dict(state)
        self.arrange()
