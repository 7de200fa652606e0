"""The central search under each setting: budget, insertion, epochs, fresh gradients, levels, and what it reports."""

from __future__ import annotations

import itertools
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load, save

from methods.treelora.service import TreeService
from methods.treelora.tree.tree import TreeConfig
from tests.support.services import (
    TASKS,
    after,
    assert_equal_services,
    make_service,
    random_sketch,
    send,
    stored,
    turned,
    whole_run,
)

# --- the budget ---


def test_beyond_the_budget_the_closest_two_become_one() -> None:
    """Tasks at 0, 90, 4 and 92 degrees: 1 and 3 are closest, then 0 and 2, then the two at 91 with one at 100."""
    service = make_service(tree=TreeConfig(budget=2))
    entries, pairs = [], []
    for task, degrees in enumerate((0, 90, 4, 92, 100)):
        send(service, (task, -1, 0, turned(degrees)))
        pairs.append(service.merged(task))
        report = service.report()
        entries.append(report["entries"])
        assert sorted(itertools.chain(*report["entries"])) == list(range(task + 1))
        leaves = [node["tasks"] for node in report["tree"]["nodes"] if node["tasks"] is not None]
        assert sorted(leaves) == sorted(report["entries"])
    assert entries == [[[0]], [[0], [1]], [[0, 2], [1]], [[0, 2], [1, 3]], [[0, 2], [1, 3, 4]]]
    assert pairs == [[], [], [0, 2], [1, 2], [1, 2]]
    expected = (2 * (turned(90) + turned(92)) / 2 + turned(100)) / 3
    assert torch.allclose(torch.from_numpy(service.stored.sketches[1]), expected, atol=1e-6)
    assert service.closed(4) and not service.closed(5)


def test_a_merged_entry_is_chosen_by_its_place_and_reported_by_its_first_task() -> None:
    service = stored(turned(0), turned(90), turned(4), tree=TreeConfig(budget=2))
    send(service, (3, 4, 0, turned(3)))
    assert service.choose(3, 4) == [0, 0, 0]
    send(service, (3, -1, 0, turned(170)))
    report = service.report()
    assert report["chosen"][3] == [0]
    assert [entry["tasks"] for entry in report["search"]["entries"]] == [[0, 2], [1]]
    assert report["pulls"][3] == [entry["pulls"] for entry in report["search"]["entries"]] + [0, 0]
    assert sum(report["pulls"][3]) == 8


@pytest.mark.parametrize("maintain", ["rebuild", "insert"])
@pytest.mark.parametrize("cut", range(0, TASKS * 4 + 1, 3))
def test_under_a_budget_a_restored_service_goes_on_too(cut: int, maintain: Any) -> None:
    tree, messages = TreeConfig(budget=3, maintain=maintain), whole_run(1)
    restored = make_service(tree=tree)
    restored.load_state_dict(load(save(after(messages[:cut], tree=tree).state_dict())))
    for message in messages[cut:]:
        send(restored, message)
    whole = after(messages, tree=tree)
    assert_equal_services(restored, whole)
    assert len(whole.stored.tasks) == 3
    assert [restored.merged(task) for task in range(TASKS)] == [whole.merged(task) for task in range(TASKS)]


# --- insertion ---


def test_an_inserted_tree_survives_a_restart_as_it_was_grown() -> None:
    """0 and 40 degrees are parted first, 20 goes to the nearer, then 100: built at once, 100 is on its own."""
    angles = (0, 40, 19, 100)
    inserted, rebuilt = (stored(*map(turned, angles), tree=TreeConfig(maintain=m)) for m in ("insert", "rebuild"))
    assert sides(inserted) == [[0, 2], [1, 3]]
    assert sides(rebuilt) == [[0, 1, 2], [3]]
    restored = make_service(tree=TreeConfig(maintain="insert"))
    restored.load_state_dict(load(save(inserted.state_dict())))
    assert_equal_services(restored, inserted)
    grown = inserted.stored.tree.state_dict()
    assert all(numpy.array_equal(value, grown[name]) for name, value in restored.stored.tree.state_dict().items())
    for service in (restored, inserted):
        send(service, (4, -1, 0, turned(80)))
    assert_equal_services(restored, inserted)


def sides(service: TreeService) -> list[list[int]]:
    tree = service.stored.tree
    return sorted([tree.members(tree.left[0]), tree.members(tree.right[0])])


# --- how long statistics last ---


