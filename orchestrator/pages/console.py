"""What a person sees in the terminal: bars while runs go on, tables when they are done."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from orchestrator.records.tracking import tracking_uri
from orchestrator.run.checkpoint import read_json
from orchestrator.settings.config import Experiment

POLL_SECONDS = 0.5
output = Console()
messages = Console(stderr=True)


@contextmanager
def watching(find: Callable[[], list[Path]], tick: Callable[[], None] = lambda: None) -> Iterator[None]:
    """A bar for each run folder that ``find`` gives, fed from the runs' progress files; ``tick`` at every look."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
    )
    over = threading.Event()
    with Progress(*columns, console=messages) as progress:
        bars: dict[Path, Any] = {}

        def look() -> None:
            record(tick)
            for folder in find():
                show(progress, bars, folder)

        def keep_looking() -> None:
            while not over.wait(POLL_SECONDS):
                look()

        thread = threading.Thread(target=keep_looking, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            look()


def record(tick: Callable[[], None]) -> None:
    """A record that cannot be written for a while must not end the run; it catches up at the next look."""
    try:
        tick()
    except MlflowException as error:
        messages.print(f"record: {str(error).splitlines()[0]}")


def show(progress: Progress, bars: dict[Path, Any], folder: Path) -> None:
    """Bring one run's bar up to date."""
    if folder not in bars:
        bars[folder] = progress.add_task(folder.name, total=None, state="starting")
    now = read_json(folder / "progress.json")
    if now:
        done = now["task"] + now["step"] / now["steps"]
        progress.update(bars[folder], completed=done, total=now["tasks"], state=state_line(now))


def state_line(now: dict[str, Any]) -> str:
    """Task, loss and the last accuracy, in a few words."""
    words = [f"task {min(now['task'] + 1, now['tasks'])}/{now['tasks']}"]
    if now["loss"] is not None:
        words.append(f"loss {now['loss']:.2f}")
    if now["history"]:
        words.append(f"accuracy {now['history'][-1]['test_accuracy']:.1%}")
    return " · ".join(words)


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


def sweep_summary(experiment: Experiment, summary: dict[str, Any]) -> list[Any]:
    """What the end of a sweep prints: the table, the best settings, and where to look on."""
    best = next((t for t in summary["trials"] if t["id"] == summary["best"]), None)
    settings = " ".join(f"{key}={value}" for key, value in best["settings"].items()) if best else "no trial finished"
    return [
        sweep_table(summary),
        f"best settings: {settings}",
        f"record: {tracking_uri(experiment)} (look at it with: python run.py watch storage={experiment.storage})",
        f"report: {experiment.folder / 'report.html'}",
    ]


def setting_text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
