"""Every reading of GORP in ``configs/method`` through whole runs, on one worker and on two, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from orchestrator.launch import train
from orchestrator.run.learner import Learner
from orchestrator.run.sharding import Place
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError
from tests.orchestrator.test_learner import learn, make_learner, weights
from tests.support.experiments import small_experiment
from tests.support.gorp_model import leaks, same
from tests.support.interruption import assert_ends_alike, ended
from tests.support.pair import WORLD, Pair

READINGS = ("gorp", "gorp_paper", "gorp_released")
TINY = ["benchmark.classes=6", "benchmark.train_per_class=12", "train.epochs=2", "train.batch_size=8"]
TINY += ["train.learning_rate=1e-3", "method.full_rank_learning_rate=1e-3", "method.compression.every=4"]
BLOCKS, WIDTH, INNER = 6, 128, 384
Whole = tuple[Experiment, dict[str, Any], str]


def tiny(folder: Path, reading: str, *settings: str) -> Experiment:
    return small_experiment(folder, f"method={reading}", *TINY, *settings)


@pytest.fixture(scope="module", params=["gorp", "gorp_released", pytest.param("gorp_paper", marks=pytest.mark.slow)])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A reading's whole run, shared by the tests that look at it."""
    experiment = tiny(tmp_path_factory.mktemp(request.param), request.param, "name=whole")
    return experiment, train(experiment), request.param


# --- readings ---


def test_a_run_tells_what_it_protects_and_what_it_stores(whole: Whole) -> None:
    _, result, reading = whole
    protected = result["method_report"]["protected"]
    names = [f"blocks.{block}.{name}" for block in range(BLOCKS) for name in ("mlp.fc1.weight", "attn.qkv.lora_A")]
    assert sorted(protected) == sorted(names)
    assert all(0 <= protected[name] <= (16 if "released" in reading else 64) for name in names)
    assert sum(protected.values()) > 0
    down = WIDTH if reading == "gorp" else 16
    spaces = sum(count * (INNER if "fc1" in name else down) for name, count in protected.items())
    pairs = 3 * 8 * BLOCKS * 2 * (WIDTH + WIDTH)
    assert result["stored_parameters"] == pairs + BLOCKS * WIDTH * INNER + spaces
    assert result["trainable_parameters"] == pairs / 3 + BLOCKS * WIDTH * INNER + 6 * (WIDTH + 1)


def test_a_stopped_run_ends_like_an_undisturbed_one(tmp_path: Path, whole: Whole) -> None:
    other, result, reading = whole
    experiment = tiny(tmp_path, reading, "name=stopped", "checkpoint.every=3")
    assert_ends_alike(experiment, 2, 4, other, result)


@pytest.mark.slow
@pytest.mark.parametrize("whole", ["gorp"], indirect=True)
def test_a_finished_run_predicts_the_same_in_a_new_process(whole: Whole) -> None:
    experiment, result, _ = whole
    command = [sys.executable, "-c", SCORES, experiment.model_dump_json()]
    scores = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert json.loads(scores.splitlines()[-1]) == result["accuracy_matrix"][-1]


SCORES = """
import json, sys, torch
torch.set_num_threads(1)
from orchestrator.run import checkpoint
from orchestrator.settings.compose import checked
from orchestrator.run.learner import Learner
from orchestrator.run.session import read_stream
from orchestrator.run.sharding import Place
experiment = checked(json.loads(sys.argv[1]))
learner = Learner(experiment, read_stream(experiment), Place(), None)
learner.load(*checkpoint.load(experiment.folder))
with learner.method.inference():
    print([row[0] for row in learner.scores(learner.stream.tasks, "test", 3)])
"""


def spaces_of(learner: Learner) -> dict[str, Tensor]:
    """The spaces after the first task that are not empty, by the names of all parameters."""
    found = {name: value for name, value in learner.state()[0].items() if name.startswith("method.finished.0.space.")}
    return {name.removeprefix("method.finished.0.space."): value for name, value in found.items() if value.numel()}


@pytest.mark.parametrize("reading", READINGS)
def test_only_the_default_leaves_alone_what_the_first_task_needs(tmp_path: Path, reading: str) -> None:
    """With large rates, so that the motion is far above the rounding of the weights."""
    rates = ["train.learning_rate=0.03", "method.full_rank_learning_rate=0.03"]
    learner = make_learner(tiny(tmp_path, reading, *rates))
    learn(learner)
    learner.end_task()
    spaces = spaces_of(learner)
    learn(learner, task=1, steps=0)
    before = weights(learner)
    for step in range(8):
        learner.step(torch.arange(step, step + 8), step)
    found = leaks(spaces, {name: value - before[name] for name, value in weights(learner).items()})
    assert len(found) >= BLOCKS
    assert max(found) <= 1e-5 if reading == "gorp" else min(found) > 1e-3


# --- two workers ---

SHARDINGS = ("none", "ddp", "fsdp2")
SHARED = [
    "benchmark.tasks=2",
    "benchmark.classes=5",
    "train.accumulate=2",
    "train.clip_norm=0.5",
]  # odd numbers of rows
SHARED += ["train.optimizer=sgd", "train.learning_rate=0.1", "method.full_rank_learning_rate=0.1"]


