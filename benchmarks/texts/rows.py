"""Rows of text tasks: what a good row is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

Label = str | int
FIELDS = ({"text", "label"}, {"prompt", "answer"})
EDGES = re.compile("^[\\s\u200b\u2060\ufeff]+|[\\s\u200b\u2060\ufeff]+$")
FORMS = "text and label, or prompt and answer"


class RowError(ValueError):
    """A row that cannot be used: the message is the reason."""


@dataclass(frozen=True)
class Row:
    """A text with its label, or (``label`` None) a prompt with its answer. ``place`` is its file and line."""

    place: str
    text: str
    label: Label | None = None
    answer: str = ""


@dataclass(frozen=True)
class Split:
    """The good rows of one file."""

    place: str
    rows: list[Row]


@dataclass(frozen=True)
class TextTask:
    """One task; ``labels`` are all its labels in order, None where they follow from its train rows.

    Without ``validation``, rows of the train split are held out.
    """

    name: str
    train: Split
    test: Split
    labels: list[Label] | None = None
    validation: Split | None = None

    @property
    def splits(self) -> list[Split]:
        return [self.train, self.test, *([self.validation] if self.validation else [])]


def as_row(place: str, fields: object) -> Row:
    """Check the fields of one row; RowError says what is wrong."""
    if isinstance(fields, RowError):
        raise fields
    if not isinstance(fields, dict):
        raise RowError("not an object")
    labelled, free = (names <= fields.keys() for names in FIELDS)
    if labelled == free:
        raise RowError(f"{'has both forms' if free else 'fields are missing'}; a row needs {FORMS}")
    if labelled:
        return Row(place, words(fields, "text"), as_label(fields["label"]))
    return Row(place, words(fields, "prompt"), answer=words(fields, "answer"))


def trimmed(text: str) -> str:
    """Without blanks around it, those included that have no width, which Python takes for letters."""
    return EDGES.sub("", text)


def words(fields: Mapping[str, object], name: str) -> str:
    value = fields[name]
    if not isinstance(value, str):
        raise RowError(f"the {name} is not a string")
    if not trimmed(value):
        raise RowError(f"the {name} is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RowError(f"the {name} has half of a character (a lone surrogate)") from None
    return value


def as_label(value: object) -> Label:
    if isinstance(value, bool):
        return str(value).lower()  # as JSON writes it
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, str | int):
        raise RowError("the label is neither a text nor a whole number")
    return value if isinstance(value, int) else words({"label": value}, "label")


def as_labels(value: object) -> list[Label]:
    """The given labels of a task: at least one, each once."""
    if not isinstance(value, list | tuple) or not value:
        raise RowError("the labels are not a list of strings or integers")
    labels = [as_label(label) for label in value]
    if len(set(labels)) < len(labels):
        raise RowError("a label is named twice")
    return labels
