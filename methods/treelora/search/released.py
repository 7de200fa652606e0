"""The search rule of the released code (ZinYY/TreeLoRA at c6a9b6d), with its defects kept on purpose.

Written from a description of its behaviour, for comparison runs only. One look is one pull a level. What it does, and
where that departs from the paper (Qian et al. 2025, section 3.2):

- Signatures keep their magnitude and are counted once a level, so both sides are as many times too large as there
  are levels.
- The query is a prefix sum: the running mean times the share of the task seen. Early in a task its distance to a
  stored whole-task signature is mostly that signature's own norm.
- Losses are L1 distances of hundreds beside a bonus of about two, so the bonus is without effect on entries that were
  pulled and overwhelming on those that were not.
- The sign is inverted: the score is +L1 + bonus and larger is likelier, so the farthest entry is preferred.
- The minimum is added to the scores instead of subtracted, which matters because a multiplication follows.
- Only the root's two groups are used, without descent: the scores of the group that contains a first draw are
  multiplied by its median similarity, a raw product that may be negative, at most 1.5.
- The groups come from differences of consecutive signatures, the scores from the signatures themselves.
- The groups look at the first level only, their similarity at the second only.
- Scores are divided by their range and drawn by softmax, so no entry is more than e times likelier than another.

Deviations from the released code: statistics last for the task and not for an epoch; sketches stand for vectors, so
L1 is taken over their columns; draws come from a counter-based generator; scores that are all equal are left so.
"""

from __future__ import annotations

import math

import numpy
from numpy.typing import NDArray

from methods.treelora.search.arms import Arms, Floats, Ints, Look, draw

LARGEST_FACTOR = 1.5
UNSEEN = 1e-5  # added to twice the pulls, so that an entry never pulled has a bonus of hundreds


class ReleasedSearch(Arms):
    """Draws an entry for each level from raw sketches [entries, levels, width]; ``rounds`` looks are planned.

    ``pulled`` and ``lost``, the sums of L1 distances, are [entries, levels], ``chosen`` is [levels].
    """

    def __init__(self, sketches: NDArray[numpy.floating], rounds: int, seed: int) -> None:
        super().__init__(len(sketches))
        self.levels = sketches.shape[1]
        self.stored = self.levels * sketches.astype(numpy.float64)
        self.rounds, self.seed = max(rounds, 1), seed
        self.groups = root_groups(differences(self.stored))
        self.pulled = numpy.zeros((self.entries, self.levels), dtype=numpy.int64)
        self.lost = numpy.zeros((self.entries, self.levels))
        self.chosen = numpy.full(self.levels, -1)

    def look(self, look: Look, rounds: int) -> None:
        """Draw one entry a level and record its distance; ``rounds`` is not used."""
        number = int(self.pulled[:, 0].sum()) + 1
        scores = self.weighted(self.scores(number), number)
        spread = float(numpy.ptp(scores))
        scores = scores / spread if spread > 0 else scores
        query = self.levels * look.progress * look.sketch.astype(numpy.float64)
        for level in range(self.levels):
            entry = softmax_draw(scores[:, level], draw(self.seed, number, 1 + level))
            self.chosen[level] = entry
            self.pulled[entry, level] += 1
            self.lost[entry, level] += numpy.abs(query[level] - self.stored[entry, level]).sum()

    def scores(self, number: int) -> Floats:
        """Mean L1 distance plus bonus [entries, levels] at the look of that number, shifted the wrong way."""
        similarity = -self.lost / numpy.maximum(self.pulled, 1)
        bonus = math.sqrt(math.log(2 * self.rounds * (number + 1) * (number + 2)))
        scores = -(similarity - bonus / numpy.sqrt(2 * self.pulled + UNSEEN))
        return scores + scores.min()

    def weighted(self, scores: Floats, number: int) -> Floats:
        """Multiply the group of a first draw, over the sums of the levels, by its similarity."""
        first = softmax_draw(scores.sum(axis=1), draw(self.seed, number, 0))
        factors = numpy.ones((self.entries, 1))
        for members, similarity in self.groups:
            if first in members:
                factors[members] = min(similarity or 1.0, LARGEST_FACTOR)
        return scores * factors

    def choices(self, propose: bool) -> list[int]:
        """The entries drawn last, one a level, -1 before the first look; there are no proposals."""
        return self.chosen.tolist()

    def pulls(self) -> Ints:
        """Pulls over all levels [entries]."""
        return self.pulled.sum(axis=1)

    def means(self) -> Floats:
        """Mean L1 distance over all pulls [entries], not normalised; nan where never pulled."""
        pulls = self.pulls()
        return numpy.divide(self.lost.sum(axis=1), pulls, out=numpy.full(self.entries, numpy.nan), where=pulls > 0)

    def state(self) -> dict[str, NDArray]:
        return super().state() | {"chosen": self.chosen}


def softmax_draw(scores: Floats, bits: int) -> int:
    """The index that 64 random bits pick with the probabilities softmax(scores)."""
    sums = numpy.exp(scores - scores.max()).cumsum()
    place = sums.searchsorted((bits >> 11) * 2.0**-53 * sums[-1], side="right")
    return min(int(place), len(scores) - 1)


def differences(stored: Floats) -> Floats:
    """Each signature [entries, levels, width] minus the one before it; the first stays."""
    return numpy.diff(stored, axis=0, prepend=numpy.zeros_like(stored[:1]))


def similarities(points: Floats) -> tuple[Floats, float]:
    """Inner products of points [members, width] with their mean, and the lower median of these."""
    products = points @ points.mean(axis=0)
    return products, float(numpy.sort(products)[(len(products) - 1) // 2])


def root_groups(points: Floats) -> list[tuple[Ints, float | None]]:
    """The members of the root's children and their median similarity, None for a child without children.

    ``points`` [entries, levels, width] are differences of signatures; node depth d reads level d alone.
    """
    members = numpy.arange(len(points))
    if len(members) < 2:
        return []
    products, median = similarities(points[:, 0])
    upper = products >= median
    if upper.all():
        upper = members < len(members) // 2
    groups = [members[upper], members[~upper]]
    inner = [len(group) > 1 and points.shape[1] > 1 for group in groups]
    return [(g, similarities(points[g, 1])[1] if splits else None) for g, splits in zip(groups, inner, strict=True)]