def on_two(process: int, folder: Path) -> None:
    """One of two workers; the first one writes what it has in the middle and at the end."""
    for sharding in SHARDINGS:
        middle, end = two_tasks(make_learner(tiny(folder, "gorp", *SHARED), Place(process, WORLD, sharding)))
        if process == 0:
            save_file(middle, folder / f"{sharding}-middle.safetensors")
            save_file(end, folder / f"{sharding}-end.safetensors")


def two_tasks(learner: Learner) -> list[dict[str, Tensor]]:
    """The state after half of the second task, between two refreshes, and at its end."""
    learn(learner, task=0, steps=6, rows=11)
    learner.end_task()
    learn(learner, task=1, steps=5, rows=11)
    return [{name: value.clone() for name, value in learner.state()[0].items()}, second_half(learner)]


def second_half(learner: Learner) -> dict[str, Tensor]:
    for step in range(5, 9):
        learner.step(torch.arange(step, step + 11), step)
    learner.end_task()
    return {name: value.clone() for name, value in learner.state()[0].items()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    return two_tasks(make_learner(tiny(tmp_path_factory.mktemp("alone"), "gorp", *SHARED)))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, pair: Pair) -> Path:
    folder = tmp_path_factory.mktemp("two")
    pair.run(on_two, folder)
    return folder


def check_close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Weights and pairs to 1e-4, and the projectors on the spaces, which no sign of a direction changes."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        pair = [found[name], value]
        left, right = [space @ space.t() for space in pair] if ".space." in name else pair
        assert torch.allclose(left, right, rtol=0, atol=1e-4), name
    assert any(".space." in name and value.shape[1] > 1 for name, value in wanted.items())


@pytest.mark.slow
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_two_workers_end_like_one(two: Path, alone: list[dict[str, Tensor]], sharding: str) -> None:
    check_close(load_file(two / f"{sharding}-end.safetensors"), alone[1])
    middle, end = alone
    assert max(float((end[n] - v).abs().max()) for n, v in middle.items() if n.startswith("model.")) > 5e-3


@pytest.mark.slow
def test_the_state_of_two_shards_goes_on_in_one_process(
    two: Path, tmp_path: Path, alone: list[dict[str, Tensor]]
) -> None:
    learner = make_learner(tiny(tmp_path, "gorp", *SHARED))
    learner.select(learner.stream.tasks[1])
    state = load_file(two / "fsdp2-middle.safetensors")
    learner.load(state, {"seconds": {"train": 0.0, "evaluate": 0.0, "method": 0.0}})
    assert same(learner.state()[0], state)
    check_close(second_half(learner), alone[1])


# --- what is refused ---

WRONG = {
    "method.compression.rank=0": "method.compression.rank=0: should be greater than or equal to 1",
    "method.compression.every=0": "method.compression.every=0: should be greater than or equal to 1",
    "method.space.energy=0": "method.space.energy=0: should be greater than 0",
    "method.space.energy=1.1": "method.space.energy=1.1: should be less than or equal to 1",
    "method.space.energy=nan": "method.space.energy=nan: should be",
    "method.space.cap=0": "method.space.cap=0: should be greater than 0",
    "method.compression.rank=129": "method.compression.rank=129: blocks.0.mlp.fc1 has a weight of (384, 128)",
    "method.full_rank=[nope]": "method.full_rank=['nope']: no module ends in 'nope'; linear modules here end in fc1,",
    "method.full_rank=[mlp.fc1,mlp.fc3]": "method.full_rank=['mlp.fc1', 'mlp.fc3']: no module ends in 'mlp.fc3'",
    "method.full_rank=[norm1]": "method.full_rank: blocks.0.norm1 is a LayerNorm; name linear layers",
    "method.full_rank=[qkv]": "backbone.targets=['qkv']: all of them are trained whole; LoRA needs others",
    "train.weight_decay=0.1": "train.weight_decay: it would move protected directions; say 0 for GORP",
}


@pytest.mark.parametrize(("setting", "told"), WRONG.items(), ids=WRONG.keys())
def test_a_wrong_value_is_one_line_that_names_the_setting(tmp_path: Path, setting: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        learn(make_learner(tiny(tmp_path, "gorp", setting)), steps=0)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_a_whole_weight_without_a_gradient_is_told_in_the_first_step(tmp_path: Path) -> None:
    learner = make_learner(tiny(tmp_path, "gorp"))
    learner.begin_task(learner.stream.tasks[0], 1)
    learner.model.get_parameter("backbone.blocks.2.mlp.fc1.weight").requires_grad_(False)
    told = r"^task 0, step 0: method.full_rank: blocks.2.mlp.fc1.weight gets no gradient; leave it out$"
    with pytest.raises(UserError, match=told):
        learner.step(torch.arange(8), 0)


@pytest.mark.parametrize("whole", ["gorp"], indirect=True)
def test_a_checkpoint_without_the_space_of_an_old_task_is_one_line(whole: Whole) -> None:
    experiment, _, _ = whole
    state = ended(experiment)
    lost = "backbone.blocks.3.mlp.fc1.weight"
    del state[f"method.finished.0.space.{lost}"]
    told = f"^the checkpoint does not fit: no protected space for {lost}, though earlier tasks were learned$"
    with pytest.raises(UserError, match=told):
        make_learner(experiment).load(state, {"seconds": {}})
