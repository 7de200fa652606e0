"""Which tasks are scored when; rows of several tasks in one batch; what a frozen backbone made is not made twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.dataset import Batch, Examples
from benchmarks.models.classifier import Classifier
from benchmarks.stream import Task
from orchestrator.check import scored_rows
from orchestrator.launch import train
from orchestrator.run.evaluation import share
from orchestrator.run.learner import Learner
from orchestrator.run.session import read_stream
from orchestrator.run.sharding import Place
from orchestrator.settings.compose import load_experiment
from orchestrator.settings.config import Experiment
from tests.support import planted

Make = Callable[..., Experiment]
FOUR = ["benchmark.tasks=4", "benchmark.classes=8", "benchmark.test_per_class=5", "train.epochs=1"]


def known(matrix: list[list[float | None]]) -> list[str]:
    """Where a matrix has a score."""
    return ["".join("." if score is None else "x" for score in row) for row in matrix]


def test_the_seen_tasks_and_the_next_are_scored(small: Make) -> None:
    result = train(small(*FOUR, "benchmark.scenario=task", "name=a"))
    assert known(result["accuracy_matrix"]) == known(result["unmasked_matrix"]) == ["xx..", "xxx.", "xxxx", "xxxx"]
    assert known(result["validation_matrix"]) == ["x...", "xx..", "xxx.", "xxxx"]
    assert len(result["initial_accuracy"]) == 4
    assert result["forward_transfer"] is not None


def test_between_evaluations_the_latest_task_and_the_next_are_scored(small: Make) -> None:
    often, seldom = (train(small(*FOUR, f"evaluate.every={every}", f"name={every}")) for every in (1, 3))
    assert known(seldom["accuracy_matrix"]) == ["xx..", ".xx.", "xxxx", "xxxx"]
    assert known(seldom["validation_matrix"]) == ["x...", ".x..", "xxx.", "xxxx"]
    for one, other in zip(often["accuracy_matrix"], seldom["accuracy_matrix"], strict=True):
        assert all(score in (value, None) for value, score in zip(one, other, strict=True))
    for name in ("final_average_accuracy", "backward_transfer", "forward_transfer"):
        assert often[name] == seldom[name]


@pytest.mark.parametrize("scenario", ["class", "task"])
def test_tasks_scored_together_score_as_each_alone(small: Make, scenario: str) -> None:
    experiment = small(*FOUR, f"benchmark.scenario={scenario}", "train.evaluation_batch_size=7", "method=lora")
    learner = Learner(experiment, read_stream(experiment), Place(), None)
    torch.nn.init.normal_(learner.model.get_parameter("head.parts.0.weight"))
    together = learner.scores(learner.stream.tasks, "test", 2)
    assert together == [learner.scores([task], "test", 2)[0] for task in learner.stream.tasks]
    assert len(set(map(tuple, together))) > 1
    backwards = learner.scores(learner.stream.tasks[::-1], "test", 2)
    assert backwards == together[::-1]


def test_labelled_and_free_tasks_of_texts_are_told_apart(
    tmp_path: Path, tiny_models: dict[str, Path], cache: Path
) -> None:
    for name, marks in {"animals": {"yes": "cat", "no": "dog"}, "colours": {"good": "red", "bad": "blue"}}.items():
        planted.text_task(tmp_path / "data" / name, planted.labelled(marks, 9), planted.labelled(marks, 5))
    settings = [f"benchmark.path={tmp_path / 'data'}", f"backbone.name={tiny_models['llama']}", "name=a"]
    limits = ["benchmark.text.length=32", "benchmark.text.answer_length=3", "train.evaluation_batch_size=4"]
    experiment = load_experiment(["benchmark=jsonl_folder", "method=lora", *settings, *limits])
    learner = Learner(experiment, read_stream(experiment), Place(), None)
    tasks = learner.stream.tasks
    assert learner.scores(tasks, "test", 1) == [learner.scores([task], "test", 1)[0] for task in tasks]


def test_a_frozen_backbone_computes_no_row_twice(small: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = computed_rows(monkeypatch)
    frozen = train(small(*FOUR, "method=frozen", "head=gaussian", "name=frozen"))
    stream = read_stream(small(*FOUR))
    assert sum(computed) == sum(len(task.test) + len(task.validation) for task in stream.tasks)
    monkeypatch.setattr("orchestrator.run.learner.Learner.scores", computing_anew)
    again = train(small(*FOUR, "method=frozen", "head=gaussian", "name=again"))
    assert frozen["accuracy_matrix"] == again["accuracy_matrix"]
    assert frozen["validation_matrix"] == again["validation_matrix"]


def computed_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of rows, as they go through the backbone."""
    computed: list[int] = []
    encode = Classifier.encode

    def counting(model: Classifier, batch: Batch, tasks: list[Task]) -> torch.Tensor:
        computed.append(len(batch.labels))
        return encode(model, batch, tasks)

    monkeypatch.setattr(Classifier, "encode", counting)
    return computed


def computing_anew(learner: Learner, tasks: list[Task], split: str, learned: int) -> list[list[float]]:
    return learner.evaluation.scores(tasks, split, learned, keep=False)


def test_what_was_kept_goes_when_the_adapters_move(small: Make) -> None:
    experiment = small(*FOUR, "method=first_task", "head=gaussian", "name=a")
    learner = Learner(experiment, read_stream(experiment), Place(), None)
    first, second = learner.stream.tasks[:2]
    learner.scores([first, second], "test", 1)
    assert set(learner.evaluation.encoded) == {("test", 0), ("test", 1)}
    learner.begin_task(second, 1)
    learner.end_task()
    assert len(learner.evaluation.encoded) == 2, "the second task moves nothing"
    learner.begin_task(first, 1)
    learner.step(torch.arange(4), 0)
    learner.end_task()
    assert not learner.evaluation.encoded


@pytest.mark.parametrize("count", [1, 5, 6])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_workers_share_all_rows_in_equal_numbers(world: int, count: int) -> None:
    shares = [share(count, Place(number, world)) for number in range(world)]
    assert len({len(rows) for rows, _ in shares}) == 1
    counted = [row for rows, valid in shares for row in rows[valid].tolist()]
    assert sorted(counted) == list(range(count))


def test_rows_of_other_arrays_are_not_joined() -> None:
    one, other = (Examples.of(torch.zeros(3, 2), torch.zeros(3, dtype=torch.long)) for _ in range(2))
    assert Examples.joined([one.take(torch.tensor([2, 0])), one.take(torch.tensor([1]))]).rows.tolist() == [2, 0, 1]
    with pytest.raises(ValueError, match="rows of different arrays"):
        Examples.joined([one, other])


def test_lengths_are_those_of_tokens_alone() -> None:
    tokens = torch.tensor([[3, 4, -1], [5, -1, -1], [1, 2, 3]])
    labels = torch.zeros(3, dtype=torch.long)
    lengths = Examples.of(tokens, labels).take(torch.tensor([2, 1])).lengths()
    assert lengths is not None and lengths.tolist() == [3, 1]
    assert Examples.of(torch.zeros(3, 3, 2, 2, dtype=torch.uint8), labels).lengths() is None


def test_check_counts_the_rows_that_a_run_scores(small: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = small(*FOUR, "evaluate.every=3", "name=a", "method=lora")
    computed = computed_rows(monkeypatch)
    train(experiment)
    assert sum(computed) == scored_rows(read_stream(experiment), every=3)