@pytest.mark.parametrize(("period", "pulls"), [(16, [8, 16, 24, 32]), (4, [8, 16, 8, 16])])
def test_statistics_last_for_a_period(period: int, pulls: list[int]) -> None:
    """Points at steps 0, 2, 4 and 6: with a period of 4, the third one starts anew."""
    service = stored(random_sketch(0), random_sketch(1))
    found = []
    for step in (0, 2, 4, 6):
        send(service, (2, step, 0, random_sketch(2 + step)), period)
        found.append(sum(entry["pulls"] for entry in service.report()["search"]["entries"]))
    assert found == pulls
    restored = make_service(rounds=8)
    restored.load_state_dict(load(save(service.state_dict())))
    assert_equal_services(restored, service)
    send(service, (2, -1, 0, random_sketch(9)))
    report = service.report()
    assert sum(report["pulls"][2]) == pulls[-1]
    assert report["chosen"][2] == [service.choose(2, step)[0] for step in (0, 2, 4, 6)], "answers of all periods"


# --- fresh gradients ---


def test_a_fresh_gradient_counts_for_the_entry_that_was_proposed() -> None:
    """The first message proposes; the next one brings the distance of both gradients to exactly that entry."""
    service = stored(turned(0), turned(90), turned(50), observe="fresh_grad")
    send(service, (3, 4, 0, turned(10)), 100)
    pulls = [0, 0, 0]
    means: list[list[float]] = [[], [], []]
    for number, step in enumerate((8, 12, 16, 20)):
        proposed = service.choose(3, step - 4)
        assert len(proposed) == 3 and len(set(proposed)) == 1
        send(service, (3, step, 0, turned(10)), 100, other=turned(10 + 20 * (number + 1)))
        pulls[proposed[0]] += 1
        means[proposed[0]].append(numpy.sin(numpy.deg2rad(10 * (number + 1))))
        entries = service.report()["search"]["entries"]
        assert [entry["pulls"] for entry in entries] == pulls
        for entry, losses in zip(entries, means, strict=True):
            assert entry["mean"] == (pytest.approx(numpy.mean(losses), abs=1e-6) if losses else None)
    assert min(pulls) > 0, "each entry is tried before one is tried again"


def test_without_a_fresh_gradient_nothing_is_observed() -> None:
    service = stored(turned(0), turned(90), observe="fresh_grad")
    for step in (4, 8):
        send(service, (2, step, 0, turned(10)))
    assert service.choose(2, 4) == service.choose(2, 8)
    assert [entry["pulls"] for entry in service.report()["search"]["entries"]] == [0, 0]


def test_a_fresh_gradient_of_the_last_epoch_says_nothing_in_the_next() -> None:
    """The entry that it belongs to was chosen by other statistics."""
    service = stored(turned(0), turned(90), observe="fresh_grad")
    pulls = []
    for step in (0, 1, 2, 3):
        send(service, (2, step, 0, turned(10)), period=2, other=turned(20) if step else None)
        pulls.append(sum(entry["pulls"] for entry in service.report()["search"]["entries"]))
    assert pulls == [0, 1, 0, 1]


def test_the_loss_of_a_fresh_gradient_is_that_of_the_sums_of_its_parts() -> None:
    service = stored(turned(0), observe="fresh_grad")
    service.expect(2)
    for step in (4, 8):
        for part in (1, 0):
            other = turned(60) - random_sketch(1) if part else random_sketch(1)
            send(service, (1, step, part, turned(0) / 2), other=other if step == 8 else None)
    (entry,) = service.report()["search"]["entries"]
    assert (entry["pulls"], entry["mean"]) == (1, pytest.approx(0.5, abs=1e-5))


# --- one entry for each level ---


def test_levels_may_choose_different_entries() -> None:
    """Level 0 of the new task is that of task 0, levels 1 and 2 are those of task 1."""
    service = stored(turned(0), turned(90), granularity="per_layer")
    mixed = torch.stack([turned(1)[0], turned(88)[1], turned(91)[2]])
    send(service, (2, 4, 0, mixed))
    assert service.choose(2, 4) == [0, 1, 1]
    send(service, (2, -1, 0, mixed))
    report = service.report()
    assert report["chosen"][2] == [0, 1, 1]
    assert sum(report["pulls"][2]) == 3 * 8


# --- the report ---


def test_the_report_has_distances_and_the_newest_search() -> None:
    service = stored(*map(turned, (0, 60, 180)))
    empty = make_service().report()
    assert (empty["distances"], empty["entries"], empty["search"], empty["tree"]["nodes"]) == ([], [], None, [])
    report = service.report()
    distances = numpy.array(report["distances"])
    assert numpy.allclose(distances, distances.T, atol=1e-6) and numpy.allclose(distances.diagonal(), 0, atol=1e-6)
    assert distances[0] == pytest.approx([0, 0.5, 1], abs=1e-6)
    assert report["entries"] == [[0], [1], [2]] and report["search"] is None
    send(service, (3, 4, 0, turned(0)))
    found = service.report()["search"]
    assert (found["task"], found["chosen"]) == (3, [0])
    assert [entry["tasks"] for entry in found["entries"]] == [[0], [1], [2]]
    for entry, distance in zip(found["entries"], distances[0], strict=True):
        assert entry["mean"] == pytest.approx(distance, abs=1e-6)
        assert entry["bound"] < entry["mean"]
