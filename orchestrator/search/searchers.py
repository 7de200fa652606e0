"""Which settings a trial tries: the grid, random draws, or Optuna's TPE.

Each is a function of the trial's number and of what earlier trials have given, with no state of its own: a search
that goes on in another process proposes what it would have proposed in the first one.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.search.ledger import Trial
from orchestrator.search.objectives import DIRECTIONS
from orchestrator.search.space import RANGES, Entry
from orchestrator.settings.compose import flattened
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError

if TYPE_CHECKING:
    import optuna

WITHOUT_GRID = 8  # trials where nothing says how many
Settings = dict[str, Any]


def number_of_trials(experiment: Experiment, entries: Sequence[Entry]) -> int:
    """How many trials the search has; UserError where this does not fit its grid."""
    trials, points = experiment.sweep.trials, len(grid_of(experiment, entries))
    if experiment.sweep.searcher == "optuna" or points == 0:
        return trials or WITHOUT_GRID
    if experiment.sweep.searcher == "grid":
        if trials and trials != points:
            raise UserError(f"sweep.trials={trials}: the grid has {points} points; leave it out, or name another space")
        return points
    if trials and trials % points:
        raise UserError(f"sweep.trials={trials}: the grid has {points} points; choose a multiple of it")
    return trials or points


def grid_of(experiment: Experiment, entries: Sequence[Entry]) -> list[Settings]:
    """All points of the grid: of every entry for searcher grid, of the lists alone for random; none without any."""
    everything = experiment.sweep.searcher == "grid"
    found: list[Settings] = [{}]
    gridded = [entry for entry in entries if everything or entry.kind == "grid"]
    for entry in gridded:
        points = entry.points()
        if points is None:
            raise UserError(f"sweep.space.{entry.key}: searcher grid needs a list, a choice, or a range with a step")
        found = [
            further
            for settings in found
            for further in (
                [settings | entry.chosen(point) for point in points]
                if entry.counts(fixed_settings(experiment) | settings)
                else [settings]
            )
        ]
    return found if gridded else []


def propose(experiment: Experiment, entries: Sequence[Entry], number: int, earlier: Sequence[Trial]) -> Settings:
    """The settings of trial ``number``; ``earlier`` are the trials so far, those under way included."""
    if experiment.sweep.searcher == "optuna":
        return ask_optuna(experiment, entries, number, earlier)
    points = grid_of(experiment, entries)
    settings = dict(points[number % len(points)]) if points else {}
    # Seeded by its number, and not drawn in a row: trial 7 is the same whether or not it is the first after a stop.
    source = random.Random(f"{experiment.seed}/{number}")
    for entry in entries:
        # Drawn even where it does not count, so that the entries behind it do not depend on this.
        value = draw(entry, source)
        if entry.key not in settings and entry.counts(fixed_settings(experiment) | settings):
            settings |= entry.chosen(value)
    return settings


def fixed_settings(experiment: Experiment) -> Settings:
    return flattened(experiment.model_dump(mode="json", exclude={"sweep"}))


def draw(entry: Entry, source: random.Random) -> Any:
    if (points := entry.points()) is not None:
        return source.choice(points)
    low, high = entry.values[:2]
    if entry.kind == "uniform":
        return source.uniform(low, high)
    if entry.kind == "loguniform":
        return math.exp(source.uniform(math.log(low), math.log(high)))
    # Half a step beyond both ends, so that these are drawn as often as their neighbours.
    drawn = math.exp(source.uniform(math.log(low - 0.5), math.log(high + 0.5)))
    return min(high, max(low, round(drawn)))


def ask_optuna(experiment: Experiment, entries: Sequence[Entry], number: int, earlier: Sequence[Trial]) -> Settings:
    """TPE over all earlier trials; stopped ones count as pruned, which only a search for one objective learns from."""
    import optuna  # takes a second to import

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    direction = {"max": optuna.study.StudyDirection.MAXIMIZE, "min": optuna.study.StudyDirection.MINIMIZE}
    directions = [direction[DIRECTIONS[name]] for name in experiment.sweep.objectives]
    # Its own generator for each trial: one that draws on would depend on how often the search was stopped.
    seed = random.Random(f"{experiment.seed}/{number}").randrange(2**31)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)
    study = optuna.create_study(directions=directions, sampler=sampler)
    study.add_trials([told(experiment, entries, trial) for trial in earlier])
    asked = study.ask({entry.key: distribution_of(entry) for entry in entries}).params
    settings = dict[str, Any]()
    for entry in entries:
        if entry.counts(fixed_settings(experiment) | settings):
            value = asked[entry.key]
            settings |= entry.chosen(value if entry.kind in RANGES else entry.values[value])
    return settings


def distribution_of(entry: Entry) -> optuna.distributions.BaseDistribution:
    """Optuna's form of one entry; choices by their index, since a value may be a list."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    low, high, *step = entry.values if entry.kind in RANGES else [0, 0]
    match entry.kind:
        case "uniform":
            return FloatDistribution(low, high, step=step[0] if step else None)
        case "loguniform":
            return FloatDistribution(low, high, log=True)
        case "int":
            width = step[0] if step else 1
            return IntDistribution(low, low + (high - low) // width * width, step=width)
        case "logint":
            return IntDistribution(low, high, log=True)
    return CategoricalDistribution(list(range(len(entry.values))))


def told(experiment: Experiment, entries: Sequence[Entry], trial: Trial) -> optuna.trial.FrozenTrial:
    """An earlier trial in Optuna's form."""
    import optuna

    own = [entry for entry in entries if entry.key in trial.settings]
    params = {
        entry.key: trial.settings[entry.key] if entry.kind in RANGES else entry.values.index(trial.settings[entry.key])
        for entry in own
    }
    values = [trial.values[name] for name in experiment.sweep.objectives if name in trial.values]
    states = {
        "finished": optuna.trial.TrialState.COMPLETE,
        "stopped": optuna.trial.TrialState.PRUNED,
        "failed": optuna.trial.TrialState.FAIL,
    }
    return optuna.trial.create_trial(
        state=states.get(trial.status, optuna.trial.TrialState.RUNNING),
        params=params,
        distributions={entry.key: distribution_of(entry) for entry in own},
        values=values if trial.status == "finished" else None,
        intermediate_values={int(tasks): value for tasks, value in trial.history},
    )
