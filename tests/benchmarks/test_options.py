"""The likeliest option, found without reading all of them: against reading all, and what is left unread."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.formats import PADDING
from benchmarks.models.options import likeliest

WORDS = 7


class Answers:
    """Log-likelihoods of answers after prompts: of each first token, and of the rest by hand-made numbers."""

    def __init__(self, prompts: int, seed: int, spread: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.first = (spread * torch.randn(prompts, WORDS, generator=generator)).log_softmax(1)
        self.tokens = -torch.rand(prompts, WORDS, generator=generator)
        self.read: list[tuple[int, int]] = []  # prompt and the answer's first token
        self.calls = 0

    def rest(self, rows: Tensor, answers: Tensor) -> Tensor:
        self.calls += 1
        self.read += zip(rows.tolist(), answers[:, 0].tolist(), strict=True)
        later = self.tokens[rows[:, None], answers[:, 1:].clamp(min=0)] * (answers[:, 1:] != PADDING)
        return later.sum(1)

    def whole(self, row: int, option: Tensor) -> float:
        rows = torch.tensor([row])
        return float(self.first[row, option[0]] + self.rest(rows, option[None])[0])


@st.composite
def options(draw: st.DrawFn) -> list[Tensor]:
    """Options of some prompts, unlike in number and length."""
    made = []
    for _ in range(draw(st.integers(1, 5))):
        length = draw(st.integers(1, 4))
        rows = draw(st.lists(st.lists(st.integers(0, WORDS - 1), min_size=1, max_size=length), min_size=1, max_size=6))
        longest = max(map(len, rows))
        made.append(torch.tensor([row + [PADDING] * (longest - len(row)) for row in rows]))
    return made


@given(options(), st.integers(0, 999), st.sampled_from([0.1, 3.0]))
@settings(max_examples=200, deadline=None)
def test_the_choice_is_that_of_reading_every_option(given: list[Tensor], seed: int, spread: float) -> None:
    answers = Answers(len(given), seed, spread)
    found = likeliest(answers.first, given, answers.rest, lambda count: count)
    for row, (chosen, words) in enumerate(zip(found.tolist(), given, strict=True)):
        every = [answers.whole(row, option) for option in words]
        assert every[chosen] == pytest.approx(max(every), abs=1e-5)


def test_an_option_that_cannot_win_any_more_is_not_read() -> None:
    answers = Answers(1, seed=0, spread=1.0)
    answers.first = torch.tensor([[0.7, 0.1, 0.1, 0.1, 1e-9, 1e-9, 1e-9]]).log()
    answers.tokens.fill_(-0.1)
    found = likeliest(answers.first, [torch.tensor([[1, 5], [0, 5], [2, 5]])], answers.rest, lambda count: count)
    assert found.tolist() == [1]
    assert answers.read == [(0, 0)], "0.7 with its rest beats 0.1 without"


def test_of_equal_options_the_first_is_chosen() -> None:
    answers = Answers(2, seed=0, spread=0.0)
    answers.tokens.fill_(-1.0)
    same = torch.tensor([[3, 1], [2, 1], [3, 1]])
    assert likeliest(answers.first, [same, same.flip(0)], answers.rest, lambda count: count).tolist() == [0, 0]


def test_a_worker_that_is_done_goes_on_with_the_others() -> None:
    answers = Answers(1, seed=0, spread=1.0)
    counts = iter([2, 3, 2, 1, 0])  # the length, then what is waiting, of a worker that has more options

    def most(count: int) -> int:
        return max(count, next(counts))

    found = likeliest(answers.first, [torch.tensor([[1, 2]])], answers.rest, most)
    assert found.tolist() == [0] and answers.calls == 3
