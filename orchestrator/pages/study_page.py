"""The page of a study in Markdown: a table over all runs of each group, settings, and accuracy matrices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from statistics import fmean, stdev
from typing import Any

from orchestrator.settings.compose import flattened

Result = dict[str, Any]
Rows = dict[str, list[Result]]  # label -> result.json of each seed

COLUMNS: dict[str, Callable[[Result], float | None]] = {
    "final average": lambda result: result["final_average_accuracy"],
    "validation": lambda result: mean_of_known(result["validation_matrix"][-1]),
    "anytime": lambda result: result["average_anytime_accuracy"],
    "own task": lambda result: fmean(row[index] for index, row in enumerate(result["accuracy_matrix"])),
    "forgetting": lambda result: result["forgetting"],
    "backward transfer": lambda result: result["backward_transfer"],
}
COMPARED = ("benchmark.name", "benchmark.tasks", "order_seed", "head", "train.epochs", "train.batch_size")
REFERENCE = "lora"  # the method that times are relative to
MEBIBYTE = 2**20


def page(title: str, about: str, command: str, groups: Mapping[str, Rows], matrices: bool) -> str:
    """The whole page; every number in it comes from ``groups``: group -> label -> results.

    The one group of a study without groups is named "".
    """
    every = list(chain.from_iterable(chain.from_iterable(rows.values()) for rows in groups.values()))
    parts = [f"# {title}", about.strip(), stream_line(every[0])]
    for group, rows in groups.items():
        parts += [f"## {group}" if group else "", equality(rows), table(rows)]
    parts.append(legend(groups, command))
    if matrices:
        for group, rows in groups.items():
            parts += [matrix(", ".join(filter(None, (group, label))), runs[0]) for label, runs in rows.items()]
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


def equality(rows: Rows) -> str:
    """Whether the rows can be compared, or in which of the settings that decide this they differ."""
    if len(rows) < 2:
        return ""
    settings = [flattened(runs[0]["config"]) for runs in rows.values()]
    names = dict.fromkeys(name for one in settings for name in one if compared(name))
    found = [name for name in names if any(one.get(name) != settings[0].get(name) for one in settings)]
    if found:
        return f"Rows differ in {', '.join(sorted(found))}."
    return "All rows have the same tasks, order, head, epochs and batch size."


def compared(setting: str) -> bool:
    return any(setting == name or setting.startswith(f"{name}.") for name in COMPARED)


def table(rows: Rows) -> str:
    """One line a row: mean and, over several seeds, standard error; costs are those of the first worker."""
    costs = list(map(cost_cells, rows.values()))
    if one_stream(rows):
        base = mean_of(rows[reference(rows)], training_seconds)
        for cells, runs in zip(costs, rows.values(), strict=True):
            cells["training time"] = f"{mean_of(runs, training_seconds) / base if base else 0.0:.2f}x"
    heads = ["", *COLUMNS, *costs[0]]
    lines = ["| " + " | ".join(heads) + " |", "| --- " + "| ---: " * (len(heads) - 1) + "|"]
    for (label, runs), cells in zip(rows.items(), costs, strict=True):
        scores = [percent([column(run) for run in runs]) for column in COLUMNS.values()]
        lines.append("| " + " | ".join([cell(label), *scores, *cells.values()]) + " |")
    return "\n".join(lines)


def reference(rows: Rows) -> str:
    """The label of the row that times are relative to: the first of sequential LoRA, else the first."""
    return next((label for label, runs in rows.items() if runs[0]["method"] == REFERENCE), next(iter(rows)))


def cost_cells(runs: Sequence[Result]) -> dict[str, str]:
    """Heading -> what a row cost on average."""
    minutes = mean_of(runs, lambda run: run["seconds"]["total"] / 60)
    memory = mean_of(runs, lambda run: run["peak_memory_bytes"] / MEBIBYTE)
    # A run that trains nothing, as a frozen one with a closed-form head, may take no time at all.
    share = mean_of(runs, lambda run: run["seconds"]["method"] / max(training_seconds(run), 1e-9))
    return {
        "minutes": f"{minutes:.1f}",
        "peak memory": f"{memory:.0f} MiB",
        "stored": thousands(mean_of_known([run.get("stored_parameters") for run in runs])),
        "method's share": f"{100 * share:.1f} %",
    }


def one_stream(rows: Rows) -> bool:
    """Whether all rows learn one benchmark, so that their times can be compared."""
    return len({run["benchmark"] for runs in rows.values() for run in runs}) == 1


def cell(text: str) -> str:
    """In a table, a bar would end the cell."""
    return " ".join(text.replace("|", "\\|").split())


def mean_of(runs: Sequence[Result], value: Callable[[Result], float]) -> float:
    return fmean(value(run) for run in runs)


def mean_of_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def training_seconds(result: Result) -> float:
    return result["seconds"]["train"] + result["seconds"]["method"]


def thousands(count: float | None) -> str:
    """As in "12 k"; a dash where it is not known, as in results from before it was counted."""
    return "–" if count is None else f"{count / 1000:.0f} k"


def percent(values: Sequence[float | None]) -> str:
    """Mean in per cent, with the standard error where there are several values."""
    known = [100 * value for value in values if value is not None]
    if not known:
        return "–"
    error = f" ± {stdev(known) / len(known) ** 0.5:.1f}" if len(known) > 1 else ""
    return f"{fmean(known):.1f}{error}"


def legend(groups: Mapping[str, Rows], command: str) -> str:
    """What the columns mean, and how to repeat the page."""
    first = next(iter(groups.values()))
    seeds = [run["seed"] for run in next(iter(first.values()))]
    error = ", ± standard error over them" if len(seeds) > 1 else ""
    return (
        f"Test scores in %, seeds {', '.join(map(str, seeds))}{error}. *Validation* is the final average on the "
        "validation splits. *Own task*: mean score of each task just after it was learned. *Minutes* hold evaluation "
        f"and preparation; *peak memory* is one worker's; the *method's share* is that of the training time which its "
        "own hooks take, measured within each run. *Stored*: numbers that the adapted model holds beside backbone and "
        f"head.{time_legend(groups)}\n\nRepeat with `{command}`."
    )


def time_legend(groups: Mapping[str, Rows]) -> str:
    """What training times are relative to; a group is named where it has another reference than the one before."""
    phrases: list[str] = []
    for group, rows in groups.items():
        label = reference(rows)
        kind = "sequential LoRA" if rows[label][0]["method"] == REFERENCE else "the first row"
        base = f"{kind} (row “{label}”)"
        if one_stream(rows) and not (phrases and phrases[-1].endswith(base)):
            phrases.append(f"in “{group}” to {base}" if phrases else f" *Training time* is relative to {base}")
    return "; ".join(phrases) + "." if phrases else ""


def matrix(label: str, result: Result) -> str:
    """Rows: after which task; columns: on which task."""
    names = [cell(name) for name in result["task_names"]]
    kinds = dict.fromkeys(result["scores"])
    lines = [f"## {label}", f"Score: {', '.join(kinds)}, in %; row: after learning the task, column: on the task."]
    lines += ["", "| after | " + " | ".join(names) + " |", "| --- " + "| ---: " * len(names) + "|"]
    for name, row in zip(names, result["accuracy_matrix"], strict=True):
        lines.append(
            f"| {name} | " + " | ".join("–" if value is None else f"{100 * value:.1f}" for value in row) + " |"
        )
    if result["unmasked_matrix"]:
        last = ", ".join(f"{100 * value:.1f}" for value in result["unmasked_matrix"][-1])
        lines += ["", f"With all seen classes competing, after the last task: {last}."]
    return "\n".join(lines)
