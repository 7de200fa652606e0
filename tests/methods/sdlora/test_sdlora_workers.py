"""SD-LoRA on two workers ends like one process, and a checkpoint of two goes on in one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from orchestrator.run.learner import Learner
from orchestrator.run.sharding import Place
from tests.orchestrator.test_learner import learn, make_learner
from tests.support.experiments import small_experiment
from tests.support.pair import WORLD, Pair

SMALL = ["method=sdlora", "method.rank=4", "benchmark.tasks=2", "benchmark.classes=4", "benchmark.test_per_class=8"]
SMALL += ["benchmark.train_per_class=12", "train.optimizer=sgd", "train.learning_rate=0.05"]
KINDS = {
    "full": [],
    "one direction": ["method.variant=one_direction"],
    "absorbed": ["method.variant=kd", "method.absorption.threshold=1.0", "method.absorption.scope=per_projection"],
    "recomputed": ["train.gradient_checkpointing=true", "method.norm=product_fro", "method.alpha_at_task_start=reset"],
}
SHARDINGS = {"full": ("ddp", "fsdp2"), "one direction": ("ddp",)}
CASES = [(kind, sharding) for kind in KINDS for sharding in SHARDINGS.get(kind, ("fsdp2",))]
every_case = pytest.mark.parametrize(("kind", "sharding"), CASES)
Tensors = dict[str, Tensor]
Alone = tuple[Tensors, dict[str, Any], Tensors]


def learner_of(folder: Path, kind: str, place: Place) -> Learner:
    return make_learner(small_experiment(folder, *SMALL, *KINDS[kind]), place)


def half_way(learner: Learner) -> Tensors:
    """The first task, and the second one without its end."""
    losses = learn(learner, task=0, steps=3)
    learner.end_task()
    losses += learn(learner, task=1, steps=3)
    tensors, _ = learner.state()
    return {name: value.clone() for name, value in tensors.items()} | {"losses": torch.tensor(losses)}


def ends_with(learner: Learner) -> Tensors:
    """What is left of the second task: a step, the end, and the update as evaluation has it."""
    learner.step(torch.arange(8), 3)
    learner.end_task()
    found: Tensors = {}
    for name, (down, up) in learner.method.pairs().items():
        found |= {f"{name}.A": down, f"{name}.B": up}
    with learner.method.inference():
        scores = learner.scores(learner.stream.tasks, "test", 2)
    return found | learner.method.state_dict() | {"scores": torch.tensor(scores)}


def on_two(process: int, folder: Path) -> None:
    """One of two workers; both write what they end with."""
    for kind, sharding in CASES:
        learner = learner_of(folder, kind, Place(process, WORLD, sharding))
        save_file(half_way(learner), folder / f"{kind}-{sharding}-half-{process}")
        found = {name: value.contiguous() for name, value in ends_with(learner).items()}
        save_file(found, folder / f"{kind}-{sharding}-{process}")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, pair: Pair) -> Path:
    folder = tmp_path_factory.mktemp("two")
    pair.run(on_two, folder)
    return folder


@pytest.fixture(scope="module")
def alone(two: Path) -> dict[str, Alone]:
    """Of each kind: what one process has half way, its optimiser's plain values there, what it ends with."""
    found = {}
    for kind in KINDS:
        learner = learner_of(two, kind, Place())
        half = half_way(learner)
        found[kind] = half, learner.state()[1], ends_with(learner)
    return found


def close(found: Tensors, expected: Tensors, tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name].to(value.dtype), value, rtol=tolerance, atol=tolerance), name


@every_case
def test_two_workers_end_like_one(two: Path, alone: dict[str, Alone], kind: str, sharding: str) -> None:
    half, _, end = alone[kind]
    close(load_file(two / f"{kind}-{sharding}-half-0"), half, 1e-4)
    first, other = (load_file(two / f"{kind}-{sharding}-{process}") for process in range(WORLD))
    close(first, end, 1e-4)
    assert all(torch.equal(value, first[name]) for name, value in other.items()), "both workers hold the same"
    assert all(value.abs().sum() > 0 for name, value in end.items() if name.endswith("qkv.B"))


@every_case
def test_a_checkpoint_of_two_goes_on_in_one(two: Path, alone: dict[str, Alone], kind: str, sharding: str) -> None:
    _, values, end = alone[kind]
    learner = learner_of(two, kind, Place())
    learner.select(learner.stream.tasks[1])
    tensors = load_file(two / f"{kind}-{sharding}-half-0")
    tensors.pop("losses")
    learner.load(tensors, values)
    close(ends_with(learner), end, 1e-4)
