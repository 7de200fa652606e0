"""What a backbone reads, and what preparing a split for it gives."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from benchmarks.account import Account

PADDING = -1  # ends a row of tokens that is shorter than others; no tokenizer has this one


@dataclass(frozen=True)
class ImageFormat:
    """uint8 images [n, 3, size, size]."""

    size: int


@dataclass(frozen=True)
class TextFormat:
    """Tokens of ``tokenizer`` (a folder or hub name; ``gguf_file`` names the file inside it where there is one).

    ``answers`` says that the backbone writes its answers: labelled texts then become prompts. ``limit``: tokens that
    it can read, those of an answer included; None where any number.
    """

    tokenizer: str
    answers: bool
    gguf_file: str | None = None
    limit: int | None = None


Format = ImageFormat | TextFormat


@dataclass(frozen=True)
class Prepared:
    """The rows of a split as arrays, in the order they were asked for."""

    inputs: Tensor  # [kept rows, ...]
    kept: Tensor  # bool [rows]: False where a bad row was left out
    answers: Tensor | None = None  # tokens [kept rows, length]
    digests: Tensor | None = None  # SHA-256 uint8 [kept rows, 32] of the inputs, where they are kept with them
    fresh: int = 0  # rows decoded or tokenised just now, not found in the cache
    bad: list[str] = field(default_factory=list)  # place and reason of each row left out
    account: Account = field(default_factory=Account)  # what was done with the rows that were kept
