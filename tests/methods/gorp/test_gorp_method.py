"""GORP on a tiny transformer: what stays frozen, what does not move, and that it goes on from its state."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from methods.gorp import GORP
from tests.support.gorp_model import RANK, TASKS, Run, leaks, same
from tests.support.near import near
from tests.support.sdlora_model import BLOCKS, WIDTH

EVERYTHING = {"energy": 1.0, "cap": 1.0}
every_rule = pytest.mark.parametrize("rule", ["adam", "sgd"])


# --- pairs ---


def test_a_fused_layer_has_a_start_for_query_and_value_and_one_space() -> None:
    run = Run().learn(range(1))
    assert run.weights()["blocks.0.qkv.lora_A"].shape == (2 * RANK, WIDTH)
    assert run.spaces()["blocks.0.qkv.lora_A"].shape[0] == WIDTH, "both projections read the same input"


@pytest.mark.parametrize("task", range(TASKS))
def test_a_fresh_pair_changes_nothing(task: int) -> None:
    run = Run().learn(range(task))
    before = run.logits()
    run.begin(task)
    assert near(run.logits(), before, 10_000), "zeros in a product may change its rounding"
    run.steps()
    assert not torch.allclose(run.logits(), before, atol=1e-3)


def test_frozen_pairs_and_the_backbone_stay_to_the_bit() -> None:
    run = Run().learn(range(1))
    frozen = {name: p.clone() for name, p in run.model.named_parameters() if not p.requires_grad}
    for task in (1, 2):
        stored = {name: (layer.stored_A, layer.stored_B) for name, layer in run.method.layers.items()}
        run.learn(range(task, task + 1))
        for name, layer in run.method.layers.items():
            for dim, now, old in zip((1, 2), (layer.stored_A, layer.stored_B), stored[name], strict=True):
                assert now.shape[dim] == (task + 1) * RANK
                assert torch.equal(now.narrow(dim, 0, task * RANK), old) and old.abs().sum() > 0
    assert all(torch.equal(run.model.get_parameter(name), value) for name, value in frozen.items())


def test_stored_pairs_are_the_sum_of_separate_ones_and_the_folded_weight() -> None:
    run = Run()
    sums = {name: layer.base.weight.detach().clone() for name, layer in run.method.layers.items()}
    for task in range(TASKS):
        run.begin(task)
        run.steps()
        for name, layer in run.method.layers.items():
            for rows, a, b in zip(layer.sections, *layer.pair(layer.lora_A, layer.lora_B), strict=True):
                sums[name][rows] += ((32 / RANK) * b @ a).detach()
        run.end()
    together = run.logits()
    with run.method.inference():
        assert torch.allclose(run.logits(), together, rtol=0, atol=1e-5)
        for name, layer in run.method.layers.items():
            assert torch.allclose(layer.base.weight, sums[name], rtol=0, atol=1e-5)
    assert torch.equal(run.logits(), together)
    for name, layer in run.method.layers.items():
        layer.base.weight.data = sums[name]
        layer.restore(layer.stored_A[:, :0], layer.stored_B[..., :0])
    assert torch.allclose(run.logits(), together, rtol=0, atol=1e-5)


# --- protection ---


@every_rule
def test_old_directions_do_not_move_in_later_tasks(rule: str) -> None:
    run = Run(rule).learn(range(1))
    for task in (1, 2):
        spaces, moved = run.moved(task)
        assert set(spaces) == {f"blocks.{b}.{name}" for b in range(BLOCKS) for name in ("proj.weight", "qkv.lora_A")}
        assert max(leaks(spaces, moved)) <= 1e-6


@pytest.mark.parametrize(("rule", "least", "most"), [("adam", 1e-3, 1.0), ("sgd", 0.0, 1e-6)])
def test_protected_gradients_leak_through_adam_and_not_through_descent(rule: str, least: float, most: float) -> None:
    run = Run(rule, space={"protect": "gradient"}).learn(range(1))
    assert all(least <= leak <= most for leak in leaks(*run.moved(1)))


def test_without_protection_old_directions_move() -> None:
    """A share that chance alone decides; beside a protected run's, which is zero but for rounding, it is large."""
    free, protected = (Run(space={"protect": protect}).learn(range(1)) for protect in ("none", "update"))
    assert min(leaks(*free.moved(1))) > 1000 * max(leaks(*protected.moved(1)))


