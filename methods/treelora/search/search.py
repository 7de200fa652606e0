"""The search for the stored signature nearest to the task under way: its settings, its kinds, its state.

    tree      lower confidence bounds over the nodes of the task tree (``bandit``; Qian et al. 2025, section 3.2)
    flat      lower confidence bounds over the entries, without the tree
    exact     all distances at every look
    random    an entry drawn by the number of looks
    latest    the last entry
    released  the rule of the released code (``released``)

Deviation from the paper: with ``observe=stored`` rounds compare stored signatures and only explore, the answer is the
entry of the smallest mean; the paper takes a fresh gradient through the pulled adapter (``fresh_grad``), so that the
answer is the entry to pull next.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

import numpy
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from methods.treelora.search.arms import Arms, Bonus, Floats, Look, draw, lower_bound
from methods.treelora.search.bandit import TreeSearch
from methods.treelora.search.released import ReleasedSearch
from methods.treelora.tree.metric import MetricName
from methods.treelora.tree.tree import TaskTree


class SearchConfig(BaseModel):
    """Settings ``method.search.<field>``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["tree", "flat", "exact", "random", "latest", "released"] = Field(
        "tree", description="tree: the method; the others are baselines"
    )
    every: int = Field(4, gt=0, description="steps between two search points")
    rounds: int = Field(8, gt=0, description="entries pulled at a search point")
    confidence: float = Field(0.1, ge=0, description="width of the confidence bounds, in units of the loss range")
    staleness: int = Field(1, ge=0, le=1, description="search points by which an answer may lag; 0 waits for it")
    bonus: Bonus = Field("horizon", description="width of the bounds; paper: every round changes all of them")
    granularity: Literal["path", "per_layer"] = Field("path", description="one entry for all levels, or one for each")
    metric: MetricName = Field("l2", description="distance of two signatures; l1 is the paper's")
    observe: Literal["stored", "fresh_grad"] = Field(
        "stored", description="what a pull compares: stored signatures, or a fresh gradient at the stored adapter"
    )
    statistics: Literal["task", "epoch"] = Field("task", description="how long pulls are remembered")
    diameter_scale: float = Field(1.0, ge=0, le=1, description="below 1 trusts the tree more than it warrants")

    @model_validator(mode="after")
    def _losses_can_be_observed(self) -> Self:
        if self.observe == "fresh_grad" and self.kind in ("exact", "released"):
            raise ValueError(f"search.kind={self.kind} compares stored signatures only; use search.observe=stored")
        return self


class FlatSearch(Arms):
    """Lower confidence bounds over entries alone; untried ones first, ties as in the tree."""

    def __init__(
        self, entries: int, rounds: int, confidence: float, seed: int, *, bonus: Bonus, level: int | None = None
    ) -> None:
        super().__init__(entries, level)
        self.seed, self.bonus = seed, bonus
        self.lower = lower_bound(entries, rounds, confidence, bonus)
        self.bound = numpy.full(entries, -numpy.inf)

    def select(self) -> int:
        """An entry of the smallest bound."""
        smallest = numpy.flatnonzero(self.bound == self.bound.min())
        choice = draw(self.seed, int(self.pulled.sum())) % len(smallest) if len(smallest) > 1 else 0
        return int(smallest[choice])

    def update(self, entry: int, loss: float) -> None:
        super().update(entry, loss)
        self.refresh([entry] if self.bonus == "horizon" else numpy.flatnonzero(self.pulled).tolist())

    def refresh(self, entries: list[int]) -> None:
        now = int(self.pulled.sum())
        for entry in entries:
            self.bound[entry] = self.lower(int(self.pulled[entry]), float(self.lost[entry]), now)

    def bounds(self) -> Floats:
        return self.bound.copy()

    def load(self, state: Mapping[str, NDArray]) -> None:
        super().load(state)
        # Bounds are not saved: they follow from pulls and losses.
        self.bound[:] = -numpy.inf
        self.refresh(numpy.flatnonzero(self.pulled).tolist())


class ExactSearch(Arms):
    """Compares all entries at every look; ``now`` [entries] are the distances of the last one."""

    def __init__(self, entries: int, level: int | None = None) -> None:
        super().__init__(entries, level)
        self.now = numpy.full(entries, numpy.nan)

    def look(self, look: Look, rounds: int) -> None:
        self.now[:] = look.losses(self.level)
        self.pulled += 1
        self.lost += self.now

    def answer(self) -> int:
        """The nearest entry at the last look."""
        return int(self.now.argmin()) if self.pulled.any() else -1

    def state(self) -> dict[str, NDArray]:
        return super().state() | {"now": self.now}


class RandomSearch(Arms):
    """Pulls one entry a look, whatever the losses."""

    def __init__(self, entries: int, seed: int, level: int | None = None) -> None:
        super().__init__(entries, level)
        self.seed = seed

    def look(self, look: Look, rounds: int) -> None:
        super().look(look, 1)

    def entry(self, number: int) -> int:
        return draw(self.seed, number) % self.entries

    def select(self) -> int:
        return self.entry(int(self.pulled.sum()))

    def answer(self) -> int:
        """The entry pulled last."""
        looks = int(self.pulled.sum())
        return self.entry(looks - 1) if looks else -1


