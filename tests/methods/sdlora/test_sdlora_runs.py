"""Every reading of SD-LoRA in ``configs/method`` through whole runs, other backbones, and what a user gets wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.models.classifier import Classifier
from benchmarks.models.writer import AnswerWriter
from benchmarks.parts import Part
from benchmarks.stream import label_ranges
from methods.sdlora import SDLoRA, SDLoRAConfig
from orchestrator.launch import train
from orchestrator.run.sharding import Place
from orchestrator.settings.compose import load_experiment
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError
from tests.benchmarks.test_memory_and_precision import batch_for
from tests.orchestrator.test_learner import learn, make_learner
from tests.support import planted
from tests.support.experiments import small_experiment
from tests.support.interruption import assert_ends_alike
from tests.support.models import built, free_task, one_task
from tests.support.tiny import named

VARIANTS = ("", "_rr", "_kd")
READINGS = [f"sdlora{v}{reading}" for v in VARIANTS for reading in ("", "_paper", "_released")] + [
    "sdlora_one_direction"
]
TINY = ["benchmark.classes=6", "benchmark.train_per_class=12", "train.epochs=1", "train.batch_size=8"]
TINY += ["benchmark.test_per_class=4", "train.learning_rate=0.01", "train.optimizer=sgd"]
FEWER = ["method.reduction.mu=2", "method.reduction.nu=3"]  # so that three tasks have three ranks
PER_RANK = 6 * 2 * 2 * 128  # six blocks, query and value, A and B
Whole = tuple[Experiment, dict[str, Any], str]


def tiny(folder: Path, reading: str, *settings: str) -> Experiment:
    return small_experiment(folder, f"method={reading}", *TINY, *(FEWER if "_rr" in reading else []), *settings)


FEW = ["sdlora", "sdlora_kd_released", "sdlora_one_direction"]  # the others share their code


@pytest.fixture(scope="module", params=[pytest.param(r, marks=() if r in FEW else pytest.mark.slow) for r in READINGS])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A reading's whole run, shared by the tests that look at it."""
    experiment = tiny(tmp_path_factory.mktemp(request.param), request.param, "name=whole")
    return experiment, train(experiment), request.param


def ranks_of(reading: str) -> list[int]:
    if "_rr" in reading:
        return [10, 10, 8] if "released" in reading else [10, 8, 6]
    return [10] if "one_direction" in reading else [10, 10, 10]


def test_a_run_tells_its_directions(whole: Whole) -> None:
    _, result, reading = whole
    report, ranks = result["method_report"], ranks_of(reading)
    assert set(report) == {"ranks", "magnitudes", "absorbed", "residuals"}
    assert (report["ranks"], report["absorbed"]) == (ranks, [])
    assert len(report["magnitudes"]) == len(ranks) and len(set(report["magnitudes"])) == len(ranks)
    assert len(report["residuals"]) == (2 if "_kd" in reading else 0)
    assert result["stored_parameters"] == sum(ranks) * PER_RANK + len(ranks), "fewer with lower ranks"
    assert result["trainable_parameters"] == 10 * PER_RANK + 3 + 6 * 129


def test_a_stopped_run_ends_like_an_undisturbed_one(tmp_path: Path, whole: Whole) -> None:
    other, result, reading = whole
    experiment = tiny(tmp_path, reading, "name=stopped", "checkpoint.every=1")
    assert_ends_alike(experiment, 2, 2, other, result)


@pytest.mark.parametrize("reading", ["sdlora_kd", "sdlora_kd_paper", "sdlora_kd_released"])
def test_a_threshold_of_all_absorbs_every_direction_but_the_first(tmp_path: Path, reading: str) -> None:
    absorption = ["method.absorption.threshold=1.0", "method.absorption.residual=relative"]
    result = train(tiny(tmp_path, reading, *absorption, "name=a"))
    report = result["method_report"]
    assert (report["ranks"], report["absorbed"]) == ([10], [1, 2])
    own = 12 if "released" in reading else 0
    assert result["stored_parameters"] == 10 * PER_RANK + 1 + own


