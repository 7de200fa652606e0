"""Fewer rows to score: even over classes, the same every time, counted, and never without a class."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.limit import limited
from orchestrator.launch import train
from orchestrator.run.session import read_stream
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError

Make = Callable[..., Experiment]
FEW = ["benchmark.tasks=2", "benchmark.classes=4", "benchmark.test_per_class=9"]


@pytest.mark.parametrize(("limit", "counts"), [(5, [2, 3]), (6, [3, 3]), (2, [1, 1]), (100, [9, 9])])
def test_every_class_keeps_as_many_rows_as_the_others(small: Make, limit: int, counts: list[int]) -> None:
    stream = read_stream(small(*FEW))
    for task, whole in zip(limited(stream, limit).tasks, stream.tasks, strict=True):
        labels = task.test.own_labels()
        assert sorted((labels == label).sum().item() for label in task.classes) == counts
        assert set(task.test.rows.tolist()) <= set(whole.test.rows.tolist())
        assert task.train is whole.train


def test_the_same_rows_are_chosen_again_and_the_rest_is_counted(small: Make) -> None:
    stream = read_stream(small(*FEW))
    one, other = limited(stream, 4), limited(stream, 4)
    assert all((a.test.rows == b.test.rows).all() for a, b in zip(one.tasks, other.tasks, strict=True))
    told = {note["what"]: note["count"] for note in one.account.as_list()}
    assert told["test rows not scored (evaluate.limit)"] == 2 * (18 - 4)
    more = limited(stream, 8)
    assert set(one.tasks[0].test.rows.tolist()) < set(more.tasks[0].test.rows.tolist())
    assert one.fingerprint != stream.fingerprint


def test_a_limit_below_a_row_a_class_is_refused(small: Make) -> None:
    line = r"^evaluate.limit=1: task '0, 1' has 2 classes in its test rows; say 2 or more$"
    with pytest.raises(UserError, match=line):
        read_stream(small(*FEW, "evaluate.limit=1"))


def test_the_limit_stands_in_name_and_result(small: Make) -> None:
    experiment = small(*FEW, "evaluate.limit=4", "evaluate.every=2", "name=null")
    assert "every2-limit4" in experiment.name
    result = train(experiment)
    assert result["subset"]["evaluation_rows"] == 4
    assert any("evaluate.limit" in note["what"] for note in result["overview"]["notes"])
    scores = {score for row in result["accuracy_matrix"] for score in row if score is not None}
    assert scores <= {number / 4 for number in range(5)}
