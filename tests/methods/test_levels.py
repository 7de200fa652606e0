"""Levels of a real model with adapters, and what is computed on them: one process against two, whole, replicated and
sharded.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from benchmarks.dataset import Batch
from benchmarks.models.classifier import Classifier
from benchmarks.models.config import BackboneConfig
from methods.levels import Levels
from methods.lora import LoRA, LoRAConfig
from methods.treelora.low_rank import mean_of_products
from methods.treelora.regulariser import RegulariserConfig, edit
from methods.treelora.sketch import SketchConfig, Sketcher
from orchestrator.run.sharding import Place
from tests.support.models import classifier, one_task
from tests.support.pair import WORLD, Pair

SHARDINGS = ("fsdp2", "ddp", "none")
RANKS = (1, 3)  # LoRA factors of one and three rows: an empty shard, and uneven ones
REGULARISERS = [
    (k, s, t) for k in ("l1", "cos", "dot_log") for s in ("raw", "match_loss") for t in ("raw", "norm_matched")
]
CASES = [(s, r) for s in SHARDINGS for r in RANKS if s == "fsdp2" or r == 3]  # whole levels know no empty shard
every_case = pytest.mark.parametrize(("sharding", "rank"), CASES)


def make_model(rank: int) -> Classifier:
    """A micro ViT whose adapters and head are not zero, so that every gradient is something; level 0 is wider."""
    torch.manual_seed(0)
    model = classifier(BackboneConfig(), 5)
    LoRA(LoRAConfig(rank=rank)).adapt(model.backbone, ("qkv", "blocks.0.mlp.fc1"), [f"blocks.{i}" for i in range(6)], 1)
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


def sketch_of(levels: Levels, matrix: Tensor) -> Tensor:
    return Sketcher(levels.layout, levels.sizes, SketchConfig(width=64), seed=0)(levels.flat(matrix)).values


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
    for sharding, rank in CASES:
        # With one rank FSDP2 gathers each block by itself, with the other the whole model at once.
        place = Place(process, WORLD, sharding, by_blocks_from=0 if rank == 1 else 2**30)
        found = observed(place, rank)
        save_file(found, folder / f"{sharding}-{rank}-{process}.safetensors")


def observed(place: Place, rank: int) -> dict[str, Tensor]:
    model = make_model(rank)
    spread = place.spread(model)
    backward(spread, slice(place.rank, None, WORLD))
    place.average_gradients(spread)
    levels = place.levels(model)
    gradients, parameters = levels.gradients(), levels.parameters()
    local = levels.local(numbered(levels))
    found = {"part": torch.tensor(-1 if levels.part is None else levels.part), "parts": torch.tensor(levels.parts)}
    found |= {"sketch": sketch_of(levels, gradients), "coordinates": levels.coordinates(), "local": local}
    found |= {"flat": levels.flat(levels.coordinates()), "layout": torch.tensor(levels.layout)}
    vectors = {
        "whole": levels.whole(local),
        "parameters": levels.whole(parameters),
        "gradients": levels.whole(gradients),
        "factor": levels.whole(levels.named("lora_A.").float()),
    }
    for number, case in enumerate(REGULARISERS):
        found[f"value.{number}"], edited = edited_by(levels, case)
        vectors[f"edit.{number}"] = levels.whole(edited)
    vectors["merged"] = levels.whole(mean_of_products(levels, [parameters, levels.local(others(levels))], [0.75, 0.25]))
    levels.set_gradients(local)
    levels.set_parameters(local)
    vectors |= {"written": whole_gradients(model), "set": levels.whole(levels.parameters())}
    found["read"] = levels.gradients()
    return found | {f"{name}.{i}": v.clone() for name, values in vectors.items() for i, v in enumerate(values)}


def others(levels: Levels) -> list[Tensor]:
    """Whole vectors that stand for another task's adapter."""
    generator = torch.Generator().manual_seed(2)
    return [0.1 * torch.randn(size, generator=generator) for size in levels.sizes]


def edited_by(levels: Levels, case: tuple[str, str, str]) -> tuple[Tensor, Tensor]:
    """Value and gradient [levels, width] of one regulariser that draws the parameters to the other adapter."""
    kind, scale, target = case
    config = RegulariserConfig(kind=kind, scale=scale, target=target)
    stored = levels.local(others(levels))
    edited = torch.zeros_like(stored)
    value = edit(config, levels, edited, levels.parameters(), stored, torch.tensor(2.0), 0.5)
    return torch.tensor(value), edited


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pair: Pair) -> Path:
    """The observations of two processes, for all shardings and ranks."""
    path = tmp_path_factory.mktemp("levels")
    pair.run(worker, path)
    return path


def seen(folder: Path, sharding: str, rank: int) -> list[dict[str, Tensor]]:
    return [load_file(folder / f"{sharding}-{rank}-{process}.safetensors") for process in range(WORLD)]


@pytest.fixture(scope="module")
def alone() -> dict[int, Levels]:
    """For each rank the levels of the same model in one process, after a backward pass over all images."""
    models = {rank: make_model(rank) for rank in RANKS}
    for model in models.values():
        backward(model, slice(None))
    return {rank: Place().levels(model) for rank, model in models.items()}


