"""Content that is there more than once: in train and test, which flatters a score, or under several labels."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy
from torch import Tensor

from benchmarks.account import Account

SHOWN = 40  # characters of a text


def note_repeats(
    train: tuple[Tensor, Tensor, Sequence[Any]], test: tuple[Tensor, Tensor, Sequence[Any]], account: Account
) -> None:
    """Count test rows that are train rows too, and rows of one content with several labels.

    Each split: the SHA-256 uint8 [n, 32] of its rows as the backbone reads them, their labels [n], and what the rows
    were read from.
    """
    # By a part of the digests first, which numpy compares: of a million rows few are left for what follows.
    starts = [digests.numpy()[:, :8].copy().view(numpy.uint64).ravel() for digests in (train[0], test[0])]
    values, counts = numpy.unique(numpy.concatenate(starts), return_counts=True)
    learned, tested = (numpy.isin(start, values[counts > 1]).nonzero()[0].tolist() for start in starts)
    known: dict[bytes, tuple[int, Any]] = {}
    for content, label, item in chosen(learned, *train):
        other, place = known.setdefault(content, (label, item))
        if other != label:
            account.note("train rows that are those of another class too", f"{shown(item)} is {shown(place)}")
    for content, label, item in chosen(tested, *test):
        if content in known:
            other, place = known[content]
            both = f"{shown(item)} is {shown(place)}"
            account.note("test rows that are in the train split too", both)
            if other != label:
                account.note("test rows that have another label in the train split", both)


def chosen(rows: list[int], digests: Tensor, labels: Tensor, items: Sequence[Any]) -> Iterator[tuple[bytes, int, Any]]:
    return ((digests[row].numpy().tobytes(), int(labels[row]), items[row]) for row in rows)


def shown(item: Any) -> str:
    if isinstance(item, Path):
        return os.fsencode(item).decode("utf-8", "replace")
    return f"'{' '.join(item.split())[:SHOWN]}'" if isinstance(item, str) else f"row {item}"
