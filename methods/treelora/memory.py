"""What the workers keep of finished tasks, in the order of the tree's entries: targets, and adapters where needed."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.base import Again
from methods.levels import Levels
from methods.treelora.low_rank import mean_of_products
from methods.treelora.regulariser import RegulariserConfig, weight
from methods.treelora.tree.stored import state_name, states_of

STEP = 1e-3  # of a central difference, relative to the length of the adapter


class Memory:
    """Local values [levels, width] for each entry; an entry has ``counts`` tasks.

    ``targets`` are what the regulariser pulls towards, ``adapters`` the values at the end of the task (empty where no
    setting asks for them), ``weights`` the entries' shares in a mean over the tree. Unless a budget makes
    them ``bounded``, entries are tasks and never change.
    """

    def __init__(self, levels: Levels, bounded: bool) -> None:
        self.levels, self.bounded = levels, bounded
        self.targets: list[Tensor] = []
        self.adapters: list[Tensor] = []
        self.counts: list[int] = []
        self.weights: list[float] = []

    def __len__(self) -> int:
        return len(self.targets)

    def add(self, target: Tensor, adapter: Tensor | None) -> None:
        """Store a finished task as the last entry."""
        self.targets.append(target)
        self.counts.append(1)
        if adapter is not None:
            self.adapters.append(adapter)

    def join(self, pair: list[int]) -> None:
        """Make the entries (kept, dropped) one, as the tree did; every task in it counts alike."""
        if not pair:
            return
        kept, dropped = pair
        share = self.counts[dropped] / (self.counts[kept] + self.counts[dropped])
        self.targets[kept] = self.targets[kept].lerp(self.targets[dropped], share)
        if self.adapters:
            both = [self.adapters[kept], self.adapters[dropped]]
            self.adapters[kept] = mean_of_products(self.levels, both, [1 - share, share])
        self.counts[kept] += self.counts[dropped]
        for values in (self.targets, self.adapters, self.counts):
            del values[dropped : dropped + 1]

    def target(self, entries: list[int]) -> Tensor:
        """The target of the entry chosen for each level."""
        return rows(self.targets, entries)

    def adapter(self, entries: list[int]) -> Tensor:
        """The stored adapter of the entry chosen for each level."""
        return rows(self.adapters, entries)

    def mean_adapter(self, over_tree: bool) -> Tensor:
        """Mean of the stored products: every task counts alike, or both branches of every node of the tree."""
        shares = self.weights if over_tree else [count / sum(self.counts) for count in self.counts]
        return mean_of_products(self.levels, self.adapters, shares)

    def gradient_at(self, entries: list[int], again: Again) -> Tensor:
        """The gradient of the present batch at the stored adapter of ``entries`` (section 3.2: one extra query)."""
        return self.elsewhere(self.adapter(entries), again)

    def elsewhere(self, adapter: Tensor, again: Again) -> Tensor:
        """The gradient of the present batch at other values of the adapter."""
        now = self.levels.parameters()
        self.levels.set_parameters(adapter)
        found = again()
        self.levels.set_parameters(now)
        return found

    def edit_by_gradients(
        self, config: RegulariserConfig, gradients: Tensor, entries: list[int], loss: Tensor, share: float, again: Again
    ) -> float:
        """Add the gradient of |grad(now) - grad(stored)|_1 on this batch: the Hessian times a vector of signs.

        A central difference along the signs; the weighted value is returned. Four more passes over the batch.
        """
        difference = again() - self.gradient_at(entries, again)
        value = float(self.levels.total(difference.abs().sum()))
        direction, now = difference.sign(), self.levels.parameters()
        lengths = self.levels.total(torch.stack([now.square().sum(), direction.square().sum()])).sqrt()
        # Relative to the adapter: a fixed step is lost in rounding, or too far off. All signs may be 0: hence clamp.
        step = STEP * lengths[0] / lengths[1].clamp(min=1)
        ahead, behind = self.elsewhere(now + step * direction, again), self.elsewhere(now - step * direction, again)
        factor = weight(config, value, float(loss), share)
        gradients.add_((ahead - behind) * (factor / (2 * step)))
        return factor * value

    def state_dict(self, since: int = 0) -> dict[str, Tensor]:
        targets = states_of("target", self.targets, self.bounded, since)
        return targets | states_of("adapter", self.adapters, self.bounded, since)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """``counts`` come first."""
        entries = range(len(self.counts))
        targets, adapters = ([state_name(name, n, self.bounded) for n in entries] for name in ("target", "adapter"))
        self.targets = [state[key] for key in targets]
        self.adapters = [state[key] for key in adapters if key in state]


def rows(stored: list[Tensor], entries: list[int]) -> Tensor:
    """Each level's row from its own entry; one entry for all levels is not copied."""
    if len(set(entries)) == 1:
        return stored[entries[0]]
    return torch.stack([stored[entry][level] for level, entry in enumerate(entries)])
