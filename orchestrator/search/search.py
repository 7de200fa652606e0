"""A search under way: proposes trials, decides which are stopped, and writes both down.

It is handed to whatever runs trials (this process, or Ray Tune) and told what happens to them. Test scores cannot reach
it: it is told the numbers that ``run/trials.py`` names, and reads its objectives from validation matrices.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from orchestrator.run.checkpoint import read_json
from orchestrator.run.trials import Work
from orchestrator.search.ledger import Ledger, Trial, history_of
from orchestrator.search.objectives import objectives_of
from orchestrator.search.protocol import trial_experiment
from orchestrator.search.searchers import number_of_trials, propose
from orchestrator.search.space import space_of
from orchestrator.search.stopping import Stop, by_trial, decide
from orchestrator.settings.config import Experiment
from orchestrator.settings.words import words_of


class Search:
    """The trials of one sweep; ``changed`` is called with each trial that was proposed, stopped or has ended."""

    def __init__(
        self, experiment: Experiment, length: int, changed: Callable[[Trial], None] = lambda trial: None
    ) -> None:
        """``length`` is the number of tasks that a trial learns."""
        self.experiment, self.length, self.changed = experiment, length, changed
        self.entries = space_of(experiment)
        self.total = number_of_trials(experiment, self.entries)
        self.words = words_of(experiment)
        self.ledger = Ledger(experiment.folder)
        self.began = time.monotonic()
        for trial in self.ledger.trials:
            self.look(trial)
            # One that was cut off goes on where its checkpoint stands, and one that failed is tried again.
            if not trial.over or trial.status == "failed":
                trial.status = "waiting"

    @property
    def trials(self) -> list[Trial]:
        return self.ledger.trials

    def look(self, trial: Trial) -> None:
        """Read from the trial's folder what it has measured."""
        folder = self.run(trial).folder
        trial.history = history_of(folder)
        if result := read_json(folder / "result.json"):
            trial.values = objectives_of(result)

    def run(self, trial: Trial) -> Experiment:
        return trial_experiment(self.experiment, trial.settings, trial.id)

    def next(self) -> Work | None:
        """The next trial, those that were cut off first; None where there is none (any more)."""
        if self.over_budget():
            return None
        waiting = next((trial for trial in self.trials if trial.status == "waiting"), None)
        if waiting is None and len(self.trials) < self.total:
            number = len(self.trials)
            settings = propose(self.experiment, self.entries, number, self.trials)
            waiting = self.ledger.write("proposed", number, settings=settings)
        if waiting is None:
            return None
        waiting.status = "running"  # proposed once, also where it takes a while until it starts
        return Work(waiting.id, self.run(waiting), waiting.settings)

    def over_budget(self) -> bool:
        budget = self.experiment.sweep.budget
        begun = sum(trial.status != "waiting" for trial in self.trials)
        late = budget.seconds is not None and time.monotonic() - self.began >= budget.seconds
        return late or (budget.trials is not None and begun >= budget.trials)

    def is_over(self) -> bool:
        """Whether no trial is left that could start or go on."""
        tried = all(trial.status in ("finished", "stopped") for trial in self.trials)
        return tried and (len(self.trials) >= self.total or self.over_budget())

    def started(self, key: str, node: str) -> None:
        trial = self.trials[int(key)]
        self.changed(self.ledger.write("started", trial.number, node=node, attempt=trial.attempts + 1))

    def reported(self, key: str, metrics: dict[str, Any]) -> Stop | None:
        """Take in a trial's numbers after a task; the reason where it is to stop."""
        trial = self.trials[int(key)]
        known = dict(trial.history) | {metrics["task"]: metrics["anytime_validation_accuracy"]}
        trial.history = sorted(known.items())
        values = by_trial({other.number: other.history for other in self.trials})
        stop = decide(self.experiment.sweep, self.length, trial.number, metrics["task"], values)
        if stop:
            self.ledger.write("stopped", trial.number, **stop.as_dict())
            self.changed(trial)
        return stop

    def ended(self, key: str, error: str | None) -> None:
        """A trial is over: stopped by the scheduler, failed with ``error``, or finished."""
        trial = self.trials[int(key)]
        self.look(trial)
        status = "finished" if trial.values else "stopped" if trial.stopped and not error else "failed"
        reason = None if status != "failed" else error or "it ended without a result"
        self.changed(self.ledger.write("ended", trial.number, status=status, error=reason))
