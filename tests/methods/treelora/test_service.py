"""The central search: sums of partial sketches, repeated messages, and state that survives a restart."""

from __future__ import annotations

import itertools

import pytest
import torch
from safetensors.torch import load, save

from methods.treelora.sketch import Sketch
from methods.treelora.tree.tree import TaskTree
from tests.support.services import (
    POINTS,
    ROUNDS,
    STAMP,
    STEPS,
    TASKS,
    after,
    assert_equal_services,
    make_service,
    random_sketch,
    send,
    stored,
    whole_run,
)


@pytest.mark.parametrize("arrival", list(itertools.permutations(range(3))))
def test_parts_are_added_in_rank_order_whatever_their_arrival(arrival: tuple[int, ...]) -> None:
    """In float32 (1e8 + 1) - 1e8 is 0, but 1e8 - 1e8 + 1 is 1."""
    parts = [torch.full((2, 4), value) for value in (1e8, 1.0, -1e8)]
    service = after([(0, -1, part, parts[part]) for part in arrival], parts=3)
    assert torch.equal(torch.from_numpy(service.stored.sketches[0]), torch.zeros(2, 4))


def test_a_point_is_searched_with_the_sum_of_its_parts() -> None:
    """Each part alone resembles task 1, their sum is task 0."""
    first, second = random_sketch(0), random_sketch(1)
    service = stored(first, second)
    service.expect(2)
    send(service, (2, 4, 1, first - 5 * second))
    send(service, (2, 4, 0, 5 * second))
    assert service.choose(2, 4) == [0, 0, 0]


def test_there_is_no_answer_before_the_last_part() -> None:
    service = stored(random_sketch(0))
    service.expect(2)
    for part in (1, 1):
        send(service, (1, 4, part, random_sketch(part)))
        assert not service.answered(1, 4)
        with pytest.raises(KeyError):
            service.choose(1, 4)
    send(service, (1, 4, 0, random_sketch(0)))
    assert service.answered(1, 4)
    assert service.choose(1, 4) == [0, 0, 0]


def test_a_task_is_closed_by_its_last_part() -> None:
    service = make_service(2)
    for part in (0, 0):
        send(service, (0, -1, part, random_sketch(0)))
        assert not service.closed(0)
    send(service, (0, -1, 1, random_sketch(1)))
    assert service.closed(0)
    assert not service.closed(1)


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_repeated_messages_change_nothing(parts: int) -> None:
    messages = whole_run(parts)
    twice = [message for message in messages for _ in range(2)]
    again = []  # every point is sent once more as a whole when its task is already closed
    for task in range(TASKS):
        again += [message for message in messages if message[0] == task] * 2
    once = after(messages, parts)
    assert once.stored.tasks == [[task] for task in range(TASKS)]
    assert_equal_services(after(twice, parts), once)
    assert_equal_services(after(again, parts), once)


def test_late_messages_with_other_content_are_ignored() -> None:
    messages = whole_run(1)
    service = after(messages, 1)
    for task, step, part, _ in messages:
        send(service, (task, step, part, random_sketch(99)))
        send(service, (task, 6, part, random_sketch(99)))
    assert_equal_services(service, after(messages, 1))


@pytest.mark.parametrize("cut", range(TASKS * (len(POINTS) + 1) + 1))
def test_a_restored_service_goes_on_as_if_nothing_had_happened(cut: int) -> None:
    messages = whole_run(2)
    before, rest = messages[: 2 * cut], messages[2 * cut :]
    restored = make_service(2)
    restored.load_state_dict(load(save(after(before, 2).state_dict())))
    for message in rest:
        send(restored, message)
    assert_equal_services(restored, after(messages, 2))


def test_a_restored_service_forgets_what_it_knew() -> None:
    service = after(whole_run(1), 1)
    service.load_state_dict(make_service().state_dict())
    assert_equal_services(service, make_service())
    service.load_state_dict({})
    assert_equal_services(service, make_service())


def test_the_report_has_tree_pulls_and_answers() -> None:
    service = after(whole_run(1), 1)
    report = service.report()
    assert [node | {"tasks": node["entries"]} for node in TaskTree.build(service.stored.array()).nodes()] == [
        node | {"entries": node["tasks"]} for node in report["tree"]["nodes"]
    ]
    for learned, row in enumerate(report["pulls"]):
        assert len(row) == TASKS
        assert sum(row) == (ROUNDS * len(POINTS) if learned > 0 else 0)
        assert sum(row[learned:]) == 0
    assert report["chosen"][0] == []
    for learned in range(1, TASKS):
        assert report["chosen"][learned] == [service.choose(learned, step)[0] for step in POINTS]
        assert set(report["chosen"][learned]) <= set(range(learned))


