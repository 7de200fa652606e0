"""What a sweep's trials learn, and what its choice is judged by.

* stream: trials learn the whole stream; compared are the validation splits of all its tasks.
* first_tasks: trials learn its first k tasks alone, as a user who cannot see the future has to (GTEP's critique,
  Cha and Cho 2024); the choice is then run on the whole stream.
* transfer: trials learn this stream, the choice is run on another one, with orders of its classes that no trial saw.

The choice is made on validation splits alone. It is then run again with fresh seeds, and only these runs' test scores
are the sweep's result.
"""

from __future__ import annotations

from typing import Any

from orchestrator.settings.compose import load_experiment, with_settings
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError


def trial_experiment(sweep: Experiment, settings: dict[str, Any], trial: str) -> Experiment:
    """The run of one trial, in a folder of its own below the sweep's."""
    place = {"name": f"{sweep.name}-{trial}", "storage": str(sweep.folder / "trials")}
    tasks = {"benchmark.first": sweep.sweep.first_tasks} if sweep.sweep.protocol == "first_tasks" else {}
    return with_settings(sweep, tasks | settings | place)


def confirmations(sweep: Experiment, settings: dict[str, Any]) -> list[Experiment]:
    """The runs that judge the chosen ``settings``: fresh seeds, and under transfer the other stream in fresh orders."""
    target = other_stream(sweep) if sweep.sweep.protocol == "transfer" else sweep
    runs = []
    for number in range(1, sweep.sweep.confirm + 1):
        fresh: dict[str, Any] = {"seed": sweep.seed + number}
        if sweep.sweep.protocol == "transfer":
            fresh["order_seed"] = (sweep.order_seed or 0) + number
        place = {"name": f"{sweep.name}-seed{fresh['seed']}", "storage": str(sweep.folder / "confirm")}
        runs.append(with_settings(target, settings | fresh | place))
    return runs


def other_stream(sweep: Experiment) -> Experiment:
    """The sweep's experiment with the benchmark that ``sweep.transfer`` names; UserError for any other setting."""
    given = list(sweep.sweep.transfer)
    wrong = [setting for setting in given if not setting.startswith(("benchmark=", "benchmark."))]
    if wrong:
        raise UserError(f"sweep.transfer: {wrong[0]}: name the other stream with benchmark=… and benchmark.<setting>=…")
    composed = load_experiment([f"method={sweep.method.name}", *given])
    return sweep.model_copy(update={"benchmark": composed.benchmark})


def in_words(experiment: Experiment) -> str:
    """One sentence for people: what the choice was made on."""
    match experiment.sweep.protocol:
        case "first_tasks":
            return f"chosen on the validation splits of the first {experiment.sweep.first_tasks} tasks"
        case "transfer":
            return f"chosen on the validation splits of {experiment.benchmark.name}, to be run on another stream"
    return "chosen on the validation splits of all tasks"


def stream_in_words(experiment: Experiment) -> str:
    """Which stream a confirmation ran on."""
    order = "" if experiment.order_seed is None else f", classes in order {experiment.order_seed} and others"
    return f"{experiment.benchmark.name}{order if experiment.sweep.protocol == 'transfer' else ''}, all tasks"
