"""Trained heads: what they compute, and that old rows are frozen to the bit, alone and on two workers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from benchmarks.models.heads import GrowingHead, HeadConfig
from tests.support.pair import WORLD, Pair

WIDTH, PARTS = 6, (2, 3, 1)
SHARDINGS = ("none", "ddp", "fsdp2")
STARTS = [sum(PARTS[:task]) for task in range(len(PARTS) + 1)]
OPTIMISERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
}
both = pytest.mark.parametrize("cosine", [False, True])


def rows(task: int) -> tuple[Tensor, Tensor]:
    """Eight features and the labels of ``task``, the same on every worker."""
    generator = torch.Generator().manual_seed(task)
    labels = torch.randint(STARTS[task], STARTS[task + 1], (8,), generator=generator)
    return torch.randn(8, WIDTH, generator=generator), labels


def task_loss(model: nn.Module, task: int, share: slice = slice(None)) -> Tensor:
    features, labels = rows(task)
    logits = model(features[share])[:, STARTS[task] : STARTS[task + 1]]
    return functional.cross_entropy(logits, labels[share] - STARTS[task])


def learn(model: nn.Module, head: GrowingHead, optimiser: str, task: int, share: slice = slice(None)) -> None:
    """Four steps of one task, with an optimiser of its own."""
    chosen = OPTIMISERS[optimiser](head.part_parameters(task))
    for _ in range(4):
        model.zero_grad()
        task_loss(model, task, share).backward()
        chosen.step()


def whole(head: GrowingHead) -> dict[str, Tensor]:
    tensors = {name: p.detach() for name, p in head.named_parameters()}
    return {n: (p.full_tensor() if isinstance(p, DTensor) else p).clone() for n, p in tensors.items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """The parts that differ in any bit."""
    return {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}


def test_the_linear_head_starts_at_zero_and_parts_follow_each_other() -> None:
    head = GrowingHead(WIDTH, PARTS, cosine=False)
    features = rows(0)[0]
    assert torch.equal(head(features), torch.zeros(8, 6))
    for part, layer in enumerate(head.parts):
        nn.init.constant_(layer.weight, part + 1.0)
        nn.init.constant_(layer.bias, 0.5)
    expected = features.sum(1, keepdim=True) * torch.tensor([1.0, 1, 2, 2, 2, 3]) + 0.5
    assert torch.allclose(head(features), expected, atol=1e-5)
    assert head.count == 3


def test_cosine_logits_are_sixteen_times_the_cosine_whatever_the_lengths() -> None:
    torch.manual_seed(0)
    head = GrowingHead(WIDTH, PARTS, cosine=True)
    features = rows(0)[0]
    vectors = torch.cat([part.weight for part in head.parts])
    expected = 16 * functional.cosine_similarity(features[:, None], vectors[None], dim=-1)
    assert torch.allclose(head(features), expected, atol=1e-5)
    with torch.no_grad():
        head.parts[1].weight.mul_(30)
    assert torch.allclose(head(7 * features), expected, atol=1e-5)
    assert [name for name, _ in head.named_parameters()] == [f"parts.{part}.weight" for part in range(3)]


@both
def test_the_loss_of_a_task_gives_other_parts_a_gradient_of_zero(cosine: bool) -> None:
    head = GrowingHead(WIDTH, PARTS, cosine)
    task_loss(head, 1).backward()
    gradients = [[p.grad for p in head.part_parameters(part)] for part in range(3)]
    assert all(g is not None and g.abs().sum() > 0 for g in gradients[1])
    assert all(g is not None and not g.any() for part in (0, 2) for g in gradients[part])


@both
@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_only_the_current_part_moves_under_momentum_and_weight_decay(cosine: bool, optimiser: str) -> None:
    torch.manual_seed(0)
    head = GrowingHead(WIDTH, PARTS, cosine)
    for task in (0, 1):
        before = whole(head)
        learn(head, head, optimiser, task)
        assert changed(before, whole(head)) == {str(task)}


@pytest.mark.parametrize("cosine", [False, True])
def test_a_head_learns_its_task(cosine: bool) -> None:
    torch.manual_seed(0)
    head = GrowingHead(WIDTH, PARTS, cosine)
    before = task_loss(head, 1).item()
    for _ in range(10):
        learn(head, head, "sgd", 1)
    assert task_loss(head, 1).item() < 0.5 * before


class Model(nn.Module):
    """A head inside a module, as training has it."""

    def __init__(self, cosine: bool) -> None:
        super().__init__()
        self.head = GrowingHead(WIDTH, PARTS, cosine)

    def forward(self, features: Tensor) -> Tensor:
        return self.head(features)


def trained(sharding: str, cosine: bool, optimiser: str, share: slice) -> dict[str, Tensor]:
    """The head after tasks 0 and 1 and a record of the part that task 1 moved."""
    torch.manual_seed(0)
    model = Model(cosine)
    if sharding == "fsdp2":
        fully_shard(model, mesh=init_device_mesh("cpu", (WORLD,)), reshard_after_forward=True)
    wrapped = DistributedDataParallel(model) if sharding == "ddp" else model
    learn(wrapped, model.head, optimiser, 0, share)
    before = whole(model.head)
    learn(wrapped, model.head, optimiser, 1, share)
    after = whole(model.head)
    return after | {f"moved.{part}": torch.tensor(part in changed(before, after)) for part in "012"}


CASES = [(cosine, optimiser) for cosine in (False, True) for optimiser in OPTIMISERS]


def worker(process: int, folder: Path) -> None:
    for sharding in SHARDINGS[1:]:
        for cosine, optimiser in CASES:
            found = trained(sharding, cosine, optimiser, slice(process, None, WORLD))
            save_file(found, folder / f"{sharding}-{cosine}-{optimiser}-{process}.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pair: Pair) -> Path:
    """What two processes learned."""
    path = tmp_path_factory.mktemp("heads")
    pair.run(worker, path)
    return path


@pytest.mark.parametrize("sharding", SHARDINGS[1:])
@pytest.mark.parametrize(("cosine", "optimiser"), CASES)
def test_two_workers_learn_what_one_learns_and_freeze_old_rows(
    folder: Path, sharding: str, cosine: bool, optimiser: str
) -> None:
    alone = trained("none", cosine, optimiser, slice(None))
    for process in range(WORLD):
        found = load_file(folder / f"{sharding}-{cosine}-{optimiser}-{process}.safetensors")
        assert [bool(found[f"moved.{part}"]) for part in range(3)] == [False, True, False]
        assert found.keys() == alone.keys()
        assert all(torch.allclose(found[name], alone[name], atol=1e-5) for name in alone)


@pytest.mark.parametrize(
    "wrong", [{"kind": "mlp"}, {"shrinkage": 0}, {"shrinkage": 1.1}, {"projection": 0}, {"depth": 2}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        HeadConfig.model_validate(wrong)
