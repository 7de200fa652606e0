"""TreeLoRA on two tiny blocks: what each setting does to values and gradients."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch

from methods.sparsity import sparsify
from tests.support.blocks import PRESETS, Blocks, config_of, learned, of_rank_2, products, same

every_preset = pytest.mark.parametrize("preset", PRESETS)
POINTS = {"every": 2, "rounds": 4, "staleness": 0}
FRESH: dict[str, Any] = {"observe": "fresh_grad", **POINTS}


# --- beside sequential LoRA ---


@every_preset
def test_the_first_task_is_sequential_lora_to_the_bit(preset: str) -> None:
    tree, plain = learned(Blocks(config_of(preset)), 2), learned(Blocks(), 2)
    assert same(tree.edited[:12], plain.edited[:12]) and same(tree.ends[:1], plain.ends[:1])
    assert not torch.equal(tree.ends[1], plain.ends[1])


@pytest.mark.parametrize("regulariser", [{"strength": 0}, {"kind": "none"}], ids=str)
@every_preset
def test_without_a_regulariser_all_tasks_are_sequential_lora_to_the_bit(preset: str, regulariser: Any) -> None:
    tree, plain = learned(Blocks(config_of(preset, regulariser=regulariser)), 3), learned(Blocks(), 3)
    assert same(tree.edited, plain.edited) and same(tree.ends, plain.ends)


def test_the_gradient_is_sparse_before_the_regulariser_is_added() -> None:
    regulariser = {"kind": "l1", "scale": "raw", "strength": 0.1}
    blocks = learned(Blocks(config_of(sparsity=0.5, regulariser=regulariser, search=POINTS)), 1)
    blocks.learn(1, stop=7)
    kept = sparsify(blocks.levels, blocks.gradient(1, 7), 0.5)
    assert 0.5 <= (kept != 0).float().mean() < 0.6
    drawn = (blocks.tree.signature.carrier() - blocks.tree.memory.target([0, 0])).sign()
    blocks.step(1, 7)
    torch.testing.assert_close(blocks.edited[-1], kept + 0.1 * drawn)


# --- adapters ---


def test_a_shared_adapter_goes_on_where_the_last_task_ended() -> None:
    blocks = learned(Blocks(config_of()), 1)
    blocks.method.begin_task(1, 12, 2)
    assert torch.equal(blocks.levels.parameters(), blocks.ends[0])


def test_a_fresh_adapter_starts_every_task_at_the_seeded_start() -> None:
    blocks = Blocks(config_of(adapter="per_task_fresh"))
    first = blocks.levels.parameters()
    for task in range(3):
        blocks.learn(task, stop=0)
        assert torch.equal(blocks.levels.parameters(), first)
        blocks.learn(task)
        assert not torch.equal(blocks.ends[task], first)


@pytest.mark.parametrize("staleness", [0, 1])
def test_an_adapter_from_the_nearest_jumps_once_to_the_end_of_the_first_choice(staleness: int) -> None:
    """The third task is the first one again."""
    search = POINTS | {"staleness": staleness}
    blocks = learned(Blocks(config_of(adapter="per_task_from_nearest", search=search)), 2)
    first = Blocks().levels.parameters()
    blocks.method.begin_task(2, 12, 2)
    for step in range(12):
        before = first if step == 0 else blocks.levels.parameters()
        blocks.step(2, step)
        jumps = step == 2 + 2 * staleness
        assert torch.equal(blocks.levels.parameters(), blocks.ends[0] if jumps else before)
        if jumps:
            assert blocks.tree.chosen == [0, 0]
            assert torch.equal(blocks.tree.signature.start, blocks.ends[0]), "the way begins there"
            assert not blocks.tree.signature.carrier().any()
        blocks.descend()
    blocks.method.end_task()
    assert torch.equal(blocks.tree.memory.adapters[0], blocks.ends[0]), "the stored adapter is a copy"


# --- inference ---


def test_the_last_adapter_is_evaluated_by_default() -> None:
    blocks = learned(Blocks(config_of()), 2)
    assert torch.equal(blocks.tree.inference_adapter(), blocks.ends[1])


@pytest.mark.parametrize("inference", ["mean", "tree"])
def test_a_mean_of_adapters_is_evaluated(inference: str) -> None:
    """The best of its rank to the mean of products; over the tree tasks 0 and 2, alike, count together like task 1."""
    blocks = Blocks(config_of(inference=inference, sketch={"kind": "exact"}))
    assert torch.equal(blocks.tree.inference_adapter(), blocks.levels.parameters())
    learned(blocks, 3)
    shares = [1 / 3] * 3 if inference == "mean" else [0.25, 0.5, 0.25]
    assert blocks.service.weights(2) == [0.25, 0.5, 0.25]
    expected = torch.stack([share * products(end) for share, end in zip(shares, blocks.ends, strict=True)]).sum(0)
    with blocks.method.inference():
        assert torch.allclose(products(blocks.levels.parameters()), of_rank_2(expected), atol=1e-5)
    assert torch.equal(blocks.levels.parameters(), blocks.ends[2])


def test_merged_tasks_count_one_by_one_in_the_mean() -> None:
    blocks = learned(Blocks(config_of(inference="mean", tree={"budget": 2}, sketch={"kind": "exact"})), 3)
    assert blocks.service.stored.tasks == [[0, 2], [1]] and blocks.tree.memory.counts == [2, 1]
    one, other = map(products, blocks.tree.memory.adapters)
    assert torch.allclose(one, of_rank_2((products(blocks.ends[0]) + products(blocks.ends[2])) / 2), atol=1e-5)
    expected = of_rank_2((2 * one + other) / 3)
    assert torch.allclose(products(blocks.tree.inference_adapter()), expected, atol=1e-5)


# --- more passes over the batch ---


@pytest.mark.parametrize("staleness", [0, 1])
def test_a_fresh_gradient_is_asked_for_at_the_entry_whose_loss_it_is(staleness: int) -> None:
    """Once a search point after the first; the service's means are the distances of exactly these gradients."""
    config = config_of(search=FRESH | {"staleness": staleness}, regulariser={"kind": "none"}, sketch={"kind": "exact"})
    blocks = learned(Blocks(config), 3)
    assert {task for task, _, _ in blocks.asked} == {1, 2}
    blocks.asked.clear()
    blocks.method.begin_task(3, 12, 2)
    losses: dict[int, list[float]] = {0: [], 1: [], 2: []}
    metric = blocks.service.metric
    for step in range(12):
        before, plain = blocks.levels.parameters(), blocks.gradient(3, step)
        blocks.step(3, step)
        assert torch.equal(blocks.levels.parameters(), before) and torch.equal(blocks.edited[-1], plain)
        if blocks.asked and blocks.asked[-1][1] == step:
            entry = blocks.service.choose(3, step - 2)[0]
            assert torch.equal(blocks.asked[-1][2], blocks.ends[entry])
            blocks.levels.set_parameters(blocks.ends[entry])
            pair = [metric.directions(g.numpy()) for g in (plain, blocks.gradient(3, step))]
            losses[entry].append(float(metric.distance(*pair)))
            blocks.levels.set_parameters(before)
        blocks.descend()
    assert [step for _, step, _ in blocks.asked] == [4, 6, 8, 10]
    for entry in blocks.service.report()["search"]["entries"]:
        seen = losses[entry["tasks"][0]]
        assert entry["pulls"] == len(seen) > 0
        assert entry["mean"] == pytest.approx(numpy.mean(seen), abs=1e-6)


