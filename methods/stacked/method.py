"""What methods share that learn one low-rank pair a task and keep those of earlier tasks frozen beside it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import Chooser, Method, finished
from methods.levels import Levels
from methods.stacked.layer import StackedLinear
from methods.stacked.product import SINGLE

FUSED = ("qkv",)  # query, key and value in one layer, as timm's transformers have them
Wholes = dict[str, Tensor]
Pairs = list[tuple[Tensor, Tensor]]  # A [P, r, in] and B [P, width, r] of each layer


class StackedMethod(Method):
    """Every target becomes a ``StackedLinear``; in a fused layer query and value are adapted, apart from each other.

    Values go in and out as whole tensors by name, the same on every rank, so that what is stored does not depend on how
    the model is spread.
    """

    layers: dict[str, StackedLinear]

    def stack(self, model: nn.Module, names: Sequence[str], rank: int, dropout: float = 0.0) -> None:
        """Put layers with room for directions in the places of the modules ``names``."""
        # The learner has just seeded torch with the run's seed.
        self.model, self.seed = model, torch.initial_seed()
        self.layers = {name: stacked(model, name, rank, dropout) for name in names}
        self.ends: list[int] = []  # rows of factors that a layer stores after each finished task
        for name, layer in self.layers.items():
            layer.scales = partial(self.scales, name)

    def bind(self, levels: Levels, chooser: Chooser | None) -> None:
        self.levels = levels
        names = [part.name for level in levels.slices for part in level]
        # Names have a prefix where the backbone is part of a model, and none where a method is used alone.
        end = f"{next(iter(self.layers))}.lora_A"
        self.prefix = next(name for name in names if name.endswith(end)).removesuffix(end)

    def scales(self, name: str, wholes: Mapping[str, Tensor] | None = None) -> Tensor:
        """What multiplies the directions of a layer [P, R + active]: as trained, or as ``wholes`` have it."""
        raise NotImplementedError

    def wholes(self) -> Wholes:
        """All adapters, whole; every rank has to call it."""
        return self.levels.named_wholes(self.levels.parameters())

    def put(self, wholes: Wholes) -> None:
        self.levels.set_parameters(self.levels.local_of(wholes))

    def factors(self, name: str, wholes: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """A and B of a layer, as its parameters are shaped."""
        return wholes[f"{self.prefix}{name}.lora_A"], wholes[f"{self.prefix}{name}.lora_B"]

    def active_pairs(self, wholes: Mapping[str, Tensor]) -> Pairs:
        return [layer.pair(*self.factors(name, wholes)) for name, layer in self.layers.items()]

    def start_pairs(self, wholes: Wholes, task: int) -> None:
        """A fresh pair in every layer, which changes nothing; the same for this seed and task wherever it is drawn."""
        # Not torch's own generator, whose state depends on the steps before and differs after a resume.
        generator = torch.Generator().manual_seed(hash((self.seed, task)) % 2**63)
        for name in self.layers:
            a, b = self.factors(name, wholes)
            bound = 1 / math.sqrt(a.shape[1])  # Kaiming-uniform with a = sqrt(5), as peft draws it
            a.copy_(torch.rand(a.shape, generator=generator) * (2 * bound) - bound)
            b.zero_()

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Everything folded into the frozen weights: as fast as the bare backbone.

        Weights of half precision stay as they are: the sum would round a small update away.
        """
        wholes = self.wholes()
        folded = [name for name, layer in self.layers.items() if torch.finfo(layer.base.weight.dtype).bits >= SINGLE]
        for name in folded:
            layer = self.layers[name]
            layer.fold(layer.delta(*self.factors(name, wholes), self.scales(name, wholes)))
        try:
            yield
        finally:
            for name in folded:
                self.layers[name].unfold()

    def pairs(self) -> dict[str, tuple[Tensor, Tensor]]:
        wholes = self.wholes()
        return {
            self.prefix + name: one_pair(layer, *self.factors(name, wholes), self.scales(name, wholes))
            for name, layer in self.layers.items()
        }

    def pair_parameters(self) -> int:
        """Numbers in stored directions, and in the active part of the pairs that learn."""
        count = 0
        for layer in self.layers.values():
            count += layer.stored_A.numel() + layer.stored_B.numel()
            count += layer.active * (layer.lora_A.numel() + layer.lora_B.numel()) // layer.rank
        return count

    def close(self) -> None:
        """What the layers store now is all that the tasks up to this one leave."""
        self.ends.append(next(iter(self.layers.values())).stored_A.shape[1])

    def stored_state(self, since: int = 0) -> dict[str, Tensor]:
        """The stored directions by layer and task, for a checkpoint; a task may have left none."""
        state = {"ends": torch.tensor(self.ends, dtype=torch.long)}
        for task, (start, end) in enumerate(itertools.pairwise([0, *self.ends])):
            for name, layer in self.layers.items() if task >= since and end > start else ():
                state[finished(task, f"{name}.stored_A")] = layer.stored_A[:, start:end].contiguous()
                state[finished(task, f"{name}.stored_B")] = layer.stored_B[..., start:end].contiguous()
        return state

    def restore_stored(self, state: Mapping[str, Any]) -> None:
        """The inverse; ValueError names the layer whose directions do not fit."""
        self.ends = state["ends"].tolist()
        tasks = [task for task, (start, end) in enumerate(itertools.pairwise([0, *self.ends])) if end > start]
        for name, layer in self.layers.items():
            try:
                rights = [layer.stored_A[:, :0], *(state[finished(task, f"{name}.stored_A")] for task in tasks)]
                lefts = [layer.stored_B[..., :0], *(state[finished(task, f"{name}.stored_B")] for task in tasks)]
                layer.restore(torch.cat(rights, 1), torch.cat(lefts, 2))
            except (KeyError, ValueError, RuntimeError) as error:
                raise ValueError(f"{name}: {error}") from None


def stacked(model: nn.Module, name: str, rank: int, dropout: float) -> StackedLinear:
    """Put a layer with room for directions in the place of the module ``name``; ValueError where it cannot be."""
    base = model.get_submodule(name)
    if not isinstance(base, nn.Linear):
        raise ValueError(f"backbone.targets: {name} is a {type(base).__name__}; name linear layers")
    rows = sections(name, base.out_features)
    try:
        layer = StackedLinear(base, rank, rows, dropout)
    except ValueError as error:
        raise ValueError(f"method.rank={rank}: {name}: {error}") from None
    model.set_submodule(name, layer)
    return layer


def sections(name: str, outputs: int) -> tuple[slice, ...]:
    """The rows that are adapted: query and value of a fused layer, else all; ValueError where it has no three parts."""
    if name.split(".")[-1] not in FUSED:
        return (slice(0, outputs),)
    if outputs % 3:
        raise ValueError(f"backbone.targets: {name}: query, key and value cannot share its {outputs} outputs evenly")
    width = outputs // 3
    return slice(0, width), slice(2 * width, outputs)


def one_pair(layer: StackedLinear, a: Tensor, b: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """All that a layer adds to its base as one pair A [P K, in] and B [out, P K]: its update is their product."""
    a, b = layer.pair(a, b)
    rights = torch.cat([layer.stored_A, a], 1)
    lefts = torch.cat([layer.stored_B, b], 2) * scales[:, None]
    whole = lefts.new_zeros(layer.base.out_features, len(lefts), lefts.shape[2])
    for number, section in enumerate(layer.sections):
        whole[section, number] = lefts[number]
    return rights.flatten(0, 1), whole.flatten(1)
