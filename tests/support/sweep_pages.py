"""Contents of sweep.json for the tests of a sweep's pages: by hand, and searches whose truth is planted."""

from __future__ import annotations

from typing import Any

import numpy as np

TASKS = 4


def make_trial(number: str, status: str, objective: float | None, **changes: Any) -> dict[str, Any]:
    """One trial; a finished one has learned four tasks, a stopped one a single one."""
    finished = status == "finished"
    history = [] if objective is None else [[task, objective] for task in range(1, TASKS + 1 if finished else 2)]
    cut_off = {"rule": "asha", "tasks": 1, "value": objective, "cut_off": 0.6, "among": 3, "text": f"cut {number}"}
    trial = {
        "id": number,
        "status": status,
        "settings": {"method.rank": 4},
        "values": {} if objective is None else {"validation_accuracy": objective},
        "objective": objective,
        "history": history,
        "final_average_accuracy": 0.512 if finished else None,
        "forgetting": 0.0345 if finished else None,
        "seconds": 42.0 if finished else None,
        "stored_parameters": 1200 if finished else None,
        "peak_memory_bytes": None,
        "node": "node-1",
        "attempts": 1,
        "started": None,
        "ended": None,
        "folder": f"trials/demo-{number}",
        "stopped": cut_off if status == "stopped" else None,
        "error": "OutOfMemoryError: too large" if status == "failed" else None,
        "repeat": f"run.py train name=demo-{number}",
    }
    return trial | changes


def make_sweep(trials: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """A sweep of ``trials``, the best first."""
    finished = [trial["id"] for trial in trials if trial["status"] == "finished"]
    sweep = {
        "name": "demo",
        "objective": "validation_accuracy",
        "objectives": {"validation_accuracy": "max"},
        "protocol": "stream",
        "protocol_text": "chosen on the validation splits of all 4 tasks",
        "searcher": "random",
        "scheduler": "asha",
        "tasks": TASKS,
        "best": finished[0] if finished else None,
        "front": finished[:1],
        "config": {"samples": 4},
        "trials": trials,
        "confirmed": None,
    }
    return sweep | changes


def confirmation(**changes: Any) -> dict[str, Any]:
    found = {
        "settings": {"method.rank": 8},
        "seeds": [11, 12],
        "folders": ["confirm/demo-0", "confirm/demo-1"],
        "final_average_accuracy": [0.612, 0.634],
        "mean": 0.623,
        "standard_error": 0.011,
        "stream": "split_digits in its natural order",
    }
    return found | changes


def planted_sweep(count: int, **changes: Any) -> dict[str, Any]:
    """A search over every kind of setting in which the learning rate decides most, the kind some, the rest nothing.

    Half of those that are below the middle so far are stopped after the first task.
    """
    numbers = np.random.default_rng(0)
    trials, seen = [], []
    for number in range(count):
        rate, kind = float(10 ** numbers.uniform(-5, -2)), str(numbers.choice(["none", "l2"]))
        settings = {
            "train.learning_rate": rate,
            "kind": kind,
            "method.rank": int(numbers.choice([2, 4, 8])),
            "betas": [[0.9, 0.99], [0.8, 0.99]][int(numbers.integers(2))],
            "flip": bool(numbers.integers(2)),
        }
        settings |= {"strength": float(numbers.uniform(0, 1))} if kind == "l2" else {}
        value = 0.9 - 0.1 * abs(np.log10(rate) + 3.5) - 0.04 * (kind == "none") + 0.002 * numbers.standard_normal()
        stopped = len(seen) > 3 and value < np.median(seen) and number % 2 == 0
        seen.append(value)
        changed = {"settings": settings, "seconds": 10.0 + number % 7}
        changed["values"] = {"validation_accuracy": float(value), "seconds": changed["seconds"]}
        status = "stopped" if stopped else "finished"
        trials.append(make_trial(f"{number:05d}", status, float(value), **changed))
    trials.sort(key=lambda trial: (trial["status"] != "finished", -trial["objective"]))
    return make_sweep(trials, **changes)
