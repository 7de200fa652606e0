"""Backbones that write answers on two workers: what they learn and write is what one process does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from benchmarks.dataset import Batch
from benchmarks.models.writer import AnswerWriter
from benchmarks.texts.tokens import tokenise_answers, tokenise_texts
from orchestrator.run.sharding import Place, adapters_and_head
from tests.support.models import ANSWER_LENGTH, adapted, free_task, labelled_task, writer
from tests.support.pair import WORLD, Pair
from tests.support.tiny import changed

KINDS = ("llama", "t5")
# FSDP2 gathers small models at once; ``blocks`` makes it gather each block by itself, as it does with large ones.
CASES = {
    "fsdp2": {"sharding": "fsdp2"},
    "fsdp2, recomputing": {"sharding": "fsdp2", "recompute": True, "blocks": True},
    "fsdp2, bf16": {"sharding": "fsdp2", "half": True, "blocks": True},
    "fsdp2, bf16 weights": {"sharding": "fsdp2", "half": True, "blocks": True, "stored": True},
    "ddp": {"sharding": "ddp"},
}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_exact_case = pytest.mark.parametrize("case", [case for case in CASES if "bf16" not in case])
# The first worker has every other of these; what it writes is longer.
PROMPTS = ["the cat sees a big red bird", "bird eats red yes likes small sports", "the dog likes no fish"]
PROMPTS += ["bird green", "a small blue world eats", "green dog small small cat"]
ANSWERS = ["good", "", "a green fish sees the dog", "no sports", "the bird eats", "red red"]
OPTIONS = ["yes", "no good bad world", "big cat"]


def make_model(folder: Path, recompute: bool = False) -> AnswerWriter:
    model = adapted(writer(folder), rank=3)
    assert isinstance(model, AnswerWriter)
    if recompute:
        model.save_memory()
    return model


def batch_of(model: AnswerWriter, share: slice) -> Batch:
    inputs = tokenise_texts(model.tokenizer, PROMPTS, 32, keep_end=True)[share]
    answers = tokenise_answers(model.tokenizer, ANSWERS, ANSWER_LENGTH)[share]
    return Batch(inputs, torch.arange(len(PROMPTS))[share] % len(OPTIONS), answers, tuple(ANSWERS[share]))


def observed(model: AnswerWriter, place: Place, half: bool = False) -> dict[str, Tensor]:
    """Losses and scores of this worker's rows, whole gradients, and the tensors of a checkpoint."""
    batch = batch_of(model, slice(place.rank, None, place.world))
    spread = place.spread(model, half)
    found = {}
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        found["loss"] = spread.train()(batch, free_task())
        found["loss"].mean().backward()
    found |= {f"gradient.{name}": whole(p.grad) for name, p in model.adapters()}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        model.eval()
        found["free"] = model.scores(batch, free_task("edit_similarity"), [range(0)])
        found["labelled"] = model.scores(batch, labelled_task(*OPTIONS), [range(3)])
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        found["loss after scores"] = spread.train()(batch, free_task())
    found |= {f"state.{name}": value for name, value in adapters_and_head(model).items()}
    return {name: value.detach().clone().contiguous() for name, value in found.items()}


def whole(gradient: Tensor | None) -> Tensor:
    assert gradient is not None
    return gradient.full_tensor() if isinstance(gradient, DTensor) else gradient


def worker(process: int, folder: Path, models: dict[str, Path]) -> None:
    for kind in KINDS:
        for case, settings in CASES.items():
            model = make_model(models[kind], bool(settings.get("recompute")))
            if settings.get("stored"):
                model.store_frozen(torch.bfloat16)
            by_blocks_from = 0 if settings.get("blocks") else 2**30
            place = Place(process, WORLD, str(settings["sharding"]), by_blocks_from=by_blocks_from)
            found = observed(model, place, bool(settings.get("half")))
            save_file(found, folder / f"{kind}-{case}-{process}.safetensors")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_models: dict[str, Path]) -> dict[str, Path]:
    """Models without dropout, for which workers would draw other numbers than one process."""
    path = tmp_path_factory.mktemp("models")
    return {kind: changed(tiny_models[kind], path / kind, dropout_rate=0.0) for kind in KINDS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pair: Pair, models: dict[str, Path]) -> Path:
    """What two processes saw."""
    path = tmp_path_factory.mktemp("writers")
    pair.run(worker, path, models)
    return path


