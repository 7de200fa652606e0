"""Levels of a real model with adapters: one process against two, whole, replicated and sharded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from benchmarks.dataset import Batch
from benchmarks.models.classifier import Classifier
from benchmarks.models.config import BackboneConfig
from methods.levels import Levels
from methods.lora import LoRA, LoRAConfig
from methods.treelora.sketch import CountSketch
from orchestrator.sharding import Place
from tests.models import classifier, one_task

WORLD = 2
SHARDINGS = ("fsdp2", "ddp", "none")
RANKS = (1, 3)  # LoRA factors of one and three rows: an empty shard, and uneven ones
every_case = pytest.mark.parametrize(("sharding", "rank"), [(s, r) for s in SHARDINGS for r in RANKS])


def make_model(rank: int) -> Classifier:
    """A micro ViT whose adapters and head are no longer zero, so that every gradient is something."""
    torch.manual_seed(0)
    model = classifier(BackboneConfig(), 5)
    LoRA(LoRAConfig(rank=rank)).adapt(model.backbone, ("qkv",))
    for name, parameter in model.named_parameters():
        if "lora_B" in name or name == "head.parts.0.weight":
            nn.init.normal_(parameter, std=0.1)
    return model


def backward(model: nn.Module, share: slice) -> None:
    """The gradient of the mean loss over a share of eight images."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (8, 3, 32, 32), generator=generator).byte()
    labels = torch.randint(5, (8,), generator=generator)
    model(Batch(images[share], labels[share]), one_task(5)).mean().backward()


def sketch_of(levels: Levels, vectors: list[Tensor]) -> Tensor:
    return CountSketch(levels.coordinates(), 64, seed=0)(vectors)


def numbered(levels: Levels) -> list[Tensor]:
    """Whole vectors in which every element tells its level and coordinate."""
    return [torch.arange(size) + 0.25 * level for level, size in enumerate(levels.sizes)]


