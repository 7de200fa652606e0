"""Scores 0 to 1 of one written answer, by the names in ``benchmark.text.score`` and ``benchmark.text.scores``.

Each takes the answer, the reference and the prompt. Labelled tasks have none of these: their accuracy is counted
over label words.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from rapidfuzz.distance import Levenshtein

from benchmarks.dataset import BenchmarkError
from benchmarks.texts import sari as simplification

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

Score = Callable[[str, str, str], float]

IN_NUMBER = re.compile(r"[.](?=\d)|(?<!\w)-(?=[\d.])")  # a decimal point and a minus sign
HAN = "\u3400-\u9fff\uf900-\ufaff"  # Chinese characters, which no space divides
WORD = re.compile(rf"-?\d+(?:[.,]\d+)*\b|[{HAN}]|[^\W{HAN}]+")


def exact_match(answer: str, reference: str, prompt: str = "") -> float:
    """1 if both are equal but for case, punctuation and space; 2.5, 25 and -2.5 are three numbers."""
    return float(bare(answer) == bare(reference))


def first_word(answer: str, reference: str, prompt: str = "") -> float:
    """1 if both begin with the same word, as in a choice with its reasons; a Chinese character is a word."""
    return float(first(answer) == first(reference))


def rouge_l(answer: str, reference: str, prompt: str = "") -> float:
    """F measure of the longest common subsequence of words, for languages of Latin letters (rouge-score)."""
    return rouge().score(reference, answer)["rougeL"].fmeasure


def sari(answer: str, reference: str, prompt: str) -> float:
    """SARI against one reference; the prompt is the text to simplify."""
    return simplification.sari(answer, [reference], prompt)


def edit_similarity(answer: str, reference: str, prompt: str = "") -> float:
    """1 less the Levenshtein distance over the longer length; space around is ignored."""
    return Levenshtein.normalized_similarity(answer.strip(), reference.strip())


SCORES: dict[str, Score] = {
    score.__name__: score for score in (exact_match, first_word, rouge_l, sari, edit_similarity)
}


def check_score(name: str, setting: str = "benchmark.text.score") -> None:
    """BenchmarkError, which names ``setting``, where there is no such score."""
    if name not in SCORES:
        near = difflib.get_close_matches(name, SCORES, 1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise BenchmarkError(f"{setting}={name}: choose one of {', '.join(SCORES)}{hint}")


def bare(text: str) -> str:
    """Without case, punctuation and needless space; nothing but punctuation stays as it is."""
    kept = [
        character
        for place, character in enumerate(text.casefold())
        if not unicodedata.category(character).startswith("P") or IN_NUMBER.match(text.casefold(), place)
    ]
    return " ".join("".join(kept).split()) or text.strip()


def first(text: str) -> str:
    found = WORD.search(text.casefold())
    return found[0] if found else text.strip()


@cache
def rouge() -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer  # slow, and only some streams need it

    return RougeScorer(["rougeL"])
