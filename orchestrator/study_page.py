"""The page of a study in Markdown: a table over all runs, settings, and accuracy matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import Any

Result = dict[str, Any]

COLUMNS: dict[str, Callable[[Result], float | None]] = {
    "final average": lambda result: result["final_average_accuracy"],
    "anytime": lambda result: result["average_anytime_accuracy"],
    "own task": lambda result: fmean(row[index] for index, row in enumerate(result["accuracy_matrix"])),
    "forgetting": lambda result: result["forgetting"],
    "backward transfer": lambda result: result["backward_transfer"],
}
MEBIBYTE = 2**20


def page(title: str, about: str, command: str, results: dict[str, list[Result]], matrices: bool) -> str:
    """The whole page; every number in it comes from ``results``: label -> result.json of each seed."""
    first = next(iter(results.values()))[0]
    parts = [f"# {title}", about.strip(), stream_line(first), table(results), legend(results, command)]
    if matrices:
        parts += [matrix(label, runs[0]) for label, runs in results.items()]
    return "\n\n".join(part for part in parts if part) + "\n"


def stream_line(result: Result) -> str:
    """What was run on; a subset is named, so that its numbers are not taken for those on all data."""
    limits = ", ".join(f"{name} {limit}" for name, limit in result["subset"].items())
    subset = f" Subset: {limits}." if limits else ""
    order, tasks = result["order_seed"], len(result["task_names"])
    return (
        f"Stream of the first row: {result['benchmark']}, {tasks} task{'s' if tasks > 1 else ''}, "
        f"scenario {result['scenario']}, order seed {'none' if order is None else order}.{subset}"
    )


def table(results: dict[str, list[Result]]) -> str:
    """One line a row: mean and, over several seeds, standard error; costs are those of the first worker."""
    costs = list(map(cost_cells, results.values()))
    if one_stream(results):
        reference = mean_of(next(iter(results.values())), training_seconds)
        for cells, runs in zip(costs, results.values(), strict=True):
            cells["training time"] = f"{mean_of(runs, training_seconds) / reference if reference else 0.0:.2f}x"
    heads = ["", *COLUMNS, *costs[0]]
    lines = ["| " + " | ".join(heads) + " |", "| --- " + "| ---: " * (len(heads) - 1) + "|"]
    for (label, runs), cells in zip(results.items(), costs, strict=True):
        scores = [percent([column(run) for run in runs]) for column in COLUMNS.values()]
        lines.append("| " + " | ".join([cell(label), *scores, *cells.values()]) + " |")
    return "\n".join(lines)


def cost_cells(runs: Sequence[Result]) -> dict[str, str]:
    """Heading -> what a row cost on average."""
    minutes = mean_of(runs, lambda run: run["seconds"]["total"] / 60)
    memory = mean_of(runs, lambda run: run["peak_memory_bytes"] / MEBIBYTE)
    return {"minutes": f"{minutes:.1f}", "peak memory": f"{memory:.0f} MiB"}


def one_stream(results: dict[str, list[Result]]) -> bool:
    """Whether all rows learn one benchmark, so that their times can be compared."""
    return len({run["benchmark"] for runs in results.values() for run in runs}) == 1


def cell(text: str) -> str:
    """In a table, a bar would end the cell."""
    return " ".join(text.replace("|", "\\|").split())


def mean_of(runs: Sequence[Result], value: Callable[[Result], float]) -> float:
    return fmean(value(run) for run in runs)


def training_seconds(result: Result) -> float:
    return result["seconds"]["train"] + result["seconds"]["method"]


def percent(values: Sequence[float | None]) -> str:
    """Mean in per cent, with the standard error where there are several values."""
    known = [100 * value for value in values if value is not None]
    if not known:
        return "–"
    error = f" ± {stdev(known) / len(known) ** 0.5:.1f}" if len(known) > 1 else ""
    return f"{fmean(known):.1f}{error}"


def legend(results: dict[str, list[Result]], command: str) -> str:
    """What the columns mean, and how to repeat the page."""
    seeds = [run["seed"] for run in next(iter(results.values()))]
    error = ", ± standard error over them" if len(seeds) > 1 else ""
    relative = " *Training time* is relative to the first row." if one_stream(results) else ""
    return (
        f"Test scores in %, seeds {', '.join(map(str, seeds))}{error}. *Own task*: mean score of each task just after "
        f"it was learned. *Minutes* hold evaluation and preparation; *peak memory* is one worker's.{relative}\n\n"
        f"Repeat with `{command}`."
    )


def matrix(label: str, result: Result) -> str:
    """Rows: after which task; columns: on which task."""
    names = [cell(name) for name in result["task_names"]]
    kinds = dict.fromkeys(result["scores"])
    lines = [f"## {label}", f"Score: {', '.join(kinds)}, in %; row: after learning the task, column: on the task."]
    lines += ["", "| after | " + " | ".join(names) + " |", "| --- " + "| ---: " * len(names) + "|"]
    for name, row in zip(names, result["accuracy_matrix"], strict=True):
        lines.append(f"| {name} | " + " | ".join(f"{100 * value:.1f}" for value in row) + " |")
    if result["unmasked_matrix"]:
        last = ", ".join(f"{100 * value:.1f}" for value in result["unmasked_matrix"][-1])
        lines += ["", f"With all seen classes competing, after the last task: {last}."]
    return "\n".join(lines)