@every_case
def test_sketches_of_all_workers_add_up_to_that_of_one_process(
    folder: Path, sharding: str, rank: int, alone: dict[int, Levels]
) -> None:
    levels = alone[rank]
    senders = [view for view in seen(folder, sharding, rank) if view["part"] >= 0]
    assert [int(view["part"]) for view in senders] == list(range(len(senders)))
    assert {int(view["parts"]) for view in senders} == {len(senders)} == {WORLD if sharding == "fsdp2" else 1}
    total = torch.stack([view["sketch"] for view in senders]).sum(0)
    expected = sketch_of(levels, levels.gradients())
    assert ((total - expected).norm(dim=1) <= 1e-5 * expected.norm(dim=1)).all()
    assert (expected.norm(dim=1) > 0).all()


@every_case
def test_whole_parameters_and_gradients_are_those_of_one_process(
    folder: Path, sharding: str, rank: int, alone: dict[int, Levels]
) -> None:
    levels = alone[rank]
    parameters, gradients = levels.whole(levels.parameters()), levels.whole(levels.gradients())
    for view in seen(folder, sharding, rank):
        for level in range(6):
            assert torch.equal(view[f"parameters.{level}"], parameters[level])
            difference = view[f"gradients.{level}"] - gradients[level]
            assert difference.norm() <= 1e-5 * gradients[level].norm()


@every_case
def test_regularisers_edit_as_in_one_process(folder: Path, sharding: str, rank: int, alone: dict[int, Levels]) -> None:
    levels = alone[rank]
    for number, case in enumerate(REGULARISERS):
        value, edited = edited_by(levels, case)
        for view in seen(folder, sharding, rank):
            torch.testing.assert_close(view[f"value.{number}"], value)
            for level, expected in enumerate(levels.whole(edited)):
                assert expected.norm() > 0
                assert (view[f"edit.{number}.{level}"] - expected).norm() <= 1e-5 * expected.norm(), case


@every_case
def test_merged_adapters_are_those_of_one_process(
    folder: Path, sharding: str, rank: int, alone: dict[int, Levels]
) -> None:
    """A singular value decomposition of the same whole levels, so that even the signs of the factors agree."""
    levels = alone[rank]
    merged = mean_of_products(levels, [levels.parameters(), levels.local(others(levels))], [0.75, 0.25])
    for view in seen(folder, sharding, rank):
        for level, expected in enumerate(levels.whole(merged)):
            torch.testing.assert_close(view[f"merged.{level}"], expected)


@every_case
def test_factors_are_told_by_name_in_every_process(
    folder: Path, sharding: str, rank: int, alone: dict[int, Levels]
) -> None:
    levels = alone[rank]
    for view in seen(folder, sharding, rank):
        for level, slices in enumerate(levels.slices):
            expected = torch.cat([torch.full((part.size,), float("lora_A" in part.name)) for part in slices])
            assert torch.equal(view[f"factor.{level}"], expected)
            assert expected.sum() == rank * 128 * len(slices) / 2


@every_case
def test_workers_cover_every_coordinate(folder: Path, sharding: str, rank: int) -> None:
    views = seen(folder, sharding, rank)
    for level in range(6):
        size = sizes(rank)[level]
        shares = [share[share >= 0] for share in (view["coordinates"][level] for view in views)]
        if sharding == "fsdp2":
            assert torch.cat(shares).sort().values.tolist() == list(range(size))
            assert min(len(share) for share in shares) > 0
        else:
            assert [share.tolist() for share in shares] == [list(range(size))] * WORLD


@every_case
def test_flat_values_follow_the_layout_without_padding(folder: Path, sharding: str, rank: int) -> None:
    for view in seen(folder, sharding, rank):
        places = [torch.arange(first, first + size) for _, first, size in view["layout"].tolist()]
        assert torch.equal(view["flat"], torch.cat(places))
        assert sorted(set(view["layout"][:, 0].tolist())) == list(range(6))
        assert view["layout"][:, 0].tolist() == sorted(view["layout"][:, 0].tolist())


@every_case
def test_values_beyond_a_level_are_zero(folder: Path, sharding: str, rank: int) -> None:
    for view in seen(folder, sharding, rank):
        padding = view["coordinates"] < 0
        assert padding[1:].any(1).all() and not padding[0].any()  # the first level is the widest
        assert view["local"][padding].tolist() == view["read"][padding].tolist() == [0.0] * int(padding.sum())


@every_case
def test_local_and_whole_vectors_and_gradients_go_round(folder: Path, sharding: str, rank: int) -> None:
    for view in seen(folder, sharding, rank):
        assert torch.equal(view["read"], view["local"])
        for level, size in enumerate(sizes(rank)):
            expected = torch.arange(size) + 0.25 * level
            for name in ("whole", "written", "set"):
                assert torch.equal(view[f"{name}.{level}"], expected)


def sizes(rank: int) -> list[int]:
    """Of the levels of the micro ViT, both factors together: one adapter in a block and two in the first."""
    return [rank * (128 + 3 * 128) * (2 if block == 0 else 1) for block in range(6)]