class LatestSearch(RandomSearch):
    """Pulls the last entry at every look."""

    def entry(self, number: int) -> int:
        return self.entries - 1


class Searches:
    """The searches of one task: one for the mean over levels, or one for each level over the same tree.

    ``sketches`` [entries, levels, width] are raw, ``rounds`` is the planned number of pulls of each search.
    """

    def __init__(
        self, config: SearchConfig, tree: TaskTree, sketches: NDArray[numpy.floating], rounds: int, seed: int
    ) -> None:
        self.config, self.tree, self.rounds, self.seed = config, tree, rounds, seed
        self.levels = tree.signatures.shape[1]
        self.searches: list[Arms] = []
        if config.kind == "released" and tree.entries:
            # The released rule plans looks, each of which is one pull a level whatever ``rounds`` is.
            self.searches = [ReleasedSearch(sketches, rounds // config.rounds, seed)]
        elif tree.entries:
            levels = range(self.levels) if config.granularity == "per_layer" else [None]
            self.searches = [self.search(level) for level in levels]

    def search(self, level: int | None) -> Arms:
        """The search of one level, or of the mean over levels."""
        config, entries = self.config, self.tree.entries
        # With one seed all levels would break their ties alike.
        seed = self.seed if level is None else draw(self.seed, level)
        if config.kind == "tree":
            scale, bonus = config.diameter_scale, config.bonus
            return TreeSearch(
                self.tree, self.rounds, config.confidence, seed, bonus=bonus, level=level, diameter_scale=scale
            )
        if config.kind == "flat":
            return FlatSearch(entries, self.rounds, config.confidence, seed, bonus=config.bonus, level=level)
        if config.kind == "exact":
            return ExactSearch(entries, level)
        return RandomSearch(entries, seed, level) if config.kind == "random" else LatestSearch(entries, seed, level)

    def look(self, sketch: NDArray[numpy.floating], progress: float) -> None:
        """Pull with the stored signatures for a raw sketch [levels, width]; a zero one pulls nothing.

        ``progress`` in (0, 1] is the share of the task that the sketch covers; the released rule uses it.
        """
        # A zero sketch has no direction: all entries would be 1/2 away, and the pulls would teach nothing.
        if sketch.any():
            look = Look(self.tree, sketch, progress)
            for search in self.searches:
                search.look(look, self.config.rounds)

    def observe(self, losses: NDArray[numpy.floating]) -> None:
        """Take in the losses [levels] of the entries that ``answer`` last gave; ValueError unless they are finite."""
        if len(losses) != self.levels:
            raise ValueError(f"{len(losses)} losses were observed for {self.levels} levels; give one for each")
        for level in numpy.flatnonzero(~numpy.isfinite(losses)):
            raise ValueError(f"the observed loss of level {level} is not finite; lower train.learning_rate")
        for search in self.searches:
            search.observe(losses)

    def answer(self) -> list[int]:
        """An entry for each level, the nearest as far as is known or the next to observe; empty while there is none."""
        propose = self.config.observe == "fresh_grad"
        found = [entry for search in self.searches for entry in search.choices(propose)]
        return found * (self.levels // len(found)) if found and min(found) >= 0 else []

    def statistics(self) -> dict[str, Floats]:
        """Pulls, mean loss (nan where never pulled) and bound of each entry: sums and means over the searches."""
        if not self.searches:
            return {name: numpy.zeros(0) for name in ("pulls", "mean", "bound")}
        means = numpy.stack([search.means() for search in self.searches])
        known = (~numpy.isnan(means)).sum(axis=0)
        unknown = numpy.full(means.shape[1], numpy.nan)
        return {
            "pulls": numpy.sum([search.pulls() for search in self.searches], axis=0, dtype=numpy.float64),
            "mean": numpy.divide(numpy.nansum(means, axis=0), known, out=unknown, where=known > 0),
            "bound": numpy.mean([search.bounds() for search in self.searches], axis=0),
        }

    def state_dict(self) -> dict[str, NDArray]:
        """Statistics [searches, ...] of all searches; settings, tree and seed are not in it."""
        states = [search.state() for search in self.searches]
        return {name: numpy.stack([state[name] for state in states]) for name in (states[0] if states else [])}

    def load_state_dict(self, state: Mapping[str, NDArray]) -> None:
        """The inverse of ``state_dict``; ValueError for statistics of another tree or kind."""
        for name, rows in state.items():
            if len(rows) != len(self.searches):
                raise ValueError(
                    f"the saved search has {len(rows)} sets of '{name}', this one needs {len(self.searches)}; "
                    "use the search.granularity that it was saved with"
                )
        for number, search in enumerate(self.searches):
            search.load({name: rows[number] for name, rows in state.items()})