def whole_gradients(model: Classifier) -> list[Tensor]:
    """What torch itself says the adapters' gradients are, level by level."""
    found: dict[int, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if "lora" in name:
            gradient = parameter.grad
            assert gradient is not None
            gradient = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
            found.setdefault(model.level_of(name), []).append(gradient.flatten())
    return [torch.cat(found[level]) for level in sorted(found)]


def worker(process: int, folder: Path) -> None:
    """Write what this process sees of every sharding and rank; the test process compares."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=process, world_size=WORLD)
    for sharding in SHARDINGS:
        for rank in RANKS:
            found = observed(Place(process, WORLD, sharding), rank)
            save_file(found, folder / f"{sharding}-{rank}-{process}.safetensors")
    dist.destroy_process_group()


def observed(place: Place, rank: int) -> dict[str, Tensor]:
    model = make_model(rank)
    spread = place.spread(model)
    backward(spread, slice(place.rank, None, WORLD))
    place.average_gradients(spread)
    levels = place.levels(model)
    gradients = levels.gradients()
    local = levels.local(numbered(levels))
    found = {"part": torch.tensor(-1 if levels.part is None else levels.part)}
    found |= {"parts": torch.tensor(levels.parts), "sketch": sketch_of(levels, gradients)}
    levels.set_gradients(local)
    vectors = {
        "coordinates": levels.coordinates(),
        "whole": levels.whole(local),
        "parameters": levels.whole(levels.parameters()),
        "gradients": levels.whole(gradients),
        "read": levels.gradients(),
        "written": whole_gradients(model),
    }
    for name, values in vectors.items():
        found |= {f"{name}.{level}": vector.clone() for level, vector in enumerate(values)}
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The observations of two processes, for all shardings and ranks."""
    path = tmp_path_factory.mktemp("levels")
    torch.multiprocessing.spawn(worker, (path,), WORLD)
    return path


def seen(folder: Path, sharding: str, rank: int) -> list[dict[str, Tensor]]:
    return [load_file(folder / f"{sharding}-{rank}-{process}.safetensors") for process in range(WORLD)]


@pytest.fixture(scope="module", params=RANKS)
def alone(request: pytest.FixtureRequest) -> tuple[int, Levels]:
    """The levels of the same model in one process, after a backward pass over all images."""
    model = make_model(request.param)
    backward(model, slice(None))
    return request.param, Place().levels(model)


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_sketches_of_all_workers_add_up_to_that_of_one_process(
    folder: Path, sharding: str, alone: tuple[int, Levels]
) -> None:
    rank, levels = alone
    senders = [view for view in seen(folder, sharding, rank) if view["part"] >= 0]
    assert [int(view["part"]) for view in senders] == list(range(len(senders)))
    assert {int(view["parts"]) for view in senders} == {len(senders)} == {WORLD if sharding == "fsdp2" else 1}
    total = torch.stack([view["sketch"] for view in senders]).sum(0)
    expected = sketch_of(levels, levels.gradients())
    assert ((total - expected).norm(dim=1) <= 1e-5 * expected.norm(dim=1)).all()
    assert (expected.norm(dim=1) > 0).all()


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_whole_parameters_and_gradients_are_those_of_one_process(
    folder: Path, sharding: str, alone: tuple[int, Levels]
) -> None:
    rank, levels = alone
    for view in seen(folder, sharding, rank):
        for level, (parameters, gradients) in enumerate(zip(levels.parameters(), levels.gradients(), strict=True)):
            assert torch.equal(view[f"parameters.{level}"], parameters)
            difference = view[f"gradients.{level}"] - gradients
            assert difference.norm() <= 1e-5 * gradients.norm()


@every_case
def test_workers_cover_every_coordinate(folder: Path, sharding: str, rank: int) -> None:
    views = seen(folder, sharding, rank)
    for level in range(6):
        size = rank * (128 + 3 * 128)  # of both factors
        shares = [view[f"coordinates.{level}"] for view in views]
        if sharding == "fsdp2":
            assert torch.cat(shares).sort().values.tolist() == list(range(size))
            assert min(len(share) for share in shares) > 0
        else:
            assert [share.tolist() for share in shares] == [list(range(size))] * WORLD


@every_case
def test_local_and_whole_vectors_and_gradients_go_round(folder: Path, sharding: str, rank: int) -> None:
    for view in seen(folder, sharding, rank):
        for level in range(6):
            expected = torch.arange(rank * 512) + 0.25 * level
            assert torch.equal(view[f"whole.{level}"], expected)
            assert torch.equal(view[f"written.{level}"], expected)
            assert torch.equal(view[f"read.{level}"], expected[view[f"coordinates.{level}"]])


def hand_made() -> tuple[list[tuple[str, nn.Parameter]], Levels]:
    """Two levels of small tensors, listed out of order."""
    values = {"block.1.a": [[1.0, 2.0], [3.0, 4.0]], "block.0.a": [[5.0]], "block.1.b": [[6.0, 7.0]]}
    parameters = [(name, nn.Parameter(torch.tensor(rows))) for name, rows in values.items()]
    return parameters, Levels(parameters, lambda name: int(name.split(".")[1]), lambda values: values)


def test_tensors_of_a_level_stand_one_after_another() -> None:
    _, levels = hand_made()
    assert len(levels) == 2
    assert levels.sizes == [1, 6]
    assert [v.tolist() for v in levels.parameters()] == [[5], [1, 2, 3, 4, 6, 7]]
    assert [v.tolist() for v in levels.coordinates()] == [[0], [0, 1, 2, 3, 4, 5]]


def test_parameters_and_gradients_are_copies() -> None:
    parameters, levels = hand_made()
    for _, parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    for vector in [*levels.parameters(), *levels.gradients()]:
        vector += 1
    assert [v.tolist() for v in levels.parameters()] == [[5], [1, 2, 3, 4, 6, 7]]
    assert [v.tolist() for v in levels.gradients()] == [[1], [1] * 6]


def test_a_missing_gradient_reads_as_zero_and_stays_missing() -> None:
    parameters, levels = hand_made()
    parameters[0][1].grad = torch.tensor([[1.0, -1.0], [2.0, -2.0]])
    assert [v.tolist() for v in levels.gradients()] == [[0], [1, -1, 2, -2, 0, 0]]
    levels.set_gradients([torch.tensor([9.0]), torch.arange(6.0)])
    assert parameters[0][1].grad.tolist() == [[0, 1], [2, 3]]
    assert parameters[1][1].grad is None


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("backbone.blocks.11.attn.qkv.lora_A.default.weight", 11),
        ("head.weight", 0),
        ("backbone.blocks.1.norm2.bias", 1),
    ],
)
def test_the_level_of_a_parameter_is_its_block(name: str, level: int) -> None:
    assert classifier(BackboneConfig(name="vit_tiny_patch16_224", pretrained=False), 5).level_of(name) == level
