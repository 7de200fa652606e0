"""GORP: some weights are trained whole through compressed gradients, others by LoRA, both out of the way of old tasks.

Wang, Lyu, Sun and Jing, "Continual Gradient Low-Rank Projection Fine-Tuning for LLMs", ACL 2025. What a task's
gradients point to is protected from later updates. ``configs/method`` has three readings of it: ``gorp`` (default),
``gorp_paper`` (as printed) and ``gorp_released`` (as its released code behaves on a clean run).

Deviations from the paper in the default:
- The update is projected as well as the gradient: Adam divides each element by its own size, so that an update made of
  projected gradients leaves the protected complement.
- The protected space comes from the mean gradient before its projection; Adam's first moment, which is projected,
  forgets all but the last steps and finds nothing of the new task in the old space.
- LoRA's A is protected on its input side: on the other one its rows are those of another random start in each task.
- Singular vectors by a randomised method, moments that are turned into the new ones, a cap on the protected space.
Not carried over from the released code: gradients that are not averaged over processes, a regulariser that compares
names which never match. Two choices are ours: which weights of a ViT or BERT are trained whole (the first layer of each
MLP, like the gate of Llama's), and that a later task adds no direction where the old space holds enough.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from methods.base import Again, Chooser, MethodConfig, finished, register
from methods.gorp.config import GORPConfig
from methods.gorp.optimizer import GORP
from methods.levels import Levels, locals_of
from methods.lora import modules_to_adapt
from methods.stacked.method import StackedMethod

# Endings of the modules whose weight is trained whole: T5, Llama and its likes, ViT, BERT (section 4.1).
FULL_RANK = (("EncDecAttention.q", "EncDecAttention.v"), ("mlp.gate_proj",), ("mlp.fc1",), ("intermediate.dense",))


@register("gorp")
class GradientProjection(StackedMethod):
    """Whole weights and LoRA pairs whose updates stay out of the gradient directions of earlier tasks."""

    Config: ClassVar[type[MethodConfig]] = GORPConfig
    config: GORPConfig

    @classmethod
    def search_space(cls) -> dict[str, object]:
        return super().search_space() | {
            "method.rank": {"choice": [4, 8, 16]},
            "method.full_rank_learning_rate": {"loguniform": [1e-6, 1e-4]},
            "method.space.energy": {"uniform": [0.8, 0.99]},
            "method.space.cap": {"uniform": [0.25, 1.0]},
            "method.compression.rank": {"logint": [2, 32]},
            "method.compression.every": {"logint": [1, 50]},
        }

    def adapt(self, model: nn.Module, targets: Sequence[str], blocks: Sequence[str], tasks: int) -> None:
        """Open the weights that are trained whole, and put layers for LoRA pairs in the place of the other targets."""
        self.full_rank = whole_modules(model, self.config)
        for name in self.full_rank:
            model.get_submodule(name).get_parameter("weight").requires_grad_(True)
        names = modules_to_adapt(model, targets, blocks, self.config.levels)
        names = [name for name in names if name not in self.full_rank]
        if not names:
            raise ValueError(f"backbone.targets={list(targets)}: all of them are trained whole; LoRA needs others")
        self.stack(model, names, self.config.rank, self.config.dropout)
        self.current: GORP | None = None
        self.spaces = dict[nn.Parameter, Tensor]()
        self.widths = list[dict[nn.Parameter, int]]()  # of the spaces after each finished task, which appends to them

    def bind(self, levels: Levels, chooser: Chooser | None) -> None:
        super().bind(levels.only(lambda name: ".lora_" in name), chooser)  # whole weights are never gathered
        parameters = {part.name: part.parameter for level in levels.slices for part in level}
        self.downs = {name: p for name, p in parameters.items() if name.endswith(".lora_A")}
        self.ups = {name: p for name, p in parameters.items() if name.endswith(".lora_B")}
        self.matrices = {name: p for name, p in parameters.items() if name not in self.downs | self.ups}
        self.pretrained: list[Tensor] = []
        if not self.config.keep_full_rank:
            self.pretrained = [values.clone() for values in locals_of(p.detach() for p in self.matrices.values())]

    def optimizer(self, groups: list[dict[str, Any]], rule: str, settings: dict[str, Any]) -> GORP:
        """Whole weights compressed and protected, A protected, all else by the plain rule."""
        if settings["weight_decay"]:
            raise ValueError("train.weight_decay: it would move protected directions; say 0 for GORP")
        adapters, *head = groups
        plain = [{"params": list(self.ups.values()), "lr": adapters["lr"]}, *head]
        own = [*self.protected_groups(adapters["lr"]), *({**group, "projected": False} for group in plain)]
        # The learner gives SGD a momentum in place of betas.
        betas = settings.get("betas", (settings.get("momentum", 0.0), 0.0))
        self.current = GORP(
            [group for group in own if group["params"]],
            rule="sgd" if rule == "sgd" else "adam",
            betas=betas,
            spaces=self.spaces,
        )
        return self.current

    def protected_groups(self, rate: float) -> list[dict[str, Any]]:
        """The optimiser's settings for whole weights and for A, which is not compressed."""
        space = self.config.space.model_dump()
        side = "rows" if space.pop("lora") == "output" else "free"
        whole = self.config.compression.model_dump() | {"lr": self.config.full_rank_learning_rate}
        down = {"rank": None, "side": side, "lr": rate}
        return [
            {"params": list(self.matrices.values()), "names": list(self.matrices), **space, **whole},
            {"params": list(self.downs.values()), "names": list(self.downs), **space, **down},
        ]

    @torch.no_grad()
    def begin_task(self, task: int, steps: int, epochs: int) -> None:
        """Fresh pairs; the released code also starts from the pre-trained weights again."""
        if not self.config.keep_full_rank:
            for parameter, values in zip(locals_of(self.matrices.values()), self.pretrained, strict=True):
                parameter.copy_(values)
        wholes = self.wholes()
        self.start_pairs(wholes, task)
        self.put(wholes)
        self.activate(self.config.rank)

    def edit_gradients(self, step: int, loss: Tensor, again: Again) -> None:
        """ValueError in the first step, not at the task's end, where a weight takes no part in the loss."""
        idle = [name for name, parameter in self.matrices.items() if parameter.grad is None]
        # Else it would show in end_task only, after all of the task's training.
        if idle and step == 0:
            raise ValueError(f"method.full_rank: {idle[0].removeprefix(self.prefix)} gets no gradient; leave it out")

    def end_task(self) -> None:
        """Add the task's gradient directions to the protected spaces, freeze its pairs."""
        assert self.current is not None
        self.current.end_task()
        # Kept here between tasks: each task has an optimiser of its own, with other parts of the head.
        self.spaces, self.current = self.current.spaces, None
        for layer, pair in zip(self.layers.values(), self.active_pairs(self.wholes()), strict=True):
            layer.store(*pair)
        self.close()
        self.widths.append({p: space.shape[1] for p, space in self.spaces.items()})
        self.activate(0)

    def activate(self, rank: int) -> None:
        for layer in self.layers.values():
            layer.active = rank

    def scales(self, name: str, wholes: Mapping[str, Tensor] | None = None) -> Tensor:
        """alpha / rank for all pairs, old and new (section 4.1)."""
        return self.layers[name].ones() * (self.config.alpha / self.config.rank)

    def pairs(self) -> dict[str, tuple[Tensor, Tensor]]:
        if self.full_rank:
            raise ValueError(f"method=gorp trains {self.full_rank[0]} whole; train with method.full_rank=[] to export")
        return super().pairs()

    def stored_parameters(self) -> int:
        """Pairs, whole weights and protected spaces."""
        whole = sum(parameter.numel() for parameter in self.matrices.values())
        return self.pair_parameters() + whole + sum(space.numel() for space in self.spaces.values())

    def report(self) -> dict[str, Any]:
        """How many directions are protected of each weight."""
        named = {parameter: name for name, parameter in (self.matrices | self.downs).items()}
        return {"protected": {named[p].removeprefix(self.prefix): s.shape[1] for p, s in self.spaces.items()}}

    def state_dict(self, since: int = 0) -> dict[str, Tensor]:
        """Frozen pairs, what each task added to the protected spaces, and the optimiser's state inside a task."""
        state = self.stored_state(since) | {"active": torch.tensor(next(iter(self.layers.values())).active)}
        for number, parameter in enumerate(self.optimised()):
            assert self.current is not None
            own = self.current.whole_state(parameter)
            state |= {f"optimizer.{number}.{name}": value for name, value in own.items() if name != "space"}
        names = {parameter: name for name, parameter in (self.matrices | self.downs).items()}
        for task, after in list(enumerate(self.widths))[since:]:
            before = self.widths[task - 1] if task else dict.fromkeys(after, 0)
            state |= {
                finished(task, f"space.{names[p]}"): self.spaces[p][:, before[p] : width].contiguous()
                for p, width in after.items()
            }
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """ValueError where the protected space of a weight is missing: its old tasks would be open to any update."""
        self.restore_stored(state)
        self.activate(int(state["active"]))
        self.restore_spaces(state)
        for number, parameter in enumerate(self.optimised()):
            assert self.current is not None
            prefix = f"optimizer.{number}."
            own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            own["space"] = self.spaces.get(parameter, self.current.state[parameter]["space"])
            self.current.load_whole_state(parameter, own)

    def restore_spaces(self, state: dict[str, Tensor]) -> None:
        """Put what the finished tasks added to each protected space side by side."""
        named, tasks = self.matrices | self.downs, range(len(self.ends))
        parts = {name: [finished(task, f"space.{name}") for task in tasks] for name in named}
        lost = [name for name, keys in parts.items() if any(key not in state for key in keys)]
        if lost:
            raise ValueError(f"no protected space for {lost[0]}, though earlier tasks were learned")
        self.widths = [dict.fromkeys(named.values(), 0) for _ in tasks]
        self.spaces = {}
        for name, parameter in named.items() if tasks else ():
            added = [state[key].to(parameter.device) for key in parts[name]]
            self.spaces[parameter] = torch.cat(added, 1)
            for task, width in enumerate(itertools.accumulate(part.shape[1] for part in added)):
                self.widths[task][parameter] = width

    def optimised(self) -> list[nn.Parameter]:
        """What the optimiser of the task under way moves, in its order; nothing between tasks."""
        groups = self.current.param_groups if self.current else []
        return [parameter for group in groups for parameter in group["params"]]


