"""What every kind of search shares: pulls and losses of each entry, distances of one look, bounds and random draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import numpy
from numpy.typing import NDArray

from methods.treelora.tree.metric import chunks
from methods.treelora.tree.tree import TaskTree

Floats = NDArray[numpy.float64]
Ints = NDArray[numpy.int64]
Bonus = Literal["horizon", "paper"]
Lower = Callable[[int, float, int], float]  # pulls, sum of losses and rounds so far to mean minus width

SIXTY_FOUR_BITS = (1 << 64) - 1


def draw(*key: int) -> int:
    """64 random bits that depend on the key alone: a counter-based generator, the finaliser of splitmix64 chained."""
    bits = 0
    for word in key:
        bits = (bits + word + 0x9E3779B97F4A7C15) & SIXTY_FOUR_BITS
        bits = ((bits ^ bits >> 30) * 0xBF58476D1CE4E5B9) & SIXTY_FOUR_BITS
        bits = ((bits ^ bits >> 27) * 0x94D049BB133111EB) & SIXTY_FOUR_BITS
        bits ^= bits >> 31
    return bits


def lower_bound(entries: int, rounds: int, confidence: float, bonus: Bonus) -> Lower:
    """The mean minus the width, as a function of pulls (at least 1), sum of losses and rounds so far."""
    if bonus == "paper":
        return lambda count, total, now: total / count - 2 * confidence * math.sqrt(math.log(now) / count)
    scale = math.log(2 * max(entries, 1) * max(rounds, 1))

    def lower(count: int, total: float, now: int) -> float:
        return total / count - confidence * math.sqrt((scale + math.log((count + 1) * (count + 2))) / (2 * count))

    return lower


FEW = 64  # entries whose distances are computed at once: cheaper than one by one, even if few are needed


class Look:
    """One raw sketch [levels, width] beside the stored signatures; of many, only needed distances are computed.

    ``progress`` is the share of the task that the sketch covers.
    """

    def __init__(self, tree: TaskTree, sketch: NDArray[numpy.floating], progress: float) -> None:
        self.tree, self.sketch, self.progress = tree, sketch, progress
        self.query = tree.metric.directions(sketch)
        self.known: dict[int, list[float]] = {}
        if tree.entries <= FEW:
            table = tree.metric.by_level(self.query, tree.signatures)
            rows = numpy.column_stack([table, table.mean(axis=-1)]).tolist()
            self.known = dict(enumerate(rows))

    def loss(self, entry: int, level: int | None) -> float:
        """The distance to one entry at one level, or the mean over levels."""
        if entry not in self.known:
            losses = self.tree.metric.by_level(self.query, self.tree.signatures[entry])
            self.known[entry] = [*losses.tolist(), float(losses.mean())]
        return self.known[entry][-1 if level is None else level]

    def losses(self, level: int | None) -> Floats:
        """The distances to all entries."""
        stored, metric = self.tree.signatures, self.tree.metric
        parts = [metric.by_level(self.query, stored[part]) for part in chunks(len(stored), self.query.size)]
        table = numpy.concatenate(parts).astype(numpy.float64)
        return table.mean(axis=-1) if level is None else table[:, level]


class Arms:
    """Pulls and sum of losses of each entry, the statistics that all kinds of search keep.

    ``level`` is the level whose losses count, None for the mean over levels.
    """

    def __init__(self, entries: int, level: int | None = None) -> None:
        self.entries, self.level = entries, level
        self.pulled = numpy.zeros(entries, dtype=numpy.int64)
        self.lost = numpy.zeros(entries)

    def select(self) -> int:
        """The entry to pull next."""
        raise NotImplementedError

    def update(self, entry: int, loss: float) -> None:
        """Take in the loss of one pull."""
        self.pulled[entry] += 1
        self.lost[entry] += loss

    def look(self, look: Look, rounds: int) -> None:
        """Pull so many times with the stored signatures."""
        for _ in range(rounds):
            entry = self.select()
            self.update(entry, look.loss(entry, self.level))

    def observe(self, losses: NDArray[numpy.floating]) -> None:
        """Take in the observed losses [levels] of the entry that ``select`` proposes."""
        self.update(self.select(), float(losses.mean() if self.level is None else losses[self.level]))

    def choices(self, propose: bool) -> list[int]:
        """The entry to pull next or the answer, -1 for none; kinds that choose for each level give one a level."""
        return [self.select() if propose else self.answer()]

    def answer(self) -> int:
        """The entry of the smallest mean among those pulled, -1 before the first pull."""
        seen = numpy.flatnonzero(self.pulled)
        return int(seen[(self.lost[seen] / self.pulled[seen]).argmin()]) if len(seen) else -1

    def pulls(self) -> Ints:
        """Pulls [entries]."""
        return self.pulled.copy()

    def means(self) -> Floats:
        """Mean losses [entries], nan where never pulled."""
        nothing = numpy.full(len(self.pulled), numpy.nan)
        return numpy.divide(self.lost, self.pulled, out=nothing, where=self.pulled > 0)

    def bounds(self) -> Floats:
        """Lower bounds [entries], minus infinity where never pulled; kinds without a width give the means."""
        return numpy.nan_to_num(self.means(), nan=-numpy.inf)

    def state(self) -> dict[str, NDArray]:
        """The arrays themselves, not copies."""
        return {"pulled": self.pulled, "lost": self.lost}

    def load(self, state: Mapping[str, NDArray]) -> None:
        """Overwrite the statistics; ValueError if they belong to another tree."""
        for name, array in self.state().items():
            saved = state.get(name)
            if saved is None or saved.shape != array.shape:
                found = "nothing" if saved is None else f"shape {list(saved.shape)}"
                raise ValueError(
                    f"the saved search has {found} for '{name}', this one needs shape {list(array.shape)}; "
                    "use the settings and tasks that it was saved with"
                )
            array[...] = saved
