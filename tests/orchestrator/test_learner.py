"""One learner's steps: what each training setting does to the weights, to the bit or by hand, on one worker or two."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.models.classifier import Classifier
from orchestrator.launch import train
from orchestrator.run.learner import Learner, half_precision, stores_half
from orchestrator.run.loop import batches, steps_of
from orchestrator.run.session import read_stream
from orchestrator.run.sharding import Place
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError
from tests.support.experiments import small_experiment
from tests.support.pair import WORLD, Pair

Make = Callable[..., Learner]
Weights = dict[str, Tensor]


def make_learner(experiment: Experiment, place: Place | None = None) -> Learner:
    return Learner(experiment, read_stream(experiment), place or Place(), None)


@pytest.fixture
def make(small: Callable[..., Experiment]) -> Make:
    """Learners with two tasks of two classes: ``make("train.accumulate=3")``."""
    return lambda *settings: make_learner(small(*TWO, *settings))


TWO = ["method=lora", "benchmark.tasks=2", "benchmark.classes=4", "benchmark.test_per_class=12"]


def weights(learner: Learner) -> Weights:
    return {name: p.detach().clone() for name, p in learner.model.named_parameters() if p.requires_grad}


def learn(learner: Learner, task: int = 0, steps: int = 4, rows: int = 12) -> list[float]:
    """So many steps on batches that differ; the task is begun and not ended."""
    learner.begin_task(learner.stream.tasks[task], steps)
    count = len(learner.stream.tasks[task].train)
    chosen = [torch.arange(step * rows, (step + 1) * rows) % count for step in range(steps)]
    return [learner.step(own, step) for step, own in enumerate(chosen)]


def close(left: Weights, right: Weights, difference: float) -> bool:
    assert left.keys() == right.keys()
    return all(torch.allclose(left[name], right[name], rtol=0, atol=difference) for name in left)


def same(left: Weights, right: Weights) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# --- steps ---


@pytest.mark.parametrize("rows", [12, 10, 2])
def test_a_batch_in_three_parts_gives_the_gradient_of_the_whole(make: Make, rows: int) -> None:
    settings = ["train.optimizer=sgd", "train.learning_rate=0.1", "train.head_learning_rate=0.1"]
    whole, parts = make(*settings), make(*settings, "train.accumulate=3")
    before = weights(whole)
    assert same(before, weights(parts))
    assert learn(whole, rows=rows) == pytest.approx(learn(parts, rows=rows), abs=1e-5)
    assert close(weights(whole), weights(parts), 1e-5) and not close(weights(whole), before, 1e-3)


def test_accumulated_parts_are_as_large_as_they_may_be(make: Make) -> None:
    learner = make("train.accumulate=3")
    assert [len(part) for part in learner.parts(torch.arange(10))] == [4, 4, 2]
    assert [len(part) for part in learner.parts(torch.arange(2))] == [1, 1]


def test_a_step_of_plain_descent_is_the_one_by_hand(make: Make) -> None:
    """Rates of adapters and head, decay and the limit on the norm, against autograd alone."""
    settings = ["train.optimizer=sgd", "train.betas=[0,0.999]", "train.learning_rate=0.3", "train.weight_decay=0.01"]
    learner = make(*settings, "train.head_learning_rate=0.7", "train.clip_norm=0.05")
    learn(learner, steps=3)  # from here on no gradient is zero
    task, rows = learner.stream.tasks[0], torch.arange(5, 17)
    named = {name: p for name, p in learner.model.named_parameters() if p.requires_grad and "parts.1" not in name}
    loss = learner.model(task.train.take(rows).batch(), task).mean()
    gradients = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
    norm = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm()
    assert norm > 0.05
    expected = {
        name: p.detach() - (0.7 if name.startswith("head.") else 0.3) * (gradients[name] * 0.05 / norm + 0.01 * p)
        for name, p in named.items()
    }
    assert learner.step(rows, 3) == pytest.approx(loss.item(), abs=1e-6)
    after = weights(learner)
    assert close({name: after[name] for name in named}, expected, 1e-6)


def test_without_a_limit_the_gradient_stays_as_it_is(make: Make) -> None:
    settings = ["train.optimizer=sgd", "train.betas=[0,0.999]"]
    free, loose, tight = (make(*settings, f"train.clip_norm={limit}") for limit in ("null", "1e6", "1e-3"))
    for learner in (free, loose, tight):
        learn(learner, steps=2)
    assert same(weights(free), weights(loose))
    assert not close(weights(free), weights(tight), 1e-4)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_rows_of_old_classes_stay_to_the_bit_under_momentum_and_decay(make: Make, optimizer: str) -> None:
    learner = make(f"train.optimizer={optimizer}", "train.weight_decay=0.1")
    assert type(learner.optimizer) is type(None)
    learn(learner, task=0)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[optimizer]
    assert type(learner.optimizer) is kind
    learner.end_task()
    before = weights(learner)
    learn(learner, task=1)
    moved = {name for name, value in weights(learner).items() if not torch.equal(value, before[name])}
    assert before["head.parts.0.weight"].abs().sum() > 0
    assert moved == set(before) - {"head.parts.0.weight", "head.parts.0.bias"}


def test_momentum_of_descent_is_the_first_beta(make: Make) -> None:
    learner = make("train.optimizer=sgd", "train.betas=[0.7,0.999]", "train.weight_decay=0.2")
    learner.select(learner.stream.tasks[0])
    assert learner.optimizer is not None
    assert [(group["momentum"], group["weight_decay"]) for group in learner.optimizer.param_groups] == [(0.7, 0.2)] * 2


def test_the_first_learning_rate_is_that_of_the_first_task_alone(make: Make) -> None:
    settings = ["train.learning_rate=1e-3", "train.first_learning_rate=4e-3"]
    both, first, later = make(*settings), make("train.learning_rate=4e-3"), make("train.learning_rate=1e-3")
    for learner in (both, first):
        learn(learner, task=0)
    assert same(weights(both), weights(first))
    others = [make(*settings), later]
    for learner in others:
        learn(learner, task=1)
    assert same(*map(weights, others)) and not same(weights(later), weights(first))


def test_epochs_are_a_number_or_one_for_each_task(make: Make) -> None:
    """44 train rows a task in batches of 12."""
    learner = make("train.epochs=[3,1]")
    first, second = learner.stream.tasks
    assert (steps_of(first, learner), steps_of(second, learner)) == (3 * 4, 4)
    rows = list(batches(first, learner))
    assert [len(batch) for batch in rows] == [12, 12, 12, 8] * 3
    epochs = [torch.cat(rows[start : start + 4]) for start in (0, 4, 8)]
    assert all(sorted(epoch.tolist()) == list(range(44)) for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1]), "each in an order of its own"
    assert steps_of(second, make("train.epochs=[3]")) == 3 * 4, "the last number goes on"
    assert steps_of(second, make("train.epochs=2")) == 2 * 4


def test_half_precision_trains_and_stays_close(make: Make) -> None:
    half, full = make("train.precision=bf16"), make("train.precision=fp32")
    losses = learn(half, steps=5), learn(full, steps=5)
    assert losses[0] == pytest.approx(losses[1], abs=0.05) and losses[0] != losses[1]
    assert losses[0][-1] < 0.8 * losses[0][0]
    assert {p.dtype for p in half.model.parameters()} == {torch.float32}
    assert close(weights(half), weights(full), 0.02) and not same(weights(half), weights(full))


def test_precision_is_chosen_by_the_device() -> None:
    cpu = torch.device("cpu")
    found = [half_precision(precision, "auto", cpu) for precision in ("auto", "fp32", "bf16")]
    assert found == [False, False, True]
    assert half_precision("auto", "bf16", cpu)
    assert [stores_half(dtype, cpu) for dtype in ("auto", "float32", "bf16")] == [False, False, True]


# --- scores ---


def test_the_evaluation_batch_does_not_change_a_score(make: Make) -> None:
    found = []
    for size in (256, 7, 1):
        learner = make(f"train.evaluation_batch_size={size}", "benchmark.scenario=task", "head=cosine")
        learn(learner)
        learner.end_task()
        found.append(learner.scores(learner.stream.tasks, "test", 1))
    assert found[0] == found[1] == found[2]
    assert 0.5 < min(found[0][0]) < 1.0


def test_a_score_is_the_share_of_right_rows(make: Make) -> None:
    learner = make()
    learn(learner)
    task = learner.stream.tasks[0]
    assert isinstance(learner.model, Classifier)
    batch = task.test.batch()
    with torch.no_grad():
        answers = learner.model.eval().logits(batch.inputs)[:, :2].argmax(1)
    assert learner.scores([task], "test", 1) == [[int((answers == batch.labels).sum()) / len(batch.labels)]]


# --- two workers ---

SHARDINGS = ("none", "ddp", "fsdp2")
SHARED = ["head=gaussian", "train.accumulate=2", "train.clip_norm=0.5", "train.optimizer=sgd"]
SHARED += ["benchmark.classes=5", "benchmark.train_per_class=25", "benchmark.test_per_class=11"]  # odd numbers of rows


def on_two(process: int, folder: Path) -> None:
    """One of two workers; the first one writes what it ends with."""
    for sharding in SHARDINGS:
        found = ends_with(folder, Place(process, WORLD, sharding))
        save_file(found, folder / f"{sharding}-{process}.safetensors")


def ends_with(folder: Path, place: Place) -> Weights:
    """Losses, scores, weights and statistics after a task of 69 rows; whole on the first worker."""
    learner = make_learner(small_experiment(folder, *TWO, *SHARED), place)
    assert len(learner.stream.tasks[1].train) == 69
    losses = learn(learner, task=1, steps=2, rows=11)
    learner.end_task()
    scores = learner.scores(learner.stream.tasks, "test", 2)
    tensors, _ = learner.state()
    return tensors | {"losses": torch.tensor(losses), "scores": torch.tensor(scores)}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, pair: Pair) -> Path:
    folder = tmp_path_factory.mktemp("two")
    pair.run(on_two, folder)
    return folder


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_two_workers_end_like_one(two: Path, sharding: str) -> None:
    alone = ends_with(two, Place())
    first = load_file(two / f"{sharding}-0.safetensors")
    assert any(name.startswith("statistics.") for name in first)
    assert first.keys() == alone.keys()
    for name, value in alone.items():
        assert torch.allclose(first[name], value, rtol=1e-5, atol=1e-5), name
    other = load_file(two / f"{sharding}-1.safetensors")
    assert other and all(torch.equal(value, first[name]) for name, value in other.items())


# --- what may not move, and what may not grow without end ---


def frozen(learner: Learner) -> Weights:
    """Everything of the backbone that is neither trained nor part of an adapter, running statistics among it."""
    named = [*learner.model.backbone.named_parameters(), *learner.model.backbone.named_buffers()]
    return {name: tensor.clone() for name, tensor in named if not tensor.requires_grad}


def test_nothing_of_a_frozen_backbone_moves(small: Callable[..., Experiment]) -> None:
    """Batch norm would move its running statistics; bits, as nothing is computed with them."""
    settings = [*TWO, "backbone.name=mobilevit_xxs", "backbone.pretrained=false"]
    learner = make_learner(small(*settings, "train.learning_rate=1e-2"))
    before, trained = frozen(learner), weights(learner)
    assert any("running_mean" in name for name in before)
    learn(learner, steps=2, rows=2)
    assert same(before, frozen(learner)) and not same(trained, weights(learner))


def test_dropout_is_drawn_in_training_and_not_in_evaluation(make: Make) -> None:
    model = make().model
    model.backbone.add_module("dropped", torch.nn.Dropout(0.5))
    assert model.train().backbone.dropped.training and not model.eval().backbone.dropped.training


@pytest.mark.parametrize("sign", [1.0, float("nan")])
def test_values_that_explode_end_the_run_before_they_are_kept(make: Make, sign: float) -> None:
    learner = make()
    learn(learner, steps=1)
    name, parameter = learner.model.adapters()[-1]
    with torch.no_grad():
        parameter.view(-1)[0] = sign * 1e25
    for kept in (learner.end_task, learner.state):
        with pytest.raises(UserError, match=rf"^task 0: {name} is not finite, or beyond .*; lower train.learning_rate"):
            kept()


def test_a_run_whose_adapters_explode_has_no_result(small: Callable[..., Experiment]) -> None:
    """Layer norm hides from the loss how large they are."""
    wild = ["train.optimizer=sgd", "train.learning_rate=1e30", "train.clip_norm=null", "train.epochs=1"]
    experiment = small(*TWO, *wild, "name=wild")
    with pytest.raises(UserError, match=r"lower train\.learning_rate"):
        train(experiment)
    assert not (experiment.folder / "result.json").exists()


def test_batches_are_drawn_for_any_seed(make: Make) -> None:
    found = {}
    for seed in (0, 20240501, 2**31 - 1):
        learner = make(f"seed={seed}", "train.epochs=1")
        found[seed] = torch.cat(list(batches(learner.stream.tasks[1], learner))).tolist()
    assert len({tuple(rows) for rows in found.values()}) == 3
    assert {tuple(sorted(rows)) for rows in found.values()} == {tuple(range(len(found[0])))}