def test_of_the_task_in_progress_the_report_has_the_search_alone() -> None:
    messages = whole_run(1)
    closed = [message for message in messages if message[0] < 3]
    running = [message for message in messages if message[0] == 3 and message[1] >= 0]
    before, now = after(closed).report(), after(closed + running).report()
    assert (before.pop("search")["task"], now.pop("search")["task"]) == (2, 3)
    assert now == before


@pytest.mark.parametrize("copied", [0, 1])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_first_answer_is_the_task_that_was_copied(copied: int, scale: float) -> None:
    sketches = [random_sketch(0), random_sketch(1)]
    service = stored(*sketches)
    send(service, (2, 4, 0, scale * (sketches[copied] + 0.1 * random_sketch(2))))
    assert service.choose(2, 4) == [copied] * 3
    send(service, (2, -1, 0, random_sketch(3)))
    pulls = service.report()["pulls"][2]
    assert pulls[copied] > pulls[1 - copied] > 0
    assert sum(pulls) == 8


def test_a_zero_sketch_pulls_nothing() -> None:
    service = stored(random_sketch(0), random_sketch(1))
    send(service, (2, 4, 0, torch.zeros(3, 16)))
    assert service.choose(2, 4) == []
    found = service.report()["search"]
    assert found["chosen"] == []
    assert [(entry["pulls"], entry["mean"], entry["bound"]) for entry in found["entries"]] == [(0, None, None)] * 2
    send(service, (2, 8, 0, random_sketch(1)))
    assert service.choose(2, 8) == [1, 1, 1], "the task is not lost for that"


def test_a_task_without_any_gradient_is_stored_and_found() -> None:
    service = stored(torch.zeros(3, 16), random_sketch(1))
    assert service.report()["distances"] == [[0.0, 0.5], [0.5, 0.0]]
    send(service, (2, 4, 0, random_sketch(1)))
    assert service.choose(2, 4) == [1, 1, 1]


# --- what is refused ---


@pytest.mark.parametrize("step", [4, -1])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_sketch_that_is_not_finite_is_rejected_by_name(step: int, value: float) -> None:
    service = stored(random_sketch(0))
    service.expect(2)
    broken = random_sketch(1)
    broken[2, 7] = value
    send(service, (1, step, 0, broken))
    with pytest.raises(ValueError, match=r"task 1: the sketch of level 2 is not finite; lower train\.learning_rate"):
        send(service, (1, step, 1, random_sketch(2)))
    assert not service.closed(1)
    assert not service.answered(1, step)


@pytest.mark.parametrize("step", [4, -1])
@pytest.mark.parametrize(("learned", "task"), [(0, 1), (1, 2), (1, 7), (0, -1), (2, -1)])
def test_a_task_that_is_not_under_way_is_refused_by_name(learned: int, task: int, step: int) -> None:
    service = stored(*map(random_sketch, range(learned)))
    before = service.state_dict()
    with pytest.raises(
        ValueError, match=rf"task {task}: the search is at task {learned}; tasks come one after another"
    ):
        send(service, (task, step, 0, random_sketch(9)))
    assert not service.closed(task)
    assert all(torch.equal(value, before[name]) for name, value in service.state_dict().items())


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (0, 3, r"different seed do not mix \(0 and 3\)"),
        (2, 1, r"different kind do not mix \(0 and 1\)"),
        (3, 8, r"different width do not mix \(16 and 8\)"),
        (4, 5, r"different cauchy do not mix \(0 and 5\)"),
        (7, 31, r"adapters of different sizes do not mix \(\[30, 30, 30\] and \[30, 30, 31\]\)"),
    ],
)
@pytest.mark.parametrize("learned", [1, 0])
def test_sketches_of_different_make_are_refused_by_what_differs(
    learned: int, place: int, value: int, told: str
) -> None:
    """Whether the first one is another part of the same point or of a finished task; a restart does not matter."""
    service = stored(*map(random_sketch, range(learned)))
    service.expect(2)
    send(service, (learned, -1, 0, random_sketch(1)))
    restored = make_service()
    restored.expect(2)
    restored.load_state_dict(service.state_dict())
    other = Sketch(random_sketch(2), (*STAMP[:place], value, *STAMP[place + 1 :]))
    for found in (service, restored):
        with pytest.raises(ValueError, match=told):
            found.close_task(learned, 1, other)


def test_a_fresh_gradient_of_different_make_is_refused() -> None:
    service = stored(random_sketch(0), observe="fresh_grad")
    other = Sketch(random_sketch(2), (3, *STAMP[1:]))
    with pytest.raises(ValueError, match="sketches of different seed do not mix"):
        service.observe(1, 4, 0, Sketch(random_sketch(1), STAMP), STEPS, other)


@pytest.mark.parametrize("part", [-1, 2])
def test_a_shard_that_does_not_exist_is_refused(part: int) -> None:
    service = stored(random_sketch(0))
    service.expect(2)
    with pytest.raises(ValueError, match=f"task 1: a sketch came from shard {part}, but there are 2"):
        send(service, (1, 4, part, random_sketch(1)))
    assert not service.pending
