"""What a model needs to know of a stream besides its rows, as plain values: with it, a run is read without its data."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.dataset import Examples
from benchmarks.stream import Task, TaskStream


def outline_of(stream: TaskStream) -> dict[str, Any]:
    """Names, classes and sizes; no row."""
    return {
        "name": stream.name,
        "scenario": stream.scenario,
        "class_names": stream.class_names,
        "answer_length": stream.answer_length,
        "input": list(stream.tasks[0].train.inputs.shape[1:]),
        "tasks": [
            {"name": task.name, "classes": ends(task.classes), "options": task.options, "score": task.score}
            for task in stream.tasks
        ],
        "later": [ends(classes) for classes in stream.later],
    }


def ends(classes: range) -> list[int]:
    return [classes.start, classes.stop]


def stream_of(outline: dict[str, Any]) -> TaskStream:
    """The stream of an outline; its tasks have no rows."""
    nothing = Examples.of(torch.empty(0, *outline["input"], dtype=torch.uint8), torch.empty(0, dtype=torch.long))
    tasks = [
        Task(index, task["name"], range(*task["classes"]), nothing, nothing, nothing, task["options"], task["score"])
        for index, task in enumerate(outline["tasks"])
    ]
    return TaskStream(
        name=outline["name"],
        scenario=outline["scenario"],
        class_names=outline["class_names"],
        tasks=tasks,
        answer_length=outline["answer_length"],
        later=[range(*classes) for classes in outline["later"]],
    )
