"""Scores of written answers, by exact values."""

from __future__ import annotations

import pytest

from benchmarks.dataset import BenchmarkError
from benchmarks.texts.sari import sari as sari_of_many
from benchmarks.texts.scores import SCORES, check_score, edit_similarity, exact_match, first_word, rouge_l, sari

SOURCE = "About 95 species are currently accepted."
REFERENCES = [
    "About 95 species are currently known.",
    "About 95 species are now accepted.",
    "95 species are now accepted.",
]


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("Paris", "paris", 1),
        ("  the\n  Answer. ", "The answer", 1),
        ("don't!", "dont", 1),
        ("Paris", "Paris, France", 0),
        ("", "x", 0),
        ("", "", 1),
        ("26.42", "2642", 0),
        ("26.42.", "26.42", 1),
        ("-5", "5", 0),
        ("(-5)", "-5", 1),
        ("1,000", "1000", 1),
        ("x < y", "x > y", 0),
        (") ", ")", 1),
        (")", "(", 0),
        ("支持。", "支持", 1),
    ],
)
def test_exact_match_ignores_case_punctuation_and_space_but_not_numbers(
    answer: str, reference: str, expected: float
) -> None:
    assert exact_match(answer, reference) == expected


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("B\nbecause of the comma", "B", 1),
        ("(b) it ends", "B\nOther reasons.", 1),
        ("A.支持", "A", 1),
        ("A支持", "A", 1),
        ("选A", "A", 0),
        ("支持", "支撑", 1),
        ("C", "A", 0),
        ("26.42 g", "26.42", 1),
        ("26.42", "26", 0),
        ("-5", "5", 0),
        ("1st", "1", 0),
        ("", "A", 0),
        ("", "", 1),
        (".", "", 0),
    ],
)
def test_first_word_compares_only_the_first_word(answer: str, reference: str, expected: float) -> None:
    assert first_word(answer, reference) == expected


def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence() -> None:
    precision, recall = 3 / 4, 3 / 6  # police kill gunman
    expected = 2 * precision * recall / (precision + recall)
    assert rouge_l("police kill the gunman", "the police will kill a gunman") == pytest.approx(expected)
    assert rouge_l("The police!", "the police") == 1
    assert rouge_l("", "the police") == rouge_l("the police", "") == 0


def test_edit_similarity_is_one_less_the_share_of_edits() -> None:
    assert edit_similarity("kitten", "sitting") == pytest.approx(1 - 3 / 7)
    assert edit_similarity(") ", ")") == 1
    assert edit_similarity("", "four") == 0
    assert edit_similarity("", "") == 1


def test_sari_has_the_value_of_the_known_example() -> None:
    assert sari_of_many("About 95 you now get in.", REFERENCES, SOURCE) == pytest.approx(0.26953601953601954, abs=1e-12)


def test_sari_of_one_reference_is_the_value_by_hand() -> None:
    """Source "a b c", reference "a d", answer "a b d".

    1-grams: keeps a and b, of which a is right and all of the reference: F1 2/3. Deletes c: 1. Adds d: 1.
    2-grams: keeps "a b", which is wrong; nothing of the reference was to be kept: precision 0, recall 1: 0. Deletes
    "b c": 1. Adds "b d" instead of "a d": 0.
    3-grams: keeps nothing and nothing was to be kept: 1. Deletes "a b c": 1. Adds "a b d", wrong: precision 0: 0.
    4-grams: there are none: 1, 1, 1.
    """
    by_hand = (2 / 3 + 1 + 1) + (0 + 1 + 0) + (1 + 1 + 0) + (1 + 1 + 1)
    assert sari("a b d", "a d", "a b c") == pytest.approx(by_hand / 12)


def test_sari_of_the_reference_itself_is_one_and_of_an_empty_answer_is_little() -> None:
    assert sari(REFERENCES[1], REFERENCES[1], SOURCE) == 1
    # all is deleted: right for 1 of 7 words, 2 of 6 pairs, 3 of 5 and 3 of 4; what was to be kept or added is missing
    assert sari("", REFERENCES[1], SOURCE) == pytest.approx((1 / 7 + 2 / 6 + 3 / 5 + 3 / 4) / 12)


def test_sari_ignores_case_and_parts_punctuation() -> None:
    assert sari("ABOUT 95 SPECIES .", "about 95 species.", SOURCE) == 1


def test_all_scores_are_known_by_name_and_take_the_prompt() -> None:
    assert list(SCORES) == ["exact_match", "first_word", "rouge_l", "sari", "edit_similarity"]
    for name, score in SCORES.items():
        check_score(name)
        assert score("95 species are now accepted", "95 species are now accepted", SOURCE) == pytest.approx(1)


def test_an_unknown_score_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(BenchmarkError) as caught:
        check_score("rougel", "benchmark.text.scores.MeetingBank")
    assert str(caught.value) == (
        "benchmark.text.scores.MeetingBank=rougel: choose one of exact_match, first_word, rouge_l, sari, "
        "edit_similarity; did you mean rouge_l?"
    )
    with pytest.raises(BenchmarkError, match=r"^benchmark.text.score=accuracy: choose one of [\w, ]*$"):
        check_score("accuracy")
