"""How far runs are, told while they go on: bars on a terminal, plain lines where the output goes to a file or pipe."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from orchestrator.pages.console import messages, percent, say
from orchestrator.run.checkpoint import read_json

POLL_SECONDS = 0.5
LINE_SECONDS = 30  # between two lines of a run that has learned no task meanwhile


@contextmanager
def watching(find: Callable[[], list[Path]], tick: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Follow each run folder that ``find`` gives by its progress file; ``tick`` is called at every look."""
    over = threading.Event()
    with bars() if messages.is_terminal else lines() as show:

        def look() -> None:
            tick()
            show({folder: read_json(folder / "progress.json") for folder in find()})

        def keep_looking() -> None:
            while not over.wait(POLL_SECONDS):
                look()

        look()  # before the work begins, so that a run which goes on can be told from one that starts
        thread = threading.Thread(target=keep_looking, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            look()


# Told of all runs under way, and of what the progress file of each holds.
Show = Callable[[dict[Path, dict[str, Any] | None]], None]


@contextmanager
def bars() -> Iterator[Show]:
    """A bar for each run under way, and for the last ones that were."""
    state = TextColumn("{task.fields[state]}", markup=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), state, TimeElapsedColumn())
    with Progress(*columns, console=messages) as progress:
        tasks: dict[Path, Any] = {}

        def show(runs: dict[Path, dict[str, Any] | None]) -> None:
            for folder in [folder for folder in tasks if runs and folder not in runs]:
                progress.remove_task(tasks.pop(folder))  # a sweep has more trials than a terminal has lines
            for folder, now in runs.items():
                if folder not in tasks:
                    tasks[folder] = progress.add_task(folder.name, total=None, state="starting")
                if now:
                    done = now["task"] + now["step"] / now["steps"]
                    progress.update(tasks[folder], completed=done, total=now["tasks"], state=state_line(now))

        yield show


@contextmanager
def lines() -> Iterator[Show]:
    """A line when a run starts, for each task that it has learned, and every half minute."""
    told: dict[Path, int] = {}  # how many tasks of each run have had their line
    last: dict[Path, float] = {}

    def tell(folder: Path, now: dict[str, Any] | None) -> None:
        moment = time.monotonic()
        history = now["history"] if now else []
        if folder not in told:
            fresh = [f"going on: {state_line(now)}" if now and (now["task"] or now["step"]) else "starting"]
        else:
            fresh = [task_line(row, now["tasks"]) for row in history[told[folder] :]] if now else []
        told[folder] = len(history)
        over = now is not None and now["task"] == now["tasks"]
        if not fresh and not over and moment - last[folder] >= LINE_SECONDS:
            fresh = [state_line(now) if now else "starting"]
        for line in fresh:
            say(f"{folder.name}: {line}")
            last[folder] = moment

    def show(runs: dict[Path, dict[str, Any] | None]) -> None:
        for folder, now in runs.items():
            tell(folder, now)

    yield show


def task_line(row: dict[str, Any], tasks: int) -> str:
    accuracy = row["test_accuracy"]  # None where evaluate.every left it out
    said = "" if accuracy is None else f", accuracy so far {percent(accuracy)}"
    return f"task {row['task']}/{tasks} learned{said}"


def state_line(now: dict[str, Any]) -> str:
    """Task, step, loss and the last accuracy, in a few words."""
    words = [f"task {min(now['task'] + 1, now['tasks'])}/{now['tasks']}"]
    if now["step"]:
        words.append(f"step {now['step']}/{now['steps']}")
    if now["loss"] is not None:
        words.append(f"loss {now['loss']:.2f}")
    measured = [row["test_accuracy"] for row in now["history"] if row["test_accuracy"] is not None]
    if measured:
        words.append(f"accuracy {measured[-1]:.1%}")
    return " · ".join(words)