def test_a_that_is_protected_on_all_its_rows_gets_no_gradient_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """The released side: a pair's 8 rows are full after one task, and from then on only B learns."""
    with caplog.at_level(logging.WARNING):
        run = Run(target="proj", full_rank=[], rank=8, space=EVERYTHING | {"lora": "output"}).learn(range(1))
    assert "spans all 8 dimensions: its matrix does not move any more" in caplog.text
    spaces, moved = run.moved(1)
    assert spaces["blocks.0.proj.lora_A"].shape == (8, 8)
    assert not moved["blocks.0.proj.lora_A"].any() and moved["blocks.0.proj.lora_B"].any()


@every_rule
def test_the_first_task_is_bit_equal_to_one_without_protection(rule: str) -> None:
    runs = [Run(rule, space={"protect": protect}).learn(range(1)) for protect in ("update", "gradient", "none")]
    assert same(runs[0].weights(), runs[1].weights()) and same(runs[0].weights(), runs[2].weights())
    for run in runs:
        run.learn(range(1, 2))
    assert not same(runs[0].weights(), runs[2].weights())


# --- whole weights between tasks ---


@pytest.mark.parametrize("keep", [True, False])
def test_whole_weights_go_on_or_start_each_task_as_they_were_pre_trained(keep: bool) -> None:
    run = Run(dtype=torch.float32, keep_full_rank=keep)
    learned = start = run.model.get_parameter("blocks.0.proj.weight").detach().clone()
    for task in range(2):
        run.begin(task)
        weight = run.model.get_parameter("blocks.0.proj.weight")
        assert torch.equal(weight, learned if keep else start)
        run.steps()
        run.end()
        learned = weight.detach().clone()
        assert not torch.equal(learned, start)


# --- state ---


OTHERS = {"keep_full_rank": False, "space": {"summary": "first"}}
CASES = [("adam", {}, cut) for cut in ((0, 2), (1, 0), (1, 2), (1, 3), (2, 4))]
CASES += [("sgd", OTHERS, cut) for cut in ((1, 0), (1, 2))]


@pytest.mark.parametrize(("rule", "settings", "cut"), CASES, ids=str)
def test_a_restored_run_goes_on_to_the_bit(rule: str, settings: dict[str, Any], cut: tuple[int, int]) -> None:
    """Singular vectors are renewed every three steps: within a period, and just before and at its end."""
    runs = [Run(rule, torch.float32, **settings) for _ in range(2)]
    whole, restored = runs
    whole.learn(range(cut[0]))
    if cut[1]:
        whole.begin(cut[0])
        whole.steps(stop=cut[1])
        restored.begin(cut[0])
    state = [load(save(whole.method.state_dict())), {n: p.detach().clone() for n, p in whole.model.named_parameters()}]
    restored.model.load_state_dict(state[1])
    restored.method.load_state_dict(state[0])
    for run in runs:
        if not cut[1]:
            run.begin(cut[0])
        run.steps(start=cut[1], stop=8)
        run.end()
        run.learn(range(cut[0] + 1, TASKS))
    assert same(whole.weights(), restored.weights()) and same(whole.method.state_dict(), restored.method.state_dict())
    assert torch.equal(whole.logits(), restored.logits())


@pytest.mark.parametrize("lost", ["blocks.1.proj.weight", "blocks.0.qkv.lora_A"])
def test_a_state_without_the_space_of_an_old_task_is_refused(lost: str) -> None:
    first, later = Run(), Run().learn(range(1))
    Run().method.load_state_dict(first.method.state_dict())  # before any task there is none to miss
    state = later.method.state_dict()
    del state[f"finished.0.space.{lost}"]
    with pytest.raises(ValueError, match=f"^no protected space for {lost}, though earlier tasks were learned$"):
        Run().method.load_state_dict(state)


def test_a_gradient_that_is_not_finite_is_skipped_and_counted() -> None:
    run = Run().learn(range(1))
    run.begin(1)
    before = run.weights()
    handle = run.model.get_parameter("blocks.1.proj.weight").register_hook(lambda gradient: gradient * torch.nan)
    run.steps(stop=2)
    still = [name for name, value in run.weights().items() if torch.equal(value, before[name])]
    assert isinstance(run.optimiser, GORP)
    assert (still, run.optimiser.skipped) == (["blocks.1.proj.weight"], 2)
    handle.remove()
    run.steps(start=2)
    assert run.optimiser.skipped == 2 and not torch.equal(
        run.weights()["blocks.1.proj.weight"], before["blocks.1.proj.weight"]
    )
    assert all(value.isfinite().all() for value in run.weights().values())
