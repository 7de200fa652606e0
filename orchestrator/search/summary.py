"""sweep.json: where a search stands, for pages, tables and the record; it can be written again from the folders."""

from __future__ import annotations

import math
import shlex
from statistics import fmean, stdev
from typing import Any

from orchestrator.run.checkpoint import read_json
from orchestrator.search.ledger import Trial
from orchestrator.search.objectives import DIRECTIONS, front, ranked
from orchestrator.search.protocol import confirmations, in_words, stream_in_words
from orchestrator.search.search import Search
from orchestrator.settings.config import Experiment
from orchestrator.settings.words import written

MEASURED = ("final_average_accuracy", "forgetting", "stored_parameters", "peak_memory_bytes")


def summarise(search: Search) -> dict[str, Any]:
    """The content of sweep.json; nothing in it is an absolute path of its own place."""
    experiment = search.experiment
    objectives = experiment.sweep.objectives
    finished = {trial.id: trial.values for trial in search.trials if trial.status == "finished"}
    best = next(iter(ranked(finished, objectives[0])), None)
    confirmation = confirmed(experiment, search.trials[int(best)].settings) if best else None
    return {
        "name": experiment.name,
        "objective": objectives[0],
        "objectives": {name: DIRECTIONS[name] for name in objectives},
        "protocol": experiment.sweep.protocol,
        "protocol_text": in_words(experiment),
        "searcher": experiment.sweep.searcher,
        "scheduler": experiment.sweep.scheduler,
        "tasks": search.length,
        "best": best,
        "front": front(finished, objectives),
        "complete": search.is_over() and (confirmation is not None or not experiment.sweep.confirm),
        "config": experiment.model_dump(mode="json", exclude={"storage"}),
        "trials": [record(search, trial) for trial in in_order(search)],
        "confirmed": confirmation,
    }


def in_order(search: Search) -> list[Trial]:
    """Finished trials from the best to the worst, then the others by how far they came."""
    objective = search.experiment.sweep.objectives[0]
    known = {trial.id: trial.values for trial in search.trials if trial.status == "finished"}
    rank = {trial: place for place, trial in enumerate(ranked(known, objective))}

    def place(trial: Trial) -> tuple[float, int, float, int]:
        tasks, value = trial.history[-1] if trial.history else (0, 0.0)
        return rank.get(trial.id, math.inf), -tasks, -value, trial.number

    return sorted(search.trials, key=place)


def record(search: Search, trial: Trial) -> dict[str, Any]:
    """One trial's entry."""
    run = search.run(trial)
    result = read_json(run.folder / "result.json") or {}
    objectives = search.experiment.sweep.objectives
    return {
        "id": trial.id,
        "status": trial.status,
        "settings": trial.settings,
        "values": {name: trial.values[name] for name in objectives if name in trial.values},
        "objective": trial.values.get(objectives[0]),
        "history": [list(point) for point in trial.history],
        **{name: result.get(name) for name in MEASURED},
        "seconds": result.get("seconds", {}).get("total"),
        "node": trial.node,
        "attempts": trial.attempts,
        "started": trial.started,
        "ended": trial.ended,
        "folder": str(run.folder.relative_to(search.experiment.folder)),
        "stopped": trial.stopped,
        "error": trial.error,
        "repeat": repeat(search, trial),
    }


def repeat(search: Search, trial: Trial) -> str:
    """The command that runs the trial alone."""
    experiment = search.experiment
    settings = dict(trial.settings)
    if experiment.sweep.protocol == "first_tasks":
        settings["benchmark.first"] = experiment.sweep.first_tasks
    words = [word for word in search.words if word.partition("=")[0] not in settings]
    words += [f"{key}={written(value)}" for key, value in settings.items()]
    return shlex.join(["run.py", "train", *words, f"name={experiment.name}-{trial.id}-alone"])


def confirmed(experiment: Experiment, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The test scores of the chosen settings on fresh seeds, once all of them are there."""
    runs = confirmations(experiment, settings)
    results = [read_json(run.folder / "result.json") for run in runs]
    if not runs or not all(results):
        return None
    scores = [result["final_average_accuracy"] for result in results]
    return {
        "settings": settings,
        "seeds": [run.seed for run in runs],
        "folders": [str(run.folder.relative_to(experiment.folder)) for run in runs],
        "final_average_accuracy": scores,
        "mean": fmean(scores),
        "standard_error": stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else 0.0,
        "stream": stream_in_words(runs[0]),
    }


def completed(experiment: Experiment) -> dict[str, Any] | None:
    """sweep.json once nothing is left to do: no trial that could go on, and the choice confirmed."""
    summary: dict[str, Any] | None = read_json(experiment.folder / "sweep.json")
    grown = summary and summary["config"]["sweep"]["budget"] != experiment.sweep.budget.model_dump(mode="json")
    return summary if summary and summary["complete"] and not grown else None
