"""SD-LoRA on a tiny transformer: what is frozen, what learns, and what moves between tasks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torch.autograd import Function

from benchmarks.models.heads import GrowingHead
from methods.sdlora import SDLoRA, SDLoRAConfig
from methods.sdlora.gram import squares
from methods.stacked.product import TokenSpace, WeightSpace
from tests.support.near import near
from tests.support.sdlora_model import (
    BLOCKS,
    KINDS,
    OPTIMISERS,
    PROJECTIONS,
    RANK,
    REDUCED,
    STEPS,
    TASKS,
    WIDTH,
    Run,
    distance,
)

NORMS = ("joint", "product_fro", "factor_fro")
every_kind = pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS.keys())
every_norm = pytest.mark.parametrize("norm", NORMS)


def frozen(run: Run) -> dict[str, Tensor]:
    return {name: p.clone() for name, p in run.model.named_parameters() if not p.requires_grad}


# --- what learns ---


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("kind", ["full", "factor_fro", "rr", "kd of each projection"])
def test_stored_directions_and_the_backbone_stay_to_the_bit(kind: str, optimiser: str) -> None:
    run = Run(optimiser, **KINDS[kind])
    before, stored = frozen(run), run.stored()
    assert len(before) == 6 * BLOCKS
    for task in range(TASKS):
        run.learn(range(task, task + 1))
        now = run.stored()
        assert all(torch.equal(value, before[name]) for name, value in frozen(run).items())
        for name, old in stored.items():
            dim = 1 if name.endswith("stored_A") else 2
            assert torch.equal(now[name].narrow(dim, 0, old.shape[dim]), old)
        stored = now
    assert all(value.abs().sum() > 0 for value in stored.values())


@pytest.mark.parametrize("task", range(TASKS))
def test_only_the_pair_under_way_and_the_magnitudes_so_far_get_gradients(task: int) -> None:
    run = Run().learn(range(task))
    run.begin(task)
    run.steps(stop=1)  # the pair's own B is zero before
    run.differentiate(1)
    found = {name: p.grad for name, p in run.model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    factors = {f"blocks.{block}.qkv.lora_{factor}" for block in range(BLOCKS) for factor in "AB"}
    assert set(found) == factors | {"magnitudes", f"head.{task}.weight", f"head.{task}.bias"}
    assert [bool(value) for value in found["magnitudes"]] == [number <= task for number in range(TASKS)]
    adapters = sum(int((value != 0).sum()) for name, value in found.items() if not name.startswith("head."))
    assert adapters == PROJECTIONS * 2 * WIDTH * RANK + task + 1


@pytest.mark.parametrize("task", [0, 9])
def test_a_vit_base_learns_as_many_numbers_as_the_paper_counts(task: int) -> None:
    """24 projections of 768 with rank 10, a magnitude for each task so far, rows and biases of 20 classes."""
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", num_classes=0).requires_grad_(False)
        method = SDLoRA(SDLoRAConfig())
        method.adapt(model, ["qkv"], [f"blocks.{number}" for number in range(12)], 10)
        head = GrowingHead(768, [20] * 10, cosine=False)
    shape = torch.empty(2, 10, 768, device="meta"), torch.empty(2, 768, 10, device="meta")
    for _ in range(task):
        for layer in method.layers.values():
            layer.stored_A = torch.cat([layer.stored_A, shape[0]], 1)
            layer.stored_B = torch.cat([layer.stored_B, shape[1]], 2)
        method.directions.ranks.append(10)
    pair = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    assert pair == 368_640 and sum(p.numel() for p in head.part_parameters(task)) == 769 * 20
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 368_640 + 10
    assert method.pair_parameters() == (task + 1) * 368_640
    method.directions.offsets = torch.zeros(24, task)
    assert method.stored_parameters() == (task + 1) * 368_640 + task + 1


# --- between tasks ---


@pytest.mark.parametrize("task", range(TASKS))
@pytest.mark.parametrize("form", [TokenSpace, WeightSpace])
def test_a_fresh_pair_changes_no_logit(form: type[Function], task: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In either form of the product, but for the rounding of sums with more zeros in them."""
    monkeypatch.setattr("methods.stacked.layer.cheaper_form", lambda *sizes: form)
    run = Run().learn(range(task))
    run.begin(task)
    with_pair = run.logits()
    run.method.rank = 0
    run.method.arrange()
    assert near(with_pair, run.logits(), 1000)


@every_norm
def test_only_a_joint_norm_hands_over_what_was_learned(norm: str) -> None:
    run = Run(norm=norm)
    run.begin(0)
    for task in range(1, TASKS):
        run.steps()
        learned = run.updates()
        run.method.end_task()
        assert distance(run.updates(), learned) < 1e-6, "what is evaluated is what was trained"
        run.begin(task)
        moved = distance(run.updates(), learned)
        assert moved < 1e-6 if norm == "joint" else moved > 0.01