def test_equation_3_asks_four_times_a_step_and_leaves_the_values() -> None:
    config = config_of(search=POINTS, regulariser={"kind": "l1_hvp", "scale": "raw", "strength": 0.1})
    blocks = learned(Blocks(config), 1)
    assert not blocks.asked
    blocks.method.begin_task(1, 12, 2)
    for step in range(12):
        before = blocks.levels.parameters()
        blocks.asked.clear()
        blocks.step(1, step)
        assert torch.equal(blocks.levels.parameters(), before)
        assert len(blocks.asked) == (4 if step >= 2 else 0), "there is no answer before step 2"
        if blocks.asked:
            now, stored, ahead, behind = (values for _, _, values in blocks.asked)
            assert torch.equal(now, before) and torch.equal(stored, blocks.ends[0])
            assert torch.allclose((ahead + behind) / 2, before, atol=1e-6) and not torch.equal(ahead, behind)
            assert not torch.equal(blocks.edited[-1], blocks.gradient(1, step))
        blocks.descend()


# --- budget ---


@pytest.mark.parametrize("budget", [2, 3])
def test_what_is_merged_in_the_tree_is_merged_in_the_memory(budget: int) -> None:
    """With mean displacements as signatures and exact sketches, both hold the same vectors in the same order."""
    signature, sketch = {"kind": "displacement"}, {"kind": "exact"}
    config = config_of(signature=signature, sketch=sketch, tree={"budget": budget}, inference="mean")
    blocks = Blocks(config, places=(0, 1, 2, 1, 0, 3, 2))
    for task in range(7):
        blocks.learn(task)
        memory, stored = blocks.tree.memory, blocks.service.stored
        assert len(memory) == len(memory.adapters) == min(task + 1, budget)
        assert memory.counts == [len(tasks) for tasks in stored.tasks]
        for target, own in zip(memory.targets, stored.sketches, strict=True):
            assert torch.allclose(target, torch.from_numpy(own), atol=1e-6)
    assert max(memory.counts) > 1 and blocks.service.merged(6)


