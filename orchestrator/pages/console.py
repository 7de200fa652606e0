"""What a person sees in the terminal when runs are done: tables, and where to look on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.pages.tree_view import in_full
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
    """All trials, best first; test accuracies are only reported, the order comes from validation."""
    table = Table(title=f"{summary['name']}: trials, ordered by {summary['objective'].replace('_', ' ')}", box=SIMPLE)
    table.collapse_padding, table.pad_edge, table.show_edge = True, False, False
    settings = list(dict.fromkeys(key for trial in summary["trials"] for key in trial["settings"]))
    table.add_column("trial", no_wrap=True)
    for heading in (*last_parts(settings), "valid.", "test", "forget", "s"):
        # Headings go on in the next line, so that three or four settings fit into 80 columns.
        table.add_column(re.sub(r"([_.])(?=.)", r"\1\n", heading), justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for trial in summary["trials"]:
        table.add_row(
            trial["id"].split("_")[-1],
            *(Text(setting_text(trial["settings"][key]) if key in trial["settings"] else "–") for key in settings),
            percent(trial["objective"]),
            percent(trial["final_average_accuracy"]),
            percent(trial["forgetting"]),
            "–" if trial["seconds"] is None else f"{trial['seconds']:.0f}",
            state(trial),
            style="bold" if trial["id"] == summary["best"] else None,
        )
    return in_full(table)


def last_parts(settings: Sequence[str]) -> list[str]:
    """The last part of each dotted name, and as many before it as tell it from the others."""

    def part(name: str, length: int) -> str:
        return ".".join(name.split(".")[-length:])

    def heading(name: str, length: int = 1) -> str:
        alike = [other for other in settings if part(other, length) == part(name, length)]
        return part(name, length) if len(alike) == 1 else heading(name, length + 1)

    return [heading(name) for name in settings]


def state(trial: dict[str, Any]) -> str:
    """The status; of a stopped trial also after how many tasks, and which value missed which cut-off."""
    stopped = trial.get("stopped")
    if not stopped:
        return trial["status"]
    return f"stopped at {stopped['tasks']}\n{stopped['value']:.3f}<{stopped['cut_off']:.3f}"


def sweep_summary(experiment: Experiment, summary: dict[str, Any], record: str) -> list[Any]:
    """What the end of a sweep prints: table, failures, the best settings, the result, and where to look on.

    ``record`` is the address of the record.
    """
    best = next((t for t in summary["trials"] if t["id"] == summary["best"]), None)
    settings = " ".join(f"{key}={value}" for key, value in best["settings"].items()) if best else "no trial finished"
    lines = [
        *failure_lines(summary),
        f"best settings: {settings}" + (f" ({best['folder']})" if best else ""),
        result_line(summary),
        f"record: {record} (look at it with: python run.py watch storage={experiment.storage})",
        f"report: {experiment.folder / 'report.html'}",
    ]
    return [sweep_table(summary), *map(Text, lines)]  # an error may hold what rich would take for its markup


def failure_lines(summary: dict[str, Any]) -> list[str]:
    """Two lines for each trial that failed: why and where, and how to repeat it alone."""
    lines = []
    for trial in summary["trials"]:
        if trial["status"] == "failed":
            where = f" on {trial['node']}" if trial.get("node") else ""
            tries = f", attempts: {trial['attempts']}" if trial.get("attempts") else ""
            lines.append(f"trial {trial['id']} failed{where}{tries}: {trial['error']}")
            lines += [f"  alone: {trial['repeat']}"] if trial.get("repeat") else []
    return lines


def result_line(summary: dict[str, Any]) -> str:
    """The confirmed number, the only one that is called a result."""
    confirmed = summary.get("confirmed")
    if not confirmed:
        return "result: none, the choice was not confirmed (sweep.confirm=3 runs it again on three fresh seeds)"
    seeds, error = confirmed["seeds"], confirmed["standard_error"]
    spread = "" if error is None else f" ± {100 * error:.1f}"
    return (
        f"result: final average accuracy {percent(confirmed['mean'])}{spread} on fresh seed{'s' * (len(seeds) > 1)} "
        f"{', '.join(map(str, seeds))}; stream: {confirmed['stream']}; {summary['protocol_text']}"
    )


def setting_text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