# --- other backbones ---


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_query_and_value_in_layers_of_their_own(tiny_models: dict[str, Path], kind: str) -> None:
    torch.manual_seed(0)
    model = built(named(tiny_models[kind]))
    method = SDLoRA(SDLoRAConfig(rank=4))
    method.adapt(model.backbone, model.targets, [], 2)
    assert {len(layer.sections) for layer in method.layers.values()} == {1}
    method.bind(Place().levels(model), None)
    batch, task = batch_for(model, kind), free_task() if isinstance(model, AnswerWriter) else one_task(3)
    if isinstance(model, Classifier):
        nn.init.normal_(model.head.get_parameter("parts.0.weight"))
    model.eval()
    optimiser = torch.optim.SGD([p for _, p in model.adapters()], lr=0.1)
    bare = model(batch, task).detach()
    for number in range(2):
        method.begin_task(number, 3, 1)
        for _ in range(3):
            model.zero_grad()
            model(batch, task).mean().backward()
            optimiser.step()
        method.end_task()
    with torch.no_grad():
        unfolded = model(batch, task)
        with method.inference():
            assert torch.allclose(model(batch, task), unfolded, rtol=0, atol=1e-4)
    assert float((unfolded - bare).abs().max()) > 1e-3


# --- labels ---


def test_old_logits_do_not_enter_the_loss(tmp_path: Path) -> None:
    learner = make_learner(tiny(tmp_path, "sdlora"))
    learn(learner)
    assert isinstance(learner.model, Classifier)
    task = learner.stream.tasks[1]
    batch = task.train.batch()
    before = learner.model(batch, task)
    nn.init.normal_(learner.model.head.get_parameter("parts.0.bias"))
    nn.init.normal_(learner.model.head.get_parameter("parts.2.bias"))
    assert torch.equal(learner.model(batch, task), before)
    nn.init.normal_(learner.model.head.get_parameter("parts.1.bias"))
    assert not torch.equal(learner.model(batch, task), before)


@pytest.mark.parametrize("offset", [-1, 2, -2, -100])
def test_a_label_of_another_task_has_no_loss(tmp_path: Path, offset: int) -> None:
    learner = make_learner(tiny(tmp_path, "sdlora"))
    first, task = learner.stream.tasks[1].train.batch(), learner.stream.tasks[1]
    first.labels[0] = task.classes.start + offset
    with pytest.raises(IndexError, match="out of bounds"):
        learner.model(first, task)


def test_tasks_of_two_hundred_classes_stand_in_the_order_of_numbers(tmp_path: Path) -> None:
    config = tiny(tmp_path, "sdlora").benchmark
    parts = [Part(str(n), list(range(20 * n, 20 * n + 20)), [str(c) for c in range(20)], None) for n in range(10)]
    assert label_ranges(parts, config) == [range(20 * n, 20 * n + 20) for n in range(10)]


# --- what is refused ---

WRONG = {
    "rank=0": "method.rank=0: should be greater than 0",
    "rank=-3": "method.rank=-3: should be greater than 0",
    "absorption.threshold=-0.1": "method.absorption.threshold=-0.1: should be greater than or equal to 0",
    "absorption.threshold=nan": "method.absorption.threshold=nan: should be a finite number",
    "absorption.threshold=inf": "method.absorption.threshold=inf: should be a finite number",
    "magnitude=nan": "method.magnitude=nan: should be a finite number",
    "reduction.mu=8": "reduction.mu=8 has to come before reduction.nu=8",
    "reduction.mu=9": "reduction.mu=9 has to come before reduction.nu=8",
    "reduction.mu=0": "method.reduction.mu=0: should be",
    "reduction.rank_nu=9": "reduction.rank_nu=9 is above reduction.rank_mu=8; ranks fall",
    "reduction.rank_nu=0": "method.reduction.rank_nu=0: should be greater than 0",
    "variant=pr": "method.variant=pr: should be",
    "norm=l2": "method.norm=l2: should be",
}


