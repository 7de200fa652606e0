"""Whole runs in this process: what they measure, that they repeat, and that they go on where they stopped."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.stream import Task, TaskStream
from methods.treelora import TreeLoRA
from orchestrator import checkpoint, session
from orchestrator.config import Experiment
from orchestrator.errors import UserError
from orchestrator.learner import Learner
from orchestrator.session import read_stream
from orchestrator.sharding import Place
from orchestrator.trainer import finished, train, train_here
from orchestrator.tree_actor import make_service
from tests.conftest import small_experiment

Make = Callable[..., Experiment]


class Interrupted(Exception):
    """Stands for whatever ends a process in the middle of a step."""


def test_the_same_command_with_the_same_seed_gives_the_same_matrix(small: Make) -> None:
    first, second, other = (train(small(*s)) for s in (["name=a"], ["name=b"], ["name=c", "seed=1"]))
    assert first["accuracy_matrix"] == second["accuracy_matrix"]
    assert first["method_report"] == second["method_report"]
    assert first["accuracy_matrix"] != other["accuracy_matrix"]


def test_training_learns_each_task_far_above_chance(small: Make) -> None:
    result = train(small("name=a", "train.epochs=6"))
    assert result["initial_accuracy"][0] < 0.5
    assert result["accuracy_matrix"][0][0] > 0.85
    assert result["final_average_accuracy"] > 0.3


STEPS = [12, 12, 16]  # of the three tasks of 3, 3 and 4 classes


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Experiment, dict[str, Any]]]:
    """One whole run a method, shared by the tests that compare with it."""

    @functools.cache
    def make(method: str) -> tuple[Experiment, dict[str, Any]]:
        experiment = small_experiment(tmp_path_factory.mktemp(method), f"method={method}", "name=whole")
        return experiment, train(experiment)

    return make


@pytest.mark.parametrize(
    ("method", "task", "number"),
    [("treelora", 2, 1), ("treelora", 2, 6), ("treelora", 1, 5), ("treelora", 2, 0), ("lora", 2, 5)],
)
def test_a_stopped_run_ends_like_an_undisturbed_one(
    small: Make,
    undisturbed: Callable[[str], tuple[Experiment, dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    task: int,
    number: int,
) -> None:
    experiment = small(f"method={method}", "name=stopped", "checkpoint.every=2")
    step = Learner.step

    def failing(self: Learner, rows: Tensor, at: int) -> float:
        if (self.task.index, at) == (task, number):
            raise Interrupted
        return step(self, rows, at)

    monkeypatch.setattr(Learner, "step", failing)
    with pytest.raises(Interrupted):
        train(experiment)
    monkeypatch.setattr(Learner, "step", step)
    steps = count_steps(monkeypatch)
    resumed = train(experiment)
    assert len(steps) == sum(STEPS[task:]) - number // 2 * 2, "it goes on from the last checkpoint"
    whole, result = undisturbed(method)
    for key in ("accuracy_matrix", "validation_matrix", "method_report"):
        assert resumed[key] == result[key]
    assert same_tensors(experiment, whole)


def test_with_staleness_0_an_answer_is_used_at_its_own_search_point(
    small: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: dict[int, list[tuple[int, int]]] = {}
    edit = TreeLoRA.edit_gradients

    def noting(self: TreeLoRA, step: int, loss: Tensor) -> None:
        edit(self, step, loss)
        if self.task == 1:
            used.setdefault(self.config.search.staleness, []).append((step, self.leaf))

    monkeypatch.setattr(TreeLoRA, "edit_gradients", noting)
    for staleness in (0, 1):
        train(small(f"name=s{staleness}", f"method.search.staleness={staleness}"))
    assert next(step for step, leaf in used[0] if leaf == 0) == 2
    assert next(step for step, leaf in used[1] if leaf == 0) == 4


def count_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    steps: list[int] = []
    step = Learner.step

    def counting(self: Learner, rows: Tensor, number: int) -> float:
        steps.append(number)
        return step(self, rows, number)

    monkeypatch.setattr(Learner, "step", counting)
    return steps


def same_tensors(left: Experiment, right: Experiment) -> bool:
    one, other = checkpoint.load(left.folder), checkpoint.load(right.folder)
    assert one is not None and other is not None
    return one[0].keys() == other[0].keys() and all(torch.equal(one[0][k], other[0][k]) for k in one[0])


def test_the_first_choice_is_the_copy_of_the_task(small: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two learned tasks, one has the third's images; it does not matter which of the two."""
    for copied in (0, 1):
        monkeypatch.setattr(session, "build_stream", lambda config, seed, form, c=copied: planted(small, c))
        experiment = small(f"name=copy{copied}", "train.epochs=3", "method.search.every=3")
        chosen = train(experiment)["method_report"]["chosen"][2]
        assert chosen[0] == copied