# --- how long tasks and epochs are ---


@pytest.mark.parametrize(("statistics", "since"), [("task", 0), ("epoch", 6)])
def test_the_running_mean_is_that_of_a_task_or_an_epoch(statistics: str, since: int) -> None:
    blocks = Blocks(config_of(search={"statistics": statistics}))
    blocks.learn(0, stop=9)
    assert blocks.tree.signature.count == 9 - since
    assert torch.allclose(blocks.tree.signature.mean, torch.stack(blocks.edited[since:]).mean(0), atol=1e-6)


@every_preset
def test_tasks_of_one_step_are_stored_and_not_searched(preset: str) -> None:
    blocks = learned(Blocks(config_of(preset)), 4, steps=1, epochs=1)
    report = blocks.service.report()
    assert report["entries"] == [[0], [1], [2], [3]] and report["chosen"] == [[]] * 4
    assert report["pulls"] == [[0.0] * 4] * 4 and report["search"] is None
    assert same(blocks.edited, learned(Blocks(), 4, steps=1, epochs=1).edited)


def test_a_task_shorter_than_the_way_to_the_first_search_point_is_sequential_lora() -> None:
    lengths = {"steps": 4, "epochs": 1}  # the first point would be step 4
    blocks = learned(Blocks(config_of()), 3, **lengths)
    assert blocks.tree.chosen == [] and len(blocks.tree.memory) == 3
    assert same(blocks.edited, learned(Blocks(), 3, **lengths).edited)


@every_preset
def test_epochs_may_have_one_step(preset: str) -> None:
    search = {"statistics": "epoch", "every": 1, "staleness": 0}
    blocks = learned(Blocks(config_of(preset, search=search)), 3, steps=5, epochs=5)
    assert blocks.tree.signature.count == 1 and len(blocks.tree.chosen) == 2
    assert all(torch.isfinite(gradient).all() for gradient in blocks.edited)
    steps = [step for step in range(5) if blocks.service.answered(2, step)]
    assert steps == [1, 2, 3, 4]
