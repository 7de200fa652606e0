"""What became of a user's data on the way into a stream: what was left out, cut, scaled, joined or renamed.

Whatever reads or prepares data notes each such thing as it happens, so that nothing of it goes unsaid.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Note:
    """How often one kind of thing happened, and where first."""

    count: int
    first: str


@dataclass
class Account:
    """Notes by what happened, in words that follow a number, as in ``images of 16 bits scaled to 8``."""

    notes: dict[str, Note] = field(default_factory=dict)

    def note(self, what: str, place: str, count: int = 1) -> None:
        """Add ``count`` cases, of which ``place`` names the first: a file, with a line where there is one."""
        if count:
            known = self.notes.setdefault(what, Note(0, place))
            known.count += count

    def note_case(self, names: Iterable[str], what: str, owner: str = "") -> None:
        """Names that differ in upper and lower case alone may be meant as one: they stay two, and are named."""
        seen: dict[str, str] = {}
        for name in names:
            other = seen.setdefault(name.casefold(), name)
            if other != name:
                self.note(f"{what} another in case alone", f"{owner}{other!r} and {name!r}")

    def include(self, other: Account) -> None:
        """Add the notes of another reader."""
        for what, found in other.notes.items():
            self.note(what, found.first, found.count)

    def lines(self) -> list[str]:
        return [f"{found.count} {what} (first: {found.first})" for what, found in self.notes.items()]

    def as_list(self) -> list[dict[str, Any]]:
        """Plain values."""
        return [{"what": what, "count": found.count, "first": found.first} for what, found in self.notes.items()]

    @classmethod
    def from_list(cls, values: list[dict[str, Any]]) -> Account:
        """The inverse of ``as_list``."""
        return cls({one["what"]: Note(one["count"], one["first"]) for one in values})
