"""A stream in numbers, and what became of the data on their way into it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.account import Account
from benchmarks.dataset import SOURCES, Dataset, Records, StreamConfig
from benchmarks.formats import ImageFormat
from benchmarks.overview import overview, overview_lines
from benchmarks.stream import build_stream


def records(*counts: int) -> Records:
    """So many images of each class, all different."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    generator = torch.Generator().manual_seed(sum(counts))
    return Records(torch.randint(256, (len(labels), 3, 8, 8), dtype=torch.uint8, generator=generator), labels)


def overview_of(tasks: int) -> dict[str, Any]:
    return overview(build_stream(StreamConfig(name="p", source="planted", tasks=tasks), None, ImageFormat(8)))


def planted(config: StreamConfig) -> Dataset:
    """Three classes of 10, 20 and 40 train rows; two things were done with them."""
    account = Account()
    account.note("images of 16 bits scaled to 8", "a.png")
    account.note("images of 16 bits scaled to 8", "b.png", 3)
    account.note("files that are no images", "c.txt", 0)
    return Dataset(records(10, 20, 40), records(2, 3, 4), ["a", "b", "c"], [], ["d.png: damaged"], account)


def test_an_overview_counts_rows_and_keeps_what_was_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "planted", planted)
    found = overview_of(tasks=1)
    assert found["rows"] == {"train": 63, "validation": 7, "test": 9}
    assert found["rows_per_class"] == {"least": 9, "median": 18, "most": 36}
    assert overview_lines(found) == [
        "data of p: 3 classes in 1 tasks; rows: 63 train, 7 validation, 9 test; "
        "9 to 36 (median 18) train rows a class; 1 left out",
        "data of p: 4 images of 16 bits scaled to 8 (first: a.png)",
    ]


def test_tasks_of_one_class_are_named_as_nothing_is_learned_there_by_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "planted", planted)
    assert overview_of(tasks=3)["notes"][-1] == {
        "what": "tasks of one class: only a closed-form head learns from them", "count": 3, "first": "a"
    }  # fmt: skip


def test_accounts_are_added_up_and_read_back() -> None:
    one, two = Account(), Account()
    one.note("texts cut", "a:1", 2)
    two.note("texts cut", "b:7")
    two.note("labels joined", "b:8")
    one.include(two)
    assert one.lines() == ["3 texts cut (first: a:1)", "1 labels joined (first: b:8)"]
    assert Account.from_list(one.as_list()) == one
