"""Runs whose accuracy is a known function of their settings, in the place of training: what a search makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.run import trials
from orchestrator.run.checkpoint import write_json
from orchestrator.settings.config import Experiment

Quality = Callable[[Experiment], float]


def plant(patched: pytest.MonkeyPatch, quality: Quality, tasks: int = 4) -> list[str]:
    """Let every run in this process have the validation accuracy ``quality`` less 0.02 a task; its name is noted.

    Test accuracies are 1 less validation, so that a search which saw them would choose the worst.
    """
    ran: list[str] = []

    def run(experiment: Experiment, report: Callable[[dict[str, Any]], None]) -> None:
        ran.append(experiment.name)
        found = quality(experiment)
        rows = [[found - 0.02 * row] * (row + 1) for row in range(tasks)]
        history = []
        for row, values in enumerate(rows):
            told = {"task": row + 1, "validation_accuracy": values[0], "test_accuracy": 1 - values[0], "loss": 0.1}
            told["anytime_validation_accuracy"] = sum(one[0] for one in rows[: row + 1]) / (row + 1)
            history.append(told)
            progress = {"task": row + 1, "tasks": tasks, "step": 0, "steps": 1, "loss": 0.1, "history": list(history)}
            write_json(experiment.folder / "progress.json", progress)
            if row + 1 < tasks:
                report(told)
        write_json(experiment.folder / "result.json", result(experiment, rows))
        report(history[-1])

    patched.setattr(trials, "run_here", run)
    return ran


def result(experiment: Experiment, rows: list[list[float]]) -> dict[str, Any]:
    """What the end of a run writes, as far as a sweep and its pages read it."""
    final = 1 - rows[-1][0]
    return {
        "name": experiment.name,
        "method": experiment.method.name,
        "benchmark": experiment.benchmark.name,
        "seed": experiment.seed,
        "order_seed": experiment.order_seed,
        "config": experiment.model_dump(mode="json", exclude={"storage"}),
        "task_names": [f"task {number}" for number in range(len(rows))],
        "method_report": None,
        "validation_matrix": [padded(row, len(rows)) for row in rows],
        "accuracy_matrix": [padded([1 - value for value in row], len(rows)) for row in rows],
        "initial_accuracy": [0.1] * len(rows),
        "final_average_accuracy": final,
        "final_pooled_accuracy": final,
        "average_anytime_accuracy": final,
        "backward_transfer": 0.0,
        "forgetting": 0.0,
        "forward_transfer": 0.0,
        "seconds": {
            "train": 1.0,
            "evaluate": 0.0,
            "method": 0.0,
            "total": float(getattr(experiment.method, "rank", 1)),
        },
        "trainable_parameters": 10,
        "stored_parameters": 10,
        "peak_memory_bytes": 100,
        "versions": {"torch": "2"},
    }


def padded(row: list[float], tasks: int) -> list[float | None]:
    """A row of a matrix of `tasks` columns: nothing of the tasks that are still to come."""
    return [*row, *[None] * (tasks - len(row))]
