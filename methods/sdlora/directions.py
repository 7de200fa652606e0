"""What is stored of finished tasks: frozen directions in the layers, and the numbers that belong to each.

A stored pair keeps its factors as they were trained; a gain beside them makes a direction of it. The newest one keeps
the gain 1, with which it was trained, until the next task begins: only then its norm divides it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from methods.sdlora.gram import grown, normalisers, products, squares
from methods.stacked.layer import StackedLinear
from methods.stacked.method import Pairs


class Directions:
    """K directions over Q projections: those of the first layer, of the second, and so on.

    ``ranks`` has one number a direction, ``norms`` [Q, K] what divides it, ``offsets`` [Q, K] what is added to the
    magnitude in one projection alone, ``gram`` [Q, K, K] the inner products of the normalised directions.
    """

    def __init__(self, layers: Sequence[StackedLinear]) -> None:
        self.layers = layers
        counts = [len(layer.sections) for layer in layers]
        self.rows = [slice(end - count, end) for end, count in zip(torch.tensor(counts).cumsum(0), counts, strict=True)]
        self.ranks: list[int] = []
        self.norms = self.offsets = torch.zeros(sum(counts), 0, dtype=torch.float64)
        self.gram = torch.zeros(sum(counts), 0, 0, dtype=torch.float64)
        self.fresh = False  # whether the newest direction still has the gain 1

    def __len__(self) -> int:
        return len(self.ranks)

    def measured(self, pairs: Pairs, norm: str) -> tuple[Tensor, Tensor, Tensor]:
        """Of the direction that ``pairs`` make: norms [Q], products with the stored ones [Q, K], squares [Q]."""
        square = torch.cat([squares(*pair) for pair in pairs])
        # On the CPU: a few float64 numbers, from which each task's scales are made once.
        norms = torch.cat([normalisers(norm, *pair, square.sum()) for pair in pairs]).cpu()
        square = square.cpu()
        found = [self.with_stored(layer, pair) for layer, pair in zip(self.layers, pairs, strict=True)]
        cross = torch.cat(found) / self.norms / norms[:, None]
        return norms, cross, square / norms.square()

    def with_stored(self, layer: StackedLinear, pair: tuple[Tensor, Tensor]) -> Tensor:
        """Products of a layer's stored pairs with a new one, as they are."""
        if not self.ranks:
            return torch.zeros(len(layer.sections), 0, dtype=torch.float64)
        return products(layer.stored_A, layer.stored_B, self.ranks, *pair).cpu()

    def add(self, pairs: Pairs, norms: Tensor, cross: Tensor, square: Tensor) -> None:
        """Store ``pairs``; their gain stays 1 until ``settle``."""
        for layer, (a, b) in zip(self.layers, pairs, strict=True):
            layer.store(a, b)
        self.ranks.append(pairs[0][0].shape[1])
        self.gram = grown(self.gram, cross, square)
        self.norms = torch.cat([self.norms, norms[:, None]], 1)
        self.offsets = torch.cat([self.offsets, torch.zeros_like(norms)[:, None]], 1)
        self.fresh = True

    def settle(self) -> None:
        """From now on the newest direction is divided by its norm as well."""
        self.fresh = False

    def gains(self, layer: int) -> Tensor:
        """What multiplies the stored factors of ``layer`` beside the magnitudes: [P, R]."""
        gains = 1 / self.norms[self.rows[layer]]
        if self.fresh:
            gains[:, -1] = 1
        return self.repeated(gains)

    def own_magnitudes(self, layer: int) -> Tensor:
        """What ``layer`` adds to the magnitude of each stored row of factors: [P, R]."""
        return self.repeated(self.offsets[self.rows[layer]])

    def repeated(self, values: Tensor) -> Tensor:
        """[P, K] for each rank row: [P, R]."""
        return values.repeat_interleave(torch.tensor(self.ranks, dtype=torch.long), dim=1)

    def state_dict(self) -> dict[str, Tensor]:
        ranks, fresh = torch.tensor(self.ranks, dtype=torch.long), torch.tensor(self.fresh)
        return {"norms": self.norms, "offsets": self.offsets, "gram": self.gram, "ranks": ranks, "fresh": fresh}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """After the layers have their stored pairs; ValueError where these are not what the state counts."""
        ranks, rows = state["ranks"].tolist(), len(self.norms)
        if state["norms"].shape != (rows, len(ranks)) or state["gram"].shape != (rows, len(ranks), len(ranks)):
            raise ValueError(f"{len(ranks)} directions of {len(state['norms'])} projections, but the model has {rows}")
        stored = {layer.stored_A.shape[1] for layer in self.layers}
        if stored != {sum(ranks)}:
            raise ValueError(f"directions of ranks {ranks}, but layers hold {sorted(stored)} rows of factors")
        self.norms, self.offsets, self.gram = (state[name] for name in ("norms", "offsets", "gram"))
        self.ranks, self.fresh = ranks, bool(state["fresh"])
