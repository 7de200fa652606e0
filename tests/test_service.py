"""The central search: sums of partial sketches, repeated messages, and state that survives a restart."""

from __future__ import annotations

import itertools

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from methods.treelora.search import SearchConfig
from methods.treelora.service import TreeService
from methods.treelora.tree import TaskTree

TASKS, POINTS, ROUNDS = 5, (4, 8, 12), 1
Message = tuple[int, int, int, Tensor]  # task, step (-1 closes the task), part, sketch


def make_service(parts: int = 1, rounds: int = ROUNDS) -> TreeService:
    service = TreeService(SearchConfig(rounds=rounds), seed=5)
    service.expect(parts)
    return service


def random_sketch(seed: int) -> Tensor:
    return torch.randn(3, 16, generator=torch.Generator().manual_seed(seed))


def send(service: TreeService, message: Message) -> None:
    task, step, part, sketch = message
    if step < 0:
        service.close_task(task, part, sketch)
    else:
        service.observe(task, step, part, sketch, rounds=ROUNDS * len(POINTS))


def whole_run(parts: int) -> list[Message]:
    points = itertools.product(range(TASKS), (*POINTS, -1), range(parts))
    return [(*point, random_sketch(number)) for number, point in enumerate(points)]


def after(messages: list[Message], parts: int, rounds: int = ROUNDS) -> TreeService:
    service = make_service(parts, rounds)
    for message in messages:
        send(service, message)
    return service


def assert_equal_services(one: TreeService, other: TreeService) -> None:
    left, right = one.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    for name, values in left.items():
        assert torch.equal(values, right[name]), name
    assert one.report() == other.report()


def stored(*sketches: Tensor) -> TreeService:
    """A service that has learned one task from each sketch and pulls eight leaves at a point."""
    return after([(task, -1, 0, sketch) for task, sketch in enumerate(sketches)], parts=1, rounds=8)


@pytest.mark.parametrize("arrival", list(itertools.permutations(range(3))))
def test_parts_are_added_in_rank_order_whatever_their_arrival(arrival: tuple[int, ...]) -> None:
    """In float32 (1e8 + 1) - 1e8 is 0, but 1e8 - 1e8 + 1 is 1."""
    parts = [torch.full((2, 4), value) for value in (1e8, 1.0, -1e8)]
    service = after([(0, -1, part, parts[part]) for part in arrival], parts=3)
    assert torch.equal(service.sketches[0], torch.zeros(2, 4))


def test_a_point_is_searched_with_the_sum_of_its_parts() -> None:
    """Each part alone resembles task 1, their sum is task 0."""
    first, second = random_sketch(0), random_sketch(1)
    service = stored(first, second)
    service.expect(2)
    send(service, (2, 4, 1, first - 5 * second))
    send(service, (2, 4, 0, 5 * second))
    assert service.choose(2, 4) == 0


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
    assert service.choose(1, 4) == 0


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
    assert len(once.sketches) == TASKS
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
    assert report["tree"]["nodes"] == TaskTree.build(torch.stack(service.sketches).numpy()).nodes()
    for learned, row in enumerate(report["pulls"]):
        assert len(row) == TASKS
        assert sum(row) == (ROUNDS * len(POINTS) if learned > 0 else 0)
        assert sum(row[learned:]) == 0
    assert report["chosen"][0] == []
    for learned in range(1, TASKS):
        assert report["chosen"][learned] == [service.choose(learned, step) for step in POINTS]
        assert set(report["chosen"][learned]) <= set(range(learned))


def test_the_report_leaves_out_the_task_in_progress() -> None:
    messages = whole_run(1)
    closed = [message for message in messages if message[0] < 3]
    running = [message for message in messages if message[0] == 3 and message[1] >= 0]
    assert after(closed + running, 1).report() == after(closed, 1).report()


@pytest.mark.parametrize("copied", [0, 1])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_first_answer_is_the_task_that_was_copied(copied: int, scale: float) -> None:
    sketches = [random_sketch(0), random_sketch(1)]
    service = stored(*sketches)
    send(service, (2, 4, 0, scale * (sketches[copied] + 0.1 * random_sketch(2))))
    assert service.choose(2, 4) == copied
    send(service, (2, -1, 0, random_sketch(3)))
    pulls = service.report()["pulls"][2]
    assert pulls[copied] > pulls[1 - copied] > 0
    assert sum(pulls) == 8


def test_a_zero_sketch_pulls_nothing() -> None:
    service = stored(random_sketch(0), random_sketch(1))
    send(service, (2, 4, 0, torch.zeros(3, 16)))
    assert service.choose(2, 4) == -1
    assert service.history[2] == [0, 0]


@pytest.mark.parametrize("step", [4, -1])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_sketch_that_is_not_finite_is_rejected_by_name(step: int, value: float) -> None:
    service = stored(random_sketch(0))
    service.expect(2)
    broken = random_sketch(1)
    broken[2, 7] = value
    send(service, (1, step, 0, broken))
    with pytest.raises(ValueError, match="task 1: the gradient sketch of level 2 is not finite"):
        send(service, (1, step, 1, random_sketch(2)))
    assert not service.closed(1)
    assert not service.answered(1, step)
