"""The page docs/library.md: its example runs, is as short as it says and prints what it says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

PAGE = (Path(__file__).parents[3] / "docs" / "library.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    """The only block of that language on the page."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return found


def test_the_example_prints_what_the_page_says() -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block("python"), "docs/library.md", "exec"), {})
    assert printed.getvalue() == block("text")


def test_the_example_has_at_most_twenty_lines() -> None:
    assert sum(bool(line.strip()) for line in block("python").splitlines()) <= 20
