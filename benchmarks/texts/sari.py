"""SARI of Xu et al. 2016, "Optimizing Statistical Machine Translation for Text Simplification".

A simplification is judged by what it keeps, deletes and adds against its source, for n-grams of 1 to 4 words. As in
the implementations of Hugging Face and Tensor2Tensor, 0/0 counts as 1, so that an answer equal to its reference has
score 1; and each punctuation mark is a word.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

WORD = re.compile(r"\w+|[^\w\s]")
LONGEST = 4

Grams = Counter[tuple[str, ...]]


def sari(answer: str, references: Sequence[str], source: str) -> float:
    """Score 0 to 1 of ``answer`` as a simplification of ``source``; ``references`` are good ones."""
    scores = [
        part
        for n in range(1, LONGEST + 1)
        for part in parts(grams(answer, n), [grams(reference, n) for reference in references], grams(source, n))
    ]
    return sum(scores) / len(scores)


def grams(text: str, n: int) -> Grams:
    found = WORD.findall(text.lower())
    return Counter(tuple(found[start : start + n]) for start in range(len(found) - n + 1))


def parts(answer: Grams, references: list[Grams], source: Grams) -> tuple[float, float, float]:
    """F1 of what is kept, precision of what is deleted, F1 of what is added.

    Counts of answer and source are taken once for each reference, to weigh as much as all references together.
    """
    wanted = sum(references, Counter())
    answer, source = (Counter({gram: count * len(references) for gram, count in g.items()}) for g in (answer, source))
    kept, deleted, added = answer & source, source - answer, as_set(answer) - as_set(source)
    keep = f1(mean_share(kept & wanted, kept), share((kept & wanted).total(), (source & wanted).total()))
    new = as_set(wanted) - as_set(source)
    right = (added & new).total()
    return keep, mean_share(deleted - wanted, deleted), f1(share(right, added.total()), share(right, new.total()))


def as_set(grams: Grams) -> Grams:
    return Counter(grams.keys())


def mean_share(good: Grams, all_: Grams) -> float:
    """Mean over the n-grams of the share of their occurrences that is good."""
    return share(sum(good[gram] / count for gram, count in all_.items()), len(all_))


def share(good: float, of: float) -> float:
    return good / of if of else 1.0


def f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