def whole_modules(model: nn.Module, config: GORPConfig) -> list[str]:
    """Names of the modules whose weight is trained whole; ValueError where an ending has none, or one is too small."""
    wanted = config.full_rank
    for endings in FULL_RANK if wanted is None else (wanted,):
        absent = [ending for ending in endings if not modules_to_adapt(model, [ending], (), None)]
        if not absent:
            return checked_matrices(model, modules_to_adapt(model, endings, (), None), config.compression.rank)
    linear = sorted({name.split(".")[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)})
    problem = "null: not known" if wanted is None else f"{list(wanted)}: no module ends in {absent[0]!r}"
    raise ValueError(
        f"method.full_rank={problem}; linear modules here end in {', '.join(linear)}; [] trains LoRA pairs alone"
    )


def checked_matrices(model: nn.Module, names: list[str], rank: int) -> list[str]:
    """``names``, once all of them are linear layers that ``rank`` fits."""
    for name in names:
        module = model.get_submodule(name)
        if not isinstance(module, nn.Linear):
            raise ValueError(f"method.full_rank: {name} is a {type(module).__name__}; name linear layers")
        if rank > min(module.weight.shape):
            raise ValueError(f"method.compression.rank={rank}: {name} has a weight of {tuple(module.weight.shape)}")
    return names