def test_magnitudes_that_start_anew_change_the_model() -> None:
    run = Run(alpha_at_task_start="reset", magnitude=0.8).learn(range(2))
    learned = run.updates()
    assert run.magnitudes()[0] != 0.8
    run.begin(2)
    assert torch.equal(run.magnitudes()[:3], torch.full((3,), 0.8))
    assert distance(run.updates(), learned) > 0.01


@every_norm
def test_lengths_of_frozen_directions(norm: str) -> None:
    run = Run(norm=norm).learn(range(TASKS))
    run.method.directions.settle()
    for count, rank in enumerate(run.method.directions.ranks):
        rows = slice(count * rank, (count + 1) * rank)
        found = []
        for number, layer in enumerate(run.method.layers.values()):
            gains = run.method.directions.gains(number)[:, rows]
            found.append(squares(layer.stored_A[:, rows], layer.stored_B[..., rows] * gains[:, None]).sqrt())
        lengths = torch.cat(found)
        assert len(lengths) == PROJECTIONS
        assert torch.allclose(run.method.directions.gram[:, count, count], lengths.square(), rtol=1e-5)
        if norm == "joint":
            assert float(lengths.square().sum()) == pytest.approx(1, abs=1e-5)
        elif norm == "product_fro":
            assert torch.allclose(lengths, torch.ones_like(lengths), atol=1e-5)
        else:
            assert bool((lengths < 1).all()) and bool((lengths > 1 / RANK).all())


# --- ranks ---

PRINTED = SDLoRAConfig(variant="rr")
LATER = SDLoRAConfig.model_validate({"variant": "rr", "reduction": {"counting": "released"}})


def test_ranks_fall_with_the_fourth_and_the_eighth_task_or_one_later() -> None:
    assert [PRINTED.rank_of(task) for task in range(10)] == [10] * 3 + [8] * 4 + [6] * 3
    assert [LATER.rank_of(task) for task in range(10)] == [10] * 4 + [8] * 4 + [6] * 2
    one = SDLoRAConfig(variant="one_direction")
    assert [one.rank_of(task) for task in range(3)] == [10, 0, 0]


@pytest.mark.parametrize(
    ("tasks", "full", "paper", "released"), [(5, 50, 46, 48), (10, 100, 80, 84), (20, 200, 140, 144)]
)
def test_the_sums_of_ranks(tasks: int, full: int, paper: int, released: int) -> None:
    """Of one rank there are 24 projections with 2 * 768 numbers each: 3.686, 2.949 and 3.097 million for ten tasks."""
    found = [sum(config.rank_of(task) for task in range(tasks)) for config in (SDLoRAConfig(), PRINTED, LATER)]
    assert found == [full, paper, released]
    assert [36_864 * count for count in (100, 80, 84)] == [3_686_400, 2_949_120, 3_096_576]


def test_reduced_ranks_are_what_layers_hold() -> None:
    run, ranks = Run(**REDUCED), [4, 3, 3, 1, 1]
    for task in range(TASKS):
        run.begin(task)
        assert {layer.active for layer in run.method.layers.values()} == {ranks[task]}
        assert run.method.pair_parameters() == PROJECTIONS * 2 * WIDTH * sum(ranks[: task + 1])
        run.steps()
        run.method.end_task()
        assert run.method.directions.ranks == ranks[: task + 1]
        assert {layer.stored_A.shape[1] for layer in run.method.layers.values()} == {sum(ranks[: task + 1])}


def test_one_direction_stays_and_its_magnitude_moves() -> None:
    run = Run("adamw", variant="one_direction").learn(range(1))
    stored, seen = run.stored(), {float(run.magnitudes()[0])}
    for task in range(1, TASKS):
        run.begin(task)
        before = run.magnitudes()[0]
        run.steps()
        seen.add(float(run.magnitudes()[0] - before))
        run.method.end_task()
        assert all(torch.equal(value, stored[name]) for name, value in run.stored().items())
    assert len(seen) == TASKS and 0.0 not in seen
    assert run.method.report()["ranks"] == [RANK]


# --- folded ---


@every_kind
def test_folded_logits_are_those_of_the_stack_after_every_task(settings: dict[str, Any]) -> None:
    run = Run(**settings)
    bare, before = run.logits(), frozen(run)
    for task in range(TASKS):
        run.begin(task)
        run.steps()
        for _ in both(run):
            unfolded = run.logits()
            with run.method.inference():
                assert torch.allclose(run.logits(), unfolded, rtol=0, atol=1e-4)
                assert not all(torch.equal(value, before[name]) for name, value in frozen(run).items())
            assert torch.equal(run.logits(), unfolded)
            assert all(torch.equal(value, before[name]) for name, value in frozen(run).items())
    assert float((run.logits() - bare).abs().max()) > 0.1


def both(run: Run) -> Iterator[None]:
    """Before and after the end of a task."""
    yield
    run.method.end_task()
    yield


def test_a_forward_pass_draws_no_random_number() -> None:
    run = Run().learn(range(2))
    run.begin(2)
    run.model.train()
    before = torch.get_rng_state()
    assert torch.equal(run.logits(), run.logits())
    with run.method.inference():
        run.logits()
    run.method.begin_task(2, STEPS, 1)
    assert torch.equal(torch.get_rng_state(), before)