@pytest.mark.parametrize(("setting", "told"), WRONG.items(), ids=WRONG.keys())
def test_a_wrong_value_is_one_line_that_names_the_setting(setting: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        load_experiment(["method=sdlora", "benchmark=split_digits", f"method.{setting}"])
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_ranks_that_grow_are_refused() -> None:
    with pytest.raises(UserError, match=r"rank=4 is below reduction\.rank_mu=8; ranks fall$"):
        load_experiment(["method=sdlora_rr", "benchmark=split_digits", "method.rank=4"])


def refused(experiment: Experiment) -> str:
    with pytest.raises(UserError) as caught:
        make_learner(experiment)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("targets", ["[qkv]", "[fc2]"])
def test_a_rank_that_no_projection_has_is_refused(tmp_path: Path, targets: str) -> None:
    experiment = tiny(tmp_path, "sdlora", "method.rank=129", f"backbone.targets={targets}")
    assert refused(experiment).startswith("method.rank=129: blocks.0.")
    assert "takes 1 to 128" in refused(experiment)


def test_modules_that_are_not_there_are_refused(tmp_path: Path) -> None:
    told = refused(tiny(tmp_path, "sdlora", "backbone.targets=[query]"))
    assert told.startswith("backbone.targets: no linear module ends in 'query'")


def test_a_module_that_is_no_linear_layer_is_refused(tiny_models: dict[str, Path], tmp_path: Path, cache: Path) -> None:
    planted.text_task(
        tmp_path / "texts" / "pets", *(planted.labelled({"yes": "cat", "no": "dog"}, 8) for _ in range(2))
    )
    data = ["benchmark=jsonl_folder", f"benchmark.path={tmp_path / 'texts'}", f"backbone.name={tiny_models['gpt2']}"]
    experiment = load_experiment([*data, "method=sdlora", "benchmark.text.length=14", f"storage={tmp_path}"])
    assert refused(experiment) == "backbone.targets: transformer.h.0.attn.c_attn is a Conv1D; name linear layers"


def test_a_fused_layer_without_three_parts_is_refused() -> None:
    model = nn.ModuleDict({"qkv": nn.Linear(8, 16)})
    with pytest.raises(ValueError, match=r"^backbone\.targets: qkv: query, key and value cannot share its 16 outputs"):
        SDLoRA(SDLoRAConfig(rank=2)).adapt(model, ["qkv"], [], 1)


def test_a_checkpoint_of_other_tasks_is_one_line(tmp_path: Path) -> None:
    tensors, values = make_learner(tiny(tmp_path, "sdlora")).state()
    with pytest.raises(UserError, match=r"^the checkpoint does not fit: ") as caught:
        make_learner(tiny(tmp_path, "sdlora", "benchmark.tasks=2")).load(tensors, values)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_other_directions_is_one_line(tmp_path: Path) -> None:
    first, other = (make_learner(tiny(tmp_path, "sdlora")) for _ in range(2))
    learn(first, steps=1)
    first.end_task()
    tensors, values = first.state()
    with pytest.raises(UserError, match=r"^the checkpoint does not fit: .* directions of 12 projections"):
        other.load(tensors | {"method.ranks": torch.tensor([5, 5])}, values)


def test_a_checkpoint_of_another_rank_is_one_line(tmp_path: Path) -> None:
    tensors, values = make_learner(tiny(tmp_path, "sdlora", "method.rank=4")).state()
    with pytest.raises(UserError, match=r"lora_A is \(8, 128\) in the checkpoint and \(6, 128\) in the model$"):
        make_learner(tiny(tmp_path, "sdlora", "method.rank=3")).load(tensors, values)


def test_a_direction_that_is_not_finite_is_one_line(tmp_path: Path) -> None:
    learner = make_learner(tiny(tmp_path, "sdlora"))
    learn(learner, steps=1)
    with torch.no_grad():
        learner.model.get_parameter("backbone.blocks.0.attn.qkv.lora_A")[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"^task 0: .*not finite") as caught:
        learner.end_task()
    assert "\n" not in str(caught.value)
