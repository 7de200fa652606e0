"""Labels of text rows, which people write in more than one way: what means the same becomes one."""

from __future__ import annotations

import unicodedata
from dataclasses import replace

from benchmarks.account import Account
from benchmarks.texts.rows import Row, TextTask, trimmed


def unified(task: TextTask, account: Account) -> TextTask:
    """The task with one way of writing each label; every row that was written in another is counted.

    Blanks around a label, and the two ways in which Unicode writes an accent, are no difference, and neither is a
    number from its text, unless the task's own list of labels gives numbers and words a meaning of their own.
    """
    rows = [row for split in task.splits for row in split.rows]
    texts = any(isinstance(row.label, str) for row in rows) and not task.labels
    given = {spelled(label, True): label for label in task.labels or []}

    def label_of(row: Row) -> Row:
        if row.label is None:
            return row
        meant = spelled(row.label, texts)
        meant = given.get(meant, meant)
        if meant != row.label:
            account.note("labels written in another way than the rest", f"{row.place}: {row.label!r}")
        return replace(row, label=meant)

    train, test, *others = (replace(split, rows=[label_of(row) for row in split.rows]) for split in task.splits)
    found = replace(task, train=train, test=test, validation=others[0] if others else None)
    labels = {row.label for split in found.splits for row in split.rows if isinstance(row.label, str)}
    account.note_case(sorted(labels), "labels that differ from", f"{task.name}: ")
    return found


def spelled(label: str | int, as_text: bool) -> str | int:
    """A number stays one, unless there are texts beside it."""
    if isinstance(label, int) and not as_text:
        return label
    return unicodedata.normalize("NFC", trimmed(str(label)))
