"""Which trials a scheduler stops: a rule on average anytime validation accuracies after equal numbers of tasks.

An accuracy over the tasks seen so far falls as tasks arrive, so that trials can be compared only where they have seen
the same tasks. The rules know only what trials have reported, in no order, so that a search that goes on decides as one
that was never stopped.

* asha: at rungs of grace, grace * reduction, grace * reduction^2, … tasks a trial goes on if it is among the best
  1/reduction of those that reached the rung so far (Li et al. 2020, algorithm 2, without promotion of paused trials).
  Beyond the paper, a trial is compared again after each task until the next rung, as others may have reached its rung
  meanwhile, and what is equal there is told apart by the tasks that follow: a first task of two classes is often
  learned without a mistake by all.
* hyperband: the same in brackets with later and later first rungs, which trials join in turn (section 3 there).
* median: after each task a trial goes on unless it is below the median of the others (Golovin et al. 2017,
  section 3.2.1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from orchestrator.settings.config import SweepConfig

FEWEST = 3  # others that a median is taken of


@dataclass(frozen=True)
class Stop:
    """Why a trial was stopped: its ``value`` after ``tasks`` tasks is below the ``cut_off`` among so many trials."""

    rule: str
    tasks: int
    value: float
    cut_off: float
    among: int
    text: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


Values = Mapping[int, Mapping[int, float]]  # trial -> tasks learned -> average anytime validation accuracy


def decide(sweep: SweepConfig, length: int, trial: int, tasks: int, values: Values) -> Stop | None:
    """Whether ``trial`` is stopped after ``tasks`` of ``length`` tasks, and why; ``values`` holds its own too."""
    if sweep.scheduler == "none" or tasks < sweep.grace or tasks >= length:
        return None
    if sweep.scheduler == "median":
        return below_median(trial, tasks, values)
    mine = bracket(sweep, length, trial)
    passed = [rung for rung in rungs(sweep, length, mine) if rung <= tasks]
    if not passed:
        return None
    rivals = {t: v for t, v in values.items() if bracket(sweep, length, t) == mine and passed[-1] in v}
    return below_rung(sweep, range(passed[-1], tasks + 1), trial, rivals)


def rungs(sweep: SweepConfig, length: int, bracket: int) -> list[int]:
    """Numbers of tasks after which trials of a bracket are compared; the whole stream is none."""
    found, rung = list[int](), sweep.grace * sweep.reduction**bracket
    while rung < length:
        found.append(rung)
        rung *= sweep.reduction
    return found


def bracket(sweep: SweepConfig, length: int, trial: int) -> int:
    """Brackets take turns; the last one has no rung, so that its trials are never stopped."""
    if sweep.scheduler != "hyperband":
        return 0
    return trial % (len(rungs(sweep, length, 0)) + 1)


def below_rung(sweep: SweepConfig, compared: range, trial: int, values: Values) -> Stop | None:
    """Compare with all that reached the rung, after its task and, where that is equal, after the ones ``compared``."""
    passing = math.ceil(len(values) / sweep.reduction)
    mine = values[trial]
    found = [first_difference(own, mine, compared) for own in values.values()]
    # Those that are ahead, the best first: ahead after fewer tasks, then by more.
    ahead = sorted((at, -value) for at, value in filter(None, found) if value > mine[at])
    if len(ahead) < passing:
        return None
    at, cut_off = ahead[passing - 1][0], -ahead[passing - 1][1]
    best = f"the best {passing} of {len(values)}"
    text = sentence(compared[-1], mine[at], cut_off, best if at == compared[-1] else f"{best} after task {at}")
    return Stop(sweep.scheduler, compared[-1], mine[at], cut_off, len(values), text)


def first_difference(
    other: Mapping[int, float], mine: Mapping[int, float], compared: range
) -> tuple[int, float] | None:
    """After which task ``other`` first has another value, and which; None where it has none so far."""
    return next(((task, other[task]) for task in compared if task in other and other[task] != mine[task]), None)


def below_median(trial: int, tasks: int, values: Values) -> Stop | None:
    others = [own[tasks] for other, own in values.items() if other != trial and tasks in own]
    value = values[trial][tasks]
    if len(others) < FEWEST or value >= (cut_off := median(others)):
        return None
    among = f"the median of {len(others)} others"
    return Stop("median", tasks, value, cut_off, len(others) + 1, sentence(tasks, value, cut_off, among))


def sentence(tasks: int, value: float, cut_off: float, among: str) -> str:
    return f"stopped after task {tasks}: average anytime validation accuracy {value:.4f} < {cut_off:.4f}, {among}"


def by_trial(histories: Mapping[int, Sequence[tuple[int, float]]]) -> dict[int, dict[int, float]]:
    return {trial: dict(history) for trial, history in histories.items()}