@pytest.fixture(scope="module")
def alone(models: dict[str, Path]) -> dict[str, dict[str, Tensor]]:
    """What one process sees."""
    return {kind: observed(make_model(models[kind]), Place()) for kind in KINDS}


def seen(folder: Path, kind: str, case: str) -> list[dict[str, Tensor]]:
    return [load_file(folder / f"{kind}-{case}-{process}.safetensors") for process in range(WORLD)]


def rows(views: list[dict[str, Tensor]], name: str) -> Tensor:
    """The rows of all workers in the order of one process."""
    return torch.stack([view[name] for view in views], 1).flatten(0, 1)


@every_kind
@every_exact_case
def test_workers_learn_what_one_process_learns(
    folder: Path, alone: dict[str, dict[str, Tensor]], kind: str, case: str
) -> None:
    views = seen(folder, kind, case)
    for name in ("loss", "loss after scores"):
        assert torch.allclose(rows(views, name), alone[kind]["loss"], atol=1e-5)
    gradients = {name: value for name, value in alone[kind].items() if name.startswith("gradient.")}
    assert len(gradients) == {"llama": 3, "t5": 6}[kind] * 4, "query and value of each attention, two factors"
    for name, expected in gradients.items():
        assert expected.norm() > 0
        for view in views:
            assert (view[name] - expected).norm() <= 1e-4 * expected.norm(), name


@every_kind
@every_exact_case
def test_workers_score_what_one_process_scores(
    folder: Path, alone: dict[str, dict[str, Tensor]], kind: str, case: str
) -> None:
    views = seen(folder, kind, case)
    for name in ("free", "labelled"):
        assert torch.allclose(rows(views, name), alone[kind][name])
    assert len(set(alone[kind]["free"].flatten().tolist())) > 2
    assert 0 < alone[kind]["labelled"].sum() < len(PROMPTS)


@every_kind
@torch.no_grad()
def test_the_longest_answers_of_the_workers_differ(models: dict[str, Path], kind: str) -> None:
    """Else the test above would not show that a worker waits for the other."""
    model = make_model(models[kind])
    answers = [model.written(batch_of(model, slice(rank, None, WORLD)).inputs.long()) for rank in range(WORLD)]
    assert len({max(len(answer.split()) for answer in own) for own in answers}) == WORLD


@every_kind
@every_exact_case
def test_the_checkpoint_holds_the_whole_adapters_on_the_first_worker(
    folder: Path, alone: dict[str, dict[str, Tensor]], kind: str, case: str
) -> None:
    first, second = (
        {name: value for name, value in view.items() if name.startswith("state.")} for view in seen(folder, kind, case)
    )
    expected = {name: value for name, value in alone[kind].items() if name.startswith("state.")}
    assert first.keys() == expected.keys()
    assert {name.removeprefix("state.") for name in expected} == {
        name.removeprefix("gradient.") for name in alone[kind] if name.startswith("gradient.")
    }
    assert all(torch.equal(first[name], value) for name, value in expected.items())
    assert case.startswith("ddp") or not second


@every_kind
@pytest.mark.parametrize("case", ["fsdp2, bf16", "fsdp2, bf16 weights"])
def test_shards_that_compute_in_bf16_keep_their_gradients_in_full_precision(
    folder: Path, alone: dict[str, dict[str, Tensor]], kind: str, case: str
) -> None:
    views = seen(folder, kind, case)
    assert abs(rows(views, "loss").mean() / alone[kind]["loss"].mean() - 1) <= 2e-2
    gradients = {name: value for name, value in alone[kind].items() if name.startswith("gradient.")}
    found = {name: views[0][name] for name in gradients}
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert 0.9 < torch.cosine_similarity(flat(found), flat(gradients), dim=0) < 1 - 1e-6


def flat(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients.values()])