def planted(small: Make, copied: int) -> TaskStream:
    """A stream of three tasks whose last is the ``copied`` one again, as other classes."""
    stream = read_stream_as_built(small)
    source, last = stream.tasks[copied], stream.tasks[2]
    shift = last.classes.start - source.classes.start
    moved = [replace(e, labels=e.labels + shift) for e in (source.train, source.validation, source.test)]
    copy = Task(2, f"copy of {source.name}", range(last.classes.start, last.classes.start + 2), *moved)
    return replace(stream, tasks=[*stream.tasks[:2], copy])


def read_stream_as_built(small: Make) -> TaskStream:
    from benchmarks.formats import ImageFormat
    from benchmarks.stream import build_stream

    return build_stream(small("benchmark.tasks=5", "benchmark.train_per_class=60").benchmark, None, ImageFormat(32))


def test_old_head_rows_stay_while_another_task_is_learned(small: Make) -> None:
    experiment = small("name=a")
    learner = Learner(experiment, read_stream(experiment), Place(), make_service(experiment))
    first, second = learner.stream.tasks[:2]
    rows = torch.arange(12)
    learner.begin_task(first, 1)
    learner.step(rows, 0)
    learner.end_task()
    weight, bias = learner.model.head_parameters(first)
    before = weight.clone(), bias.clone()
    learner.begin_task(second, 3)
    for number in range(3):
        learner.step(rows, number)
    assert before[0].abs().sum() > 0
    assert torch.equal(weight, before[0]) and torch.equal(bias, before[1])


def test_without_regulariser_and_sparsity_treelora_is_lora(small: Make) -> None:
    tree = train(small("name=tree", "method.regulariser.kind=none"))
    plain = train(small("name=plain", "method=lora"))
    assert tree["accuracy_matrix"] == plain["accuracy_matrix"]
    assert train(small("name=drawn"))["accuracy_matrix"] != plain["accuracy_matrix"]


def test_frozen_weights_stay_and_adapters_move(small: Make) -> None:
    experiment = small("name=a")
    learner = Learner(experiment, read_stream(experiment), Place(), make_service(experiment))
    before = {name: p.detach().clone() for name, p in learner.model.named_parameters()}
    learner.begin_task(learner.stream.tasks[0], 3)
    for number in range(3):  # the head moves first, then B, then A
        learner.step(torch.arange(12), number)
    moved = {name for name, p in learner.model.named_parameters() if not torch.equal(p, before[name])}
    other_parts = ("head.parts.1.", "head.parts.2.")
    trainable = {name for name, p in learner.model.named_parameters() if p.requires_grad}
    assert moved == {name for name in trainable if not name.startswith(other_parts)}


def test_a_loss_that_is_not_finite_names_task_and_step(small: Make) -> None:
    with pytest.raises(UserError, match=r"task 0, step \d+: the loss is not finite; lower train.learning_rate"):
        train(small("name=a", "train.head_learning_rate=1e37", "train.epochs=9"))


def test_a_checkpoint_holds_the_adapters_and_the_head_only(small: Make) -> None:
    experiment = small("name=a")
    train(experiment)
    found = checkpoint.load(experiment.folder)
    assert found is not None
    names = {n.removeprefix("model.") for n in found[0] if n.startswith("model.")}
    assert names
    assert all("lora_" in name or name.startswith("head.") for name in names)


def test_the_report_tells_every_pull(small: Make) -> None:
    experiment = small("name=a")
    result = train(experiment)
    assert isinstance(experiment.method, TreeLoRA.Config)
    pulls = [sum(row) for row in result["method_report"]["pulls"]]
    points = [len(row) for row in result["method_report"]["chosen"]]
    assert points[0] == 0 and points[1] > 0
    assert pulls == [8 * n for n in points]


def test_a_session_reports_once_a_task(small: Make) -> None:
    reports: list[dict] = []
    experiment = small("name=a")
    train_here(experiment, reports.append)
    assert [r["task"] for r in reports] == [1, 2, 3]
    result = finished(experiment.folder)
    assert reports[-1]["test_accuracy"] == result["final_average_accuracy"]
