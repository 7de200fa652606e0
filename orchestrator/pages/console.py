"""What a person sees in the terminal when runs are done: tables, and where to look on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from orchestrator.run.checkpoint import read_json
from orchestrator.settings.config import Experiment

output = Console()
messages = Console(stderr=True)


def say(line: str) -> None:
    """One line to the person or log that follows the command, as it is: no markup, and not cut at 80 columns."""
    messages.print(line, markup=False, highlight=False, soft_wrap=True)


def where_stopped(folder: Path) -> str:
    """How far an unfinished run came."""
    now = read_json(folder / "progress.json")
    return f"task {now['task'] + 1}, step {now['step']}" if now else "the start"


def run_table(result: dict[str, Any]) -> Table:
    """One run's summary."""
    table = Table(title=f"{result['name']}: {result['method']} on {result['benchmark']}")
    for heading in (
        "final average accuracy",
        "anytime accuracy",
        "forgetting",
        "backward transfer",
        "seconds",
    ):
        table.add_column(heading, justify="right")
    table.add_row(
        percent(result["final_average_accuracy"]),
        percent(result["average_anytime_accuracy"]),
        percent(result["forgetting"]),
        percent(result["backward_transfer"]),
        f"{result['seconds']['total']:.0f}",
    )
    return table


def sweep_table(summary: dict[str, Any]) -> Table:
    """All trials, best first; accuracies are test accuracies, the order comes from validation."""
    table = Table(title=f"{summary['name']}: trials, ordered by {summary['objective'].replace('_', ' ')}", box=SIMPLE)
    settings = sorted({key for trial in summary["trials"] for key in trial["settings"]})
    table.add_column("trial", no_wrap=True)
    short = [key.split(".")[-1] for key in settings]
    for heading in (*short, "validation", "final average accuracy", "forgetting", "seconds"):
        table.add_column(heading, justify="right")
    for trial in summary["trials"]:
        seconds = trial["seconds"]
        table.add_row(
            trial["id"].split("_")[-1],
            *(setting_text(trial["settings"].get(key)) for key in settings),
            percent(trial["objective"]),
            percent(trial["final_average_accuracy"]),
            percent(trial["forgetting"]),
            trial["status"] if seconds is None else f"{seconds:.0f}",
            style="bold" if trial["id"] == summary["best"] else None,
        )
    return table


def sweep_summary(experiment: Experiment, summary: dict[str, Any], record: str) -> list[Any]:
    """What the end of a sweep prints: the table, the best settings, and where to look on; ``record`` is its address."""
    best = next((t for t in summary["trials"] if t["id"] == summary["best"]), None)
    settings = " ".join(f"{key}={value}" for key, value in best["settings"].items()) if best else "no trial finished"
    return [
        sweep_table(summary),
        f"best settings: {settings}",
        f"record: {record} (look at it with: python run.py watch storage={experiment.storage})",
        f"report: {experiment.folder / 'report.html'}",
    ]


def setting_text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
