"""Whole runs in this process: what they measure, that they repeat, and that they go on where they stopped."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.dataset import Batch
from benchmarks.formats import ImageFormat
from benchmarks.models.classifier import Classifier
from benchmarks.stream import Task, TaskStream, build_stream
from methods.base import Again
from methods.treelora import TreeLoRA
from orchestrator.launch import train
from orchestrator.run import checkpoint, session
from orchestrator.run.checkpoint import numbered
from orchestrator.run.folder import finished
from orchestrator.run.learner import Learner, part
from orchestrator.run.service import make_service
from orchestrator.run.session import read_stream, run_here
from orchestrator.run.sharding import Place, load_adapters_and_head
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError
from tests.support.experiments import small_experiment
from tests.support.interruption import Interrupted, train_until

Make = Callable[..., Experiment]
Undisturbed = Callable[[str], tuple[Experiment, dict[str, Any]]]
FEW = ["benchmark.tasks=2", "benchmark.classes=4"]  # 8 steps a task
THREE = ["benchmark.classes=6"]  # two classes each, 8 steps a task


def test_the_same_command_with_the_same_seed_gives_the_same_matrix(small: Make) -> None:
    first, second, other = (train(small(*FEW, *s)) for s in (["name=a"], ["name=b"], ["name=c", "seed=1"]))
    assert first["accuracy_matrix"] == second["accuracy_matrix"]
    assert first["method_report"] == second["method_report"]
    assert first["accuracy_matrix"] != other["accuracy_matrix"]


def test_training_learns_each_task_far_above_chance(small: Make) -> None:
    """With three seeds the first task ended at 1.00 and the average above 0.71."""
    result = train(small("name=a", "benchmark.tasks=2", "benchmark.classes=6", "train.epochs=6"))
    assert result["initial_accuracy"][0] < 0.5
    assert result["accuracy_matrix"][0][0] > 0.85
    assert result["final_average_accuracy"] > 0.6


STEPS = [8, 8, 8]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """One whole run a method, shared by the tests that compare with it."""

    @functools.cache
    def make(method: str) -> tuple[Experiment, dict[str, Any]]:
        experiment = small_experiment(tmp_path_factory.mktemp(method), *THREE, f"method={method}", "name=whole")
        return experiment, train(experiment)

    return make


@pytest.mark.parametrize(
    ("method", "task", "number"),
    [("treelora", 2, 1), ("treelora", 1, 5), ("treelora", 2, 0), ("lora", 2, 6)],
)
def test_a_stopped_run_ends_like_an_undisturbed_one(
    small: Make,
    undisturbed: Undisturbed,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    task: int,
    number: int,
) -> None:
    experiment = small(*THREE, f"method={method}", "name=stopped", "checkpoint.every=2")
    train_until(experiment, task, number)
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
    used: dict[int, list[tuple[int, list[int]]]] = {}
    edit = TreeLoRA.edit_gradients

    def noting(self: TreeLoRA, step: int, loss: Tensor, again: Again) -> None:
        edit(self, step, loss, again)
        if self.task == 1:
            used.setdefault(self.config.search.staleness, []).append((step, self.chosen))

    monkeypatch.setattr(TreeLoRA, "edit_gradients", noting)
    for staleness in (0, 1):
        train(small(*FEW, f"name=s{staleness}", f"method.search.staleness={staleness}"))
    assert next((step, set(chosen)) for step, chosen in used[0] if chosen) == (2, {0})
    assert next((step, set(chosen)) for step, chosen in used[1] if chosen) == (4, {0})


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
    """With its regulariser it is not: else this would show nothing."""
    tree, drawn = (small(*FEW, f"name={kind}", f"method.regulariser.kind={kind}") for kind in ("none", "cos"))
    plain = small(*FEW, "name=plain", "method=lora")
    results = [train(experiment)["accuracy_matrix"] for experiment in (tree, plain, drawn)]
    assert results[0] == results[1]
    adapters = [{n: t for n, t in trained_tensors(e).items() if "lora_" in n} for e in (plain, drawn)]
    assert adapters[0].keys() == adapters[1].keys()
    assert not all(torch.equal(value, adapters[1][name]) for name, value in adapters[0].items())


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


def test_a_checkpoint_holds_the_adapters_and_the_head_only(undisturbed: Undisturbed) -> None:
    experiment, _ = undisturbed("treelora")
    found = checkpoint.load(experiment.folder)
    assert found is not None
    names = {n.removeprefix("model.") for n in found[0] if n.startswith("model.")}
    assert names
    assert all("lora_" in name or name.startswith("head.") for name in names)


def test_the_report_tells_every_pull(undisturbed: Undisturbed) -> None:
    experiment, result = undisturbed("treelora")
    assert isinstance(experiment.method, TreeLoRA.Config)
    pulls = [sum(row) for row in result["method_report"]["pulls"]]
    points = [len(row) for row in result["method_report"]["chosen"]]
    assert points[0] == 0 and points[1] > 0
    assert pulls == [8 * n for n in points]


def test_a_session_reports_once_a_task(small: Make) -> None:
    reports: list[dict] = []
    experiment = small(*FEW, "name=a")
    run_here(experiment, reports.append)
    assert [r["task"] for r in reports] == [1, 2]
    result = finished(experiment.folder)
    assert reports[-1]["test_accuracy"] == result["final_average_accuracy"]


# --- closed-form heads and methods that adapt in part ---

HEADS = {"gaussian": [], "prototype": [], "ranpac": ["head.projection=48"]}
TWO = ["method=lora", "benchmark.tasks=2", "benchmark.classes=4", "benchmark.train_per_class=12", "train.epochs=1"]
TWO += ["train.batch_size=8"]  # 3 steps a task
STOPS = [("step", 0, 2), ("fit_head", 0, 0), ("step", 1, 0), ("fit_head", 1, 0)]


def headed(folder: Path, head: str, *settings: str) -> Experiment:
    batch = "train.evaluation_batch_size=5"  # several for the statistics of a task
    return small_experiment(folder, *TWO, batch, f"head={head}", *HEADS[head], *settings)


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Experiment, dict[str, Any]]]:
    experiments = {head: headed(tmp_path_factory.mktemp(head), head, "name=whole") for head in HEADS}
    return {head: (experiment, train(experiment)) for head, experiment in experiments.items()}


@pytest.mark.parametrize("head", HEADS)
def test_a_run_with_a_closed_form_head_goes_on_where_it_stopped(
    tmp_path: Path,
    whole_runs: dict[str, tuple[Experiment, dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
    head: str,
) -> None:
    """Stopped four times: inside a task, before its first step, and within the pass for the statistics."""
    experiment = headed(tmp_path, head, "name=stopped", "checkpoint.every=1")
    for method, task, number in STOPS:
        with monkeypatch.context() as patched:
            stop_in(patched, method, task, number)
            with pytest.raises(Interrupted):
                train(experiment)
    resumed = train(experiment)
    whole, result = whole_runs[head]
    for key in ("accuracy_matrix", "validation_matrix", "initial_accuracy"):
        assert resumed[key] == result[key]
    tensors = (checkpoint.load(experiment.folder) or ({}, {}))[0]
    counts = "statistics.counts"
    assert tensors[counts].flatten().tolist() == [11] * 4, "each train row once, however often it stopped"
    assert same_tensors(experiment, whole)


def test_a_run_goes_on_before_a_damaged_checkpoint_and_says_so(small: Make, undisturbed: Undisturbed) -> None:
    whole, result = undisturbed("treelora")
    experiment = small(*THREE, "name=hurt", "checkpoint.every=3")
    train_until(experiment, 1, 7)
    newest = experiment.folder / "checkpoints" / f"{numbered(experiment.folder / 'checkpoints')[-1]:06d}"
    (newest / checkpoint.VALUES).write_text("{}")
    resumed = train(experiment)
    for key in ("accuracy_matrix", "validation_matrix", "method_report"):
        assert resumed[key] == result[key]
    assert same_tensors(experiment, whole)
    (change,) = resumed["changes"]
    assert (change["task"], change["step"]) == (1, 3)
    assert change["what"] == f"checkpoint {newest.name} was damaged (values.json is not what was written)"
    assert (newest.parent / f"damaged-{newest.name}").is_dir()


def stop_in(patched: pytest.MonkeyPatch, method: str, task: int, number: int) -> None:
    """Stop in step ``number`` of ``task``, or half-way through the statistics of ``task``."""
    step, collect = Learner.step, Classifier.collect

    def failing_step(self: Learner, rows: Tensor, at: int) -> float:
        if (method, self.task.index, at) == ("step", task, number):
            raise Interrupted
        return step(self, rows, at)

    def failing_collect(self: Classifier, batch: Batch, valid: Tensor) -> None:
        collect(self, batch, valid)
        if method == "fit_head" and int(batch.labels.min()) >= 2 * task:
            raise Interrupted

    patched.setattr(Learner, "step", failing_step)
    patched.setattr(Classifier, "collect", failing_collect)


def trained_tensors(experiment: Experiment) -> dict[str, Tensor]:
    found = checkpoint.load(experiment.folder)
    assert found is not None
    return found[0]


def test_frozen_with_a_closed_form_head_takes_no_step(small: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = count_steps(monkeypatch)
    experiment = small("method=frozen", "head=gaussian", "name=a")
    result = train(experiment)
    assert steps == [] and result["accuracy_matrix"][0][0] > 0.8
    start = Learner(experiment, read_stream(experiment), Place(), None)
    adapters = dict(start.model.named_parameters())
    ended = {n: t for n, t in trained_tensors(experiment).items() if n.startswith("model.")}
    assert ended and all(torch.equal(t, adapters[n.removeprefix("model.")]) for n, t in ended.items())
    position = (checkpoint.load(experiment.folder) or ({}, {}))[1]["position"]
    assert position["losses"] == [None, None, None]


def test_frozen_with_a_trained_head_moves_the_head_alone(small: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = count_steps(monkeypatch)
    experiment = small(*TWO, "method=frozen", "name=a")
    train(experiment)
    assert len(steps) == 6
    assert moved_since_start(experiment) == {f"head.parts.{task}.{kind}" for task in (0, 1) for kind in PARAMETERS}


PARAMETERS = ("weight", "bias")


def moved_since_start(experiment: Experiment) -> set[str]:
    start = Learner(experiment, read_stream(experiment), Place(), None)
    before = dict(start.model.named_parameters())
    ended = {n.removeprefix("model."): t for n, t in trained_tensors(experiment).items() if n.startswith("model.")}
    return {name for name, tensor in ended.items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("head", ["linear", "gaussian"])
def test_first_task_moves_adapters_in_the_first_task_alone(
    small: Make, monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    after: list[dict[str, Tensor]] = []
    end = Learner.end_task

    def noting(self: Learner) -> None:
        end(self)
        after.append({name: p.detach().clone() for name, p in self.model.named_parameters() if p.requires_grad})

    monkeypatch.setattr(Learner, "end_task", noting)
    steps = count_steps(monkeypatch)
    experiment = small(*TWO, "method=first_task", f"head={head}", "name=a")
    train(experiment)
    assert any("lora_B" in name for name in moved_since_start(experiment))
    moved = {name for name in after[0] if not torch.equal(after[0][name], after[1][name])}
    assert moved == ({"head.parts.1.weight", "head.parts.1.bias"} if head == "linear" else set())
    assert len(steps) == (6 if head == "linear" else 3)
    position = (checkpoint.load(experiment.folder) or ({}, {}))[1]["position"]
    assert [loss is None for loss in position["losses"]] == [False, head == "gaussian"]


def test_statistics_are_sums_over_the_features_of_the_train_rows(small: Make) -> None:
    experiment = small(*TWO, "method=first_task", "head=gaussian", "name=a", "train.evaluation_batch_size=5")
    train(experiment)
    tensors = trained_tensors(experiment)
    learner = Learner(experiment, read_stream(experiment), Place(), None)
    load_adapters_and_head(learner.model, part(tensors, "model."))
    assert isinstance(learner.model, Classifier)
    batches = [task.train.batch() for task in learner.stream.tasks]
    with torch.no_grad():
        features = torch.cat([learner.model.eval().features(batch.inputs) for batch in batches]).double()
    labels = torch.cat([batch.labels for batch in batches])
    sums = torch.stack([features[labels == label].sum(0) for label in range(4)])
    assert tensors["statistics.counts"].flatten().tolist() == [11, 11, 11, 11]
    assert torch.allclose(tensors["statistics.features"], sums, rtol=1e-5, atol=1e-5)
    assert torch.allclose(tensors["statistics.squares"], features.T @ features, rtol=1e-5, atol=1e-4)


def test_frozen_features_need_a_head_that_compares_all_classes(small: Make) -> None:
    """Sequential training of a linear head forgets even where the features stay."""
    linear, gaussian = (
        train(small(*THREE, "method=frozen", f"head={h}", f"name={h}", "train.epochs=1"))
        for h in ("linear", "gaussian")
    )
    assert gaussian["final_average_accuracy"] > linear["final_average_accuracy"] + 0.3
    assert gaussian["final_average_accuracy"] > 0.75