def hand_made() -> tuple[list[tuple[str, nn.Parameter]], Levels]:
    """Two levels of small tensors, listed out of order."""
    values = {"block.1.a": [[1.0, 2.0], [3.0, 4.0]], "block.0.a": [[5.0]], "block.1.b": [[6.0, 7.0]]}
    parameters = [(name, nn.Parameter(torch.tensor(rows))) for name, rows in values.items()]
    return parameters, Levels(parameters, lambda name: int(name.split(".")[1]), lambda values: values)


def test_tensors_of_a_level_stand_one_after_another_before_zeros() -> None:
    _, levels = hand_made()
    assert (len(levels), levels.sizes, levels.width) == (2, [1, 6], 6)
    assert levels.parameters().tolist() == [[5, 0, 0, 0, 0, 0], [1, 2, 3, 4, 6, 7]]
    assert levels.coordinates().tolist() == [[0, -1, -1, -1, -1, -1], [0, 1, 2, 3, 4, 5]]
    assert levels.layout == [(0, 0, 1), (1, 0, 4), (1, 4, 2)]
    assert levels.flat(levels.parameters()).tolist() == [5, 1, 2, 3, 4, 6, 7]


def test_tensors_are_told_by_a_word_in_their_name_and_padding_by_none() -> None:
    _, levels = hand_made()
    assert levels.named(".a").int().tolist() == [[1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0]]
    assert levels.named(".b").int().tolist() == [[0] * 6, [0, 0, 0, 0, 1, 1]]
    assert not levels.named(".c").any()


def test_whole_levels_have_no_padding_and_local_ones_have_it_back() -> None:
    _, levels = hand_made()
    whole = levels.whole(levels.parameters() + 1)
    assert [level.tolist() for level in whole] == [[6], [2, 3, 4, 5, 7, 8]]
    assert levels.local(whole).tolist() == [[6, 0, 0, 0, 0, 0], [2, 3, 4, 5, 7, 8]]


def test_what_is_written_into_padding_is_lost() -> None:
    parameters, levels = hand_made()
    levels.set_parameters(torch.arange(12.0).view(2, 6))
    assert [p.tolist() for _, p in parameters] == [[[6, 7], [8, 9]], [[0]], [[10, 11]]]
    assert levels.parameters().tolist() == [[0, 0, 0, 0, 0, 0], [6, 7, 8, 9, 10, 11]]


def test_parameters_and_gradients_are_copies() -> None:
    parameters, levels = hand_made()
    for _, parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    levels.parameters().add_(1)
    levels.gradients().add_(1)
    assert levels.parameters().tolist() == [[5, 0, 0, 0, 0, 0], [1, 2, 3, 4, 6, 7]]
    assert levels.gradients().tolist() == [[1, 0, 0, 0, 0, 0], [1] * 6]


def test_a_single_level_without_padding_is_a_copy_too() -> None:
    parameter = nn.Parameter(torch.ones(2, 2))
    levels = Levels([("a", parameter)], lambda _: 0, lambda values: values)
    levels.parameters().add_(1)
    assert parameter.tolist() == [[1, 1], [1, 1]]


def test_a_missing_gradient_reads_as_zero_and_is_made_when_written() -> None:
    parameters, levels = hand_made()
    parameters[0][1].grad = torch.tensor([[1.0, -1.0], [2.0, -2.0]])
    assert levels.gradients().tolist() == [[0] * 6, [1, -1, 2, -2, 0, 0]]
    levels.set_gradients(torch.arange(12.0).view(2, 6))
    gradients = [p.grad.tolist() for _, p in parameters if p.grad is not None]
    assert gradients == [[[6, 7], [8, 9]], [[0]], [[10, 11]]]


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


def test_a_part_of_the_levels_is_chosen_by_name() -> None:
    """A level without a chosen tensor is left out; the others keep their order and their own coordinates."""
    named = {"0.a": torch.ones(2), "1.b": torch.full((3,), 2.0), "2.a": torch.full((1,), 3.0), "2.b": torch.ones(2)}
    levels = Levels(
        [(n, nn.Parameter(values)) for n, values in named.items()], lambda n: int(n.split(".")[0]), lambda t: t
    )
    part = levels.only(lambda name: name.endswith("a"))
    assert part.parameters().tolist() == [[1.0, 1.0], [3.0, 0.0]] and part.sizes == [2, 1]
    part.set_parameters(torch.zeros(2, 2))
    assert levels.parameters().tolist() == [[0.0, 0.0, 0.0], [2.0, 2.0, 2.0], [0.0, 1.0, 1.0]]


def test_whole_tensors_by_name_go_round() -> None:
    named = [("0.a", nn.Parameter(torch.randn(2, 3))), ("0.b", nn.Parameter(torch.randn(4)))]
    levels = Levels(named, lambda name: 0, lambda values: values)
    wholes = levels.named_wholes(levels.parameters())
    assert all(torch.equal(wholes[name], parameter) for name, parameter in named)
    assert torch.equal(levels.local_of(wholes), levels.parameters())
