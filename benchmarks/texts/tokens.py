"""Texts as tokens: made once, kept on disk, and read over a memory map by all runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy
import tokenizers
import torch
import transformers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from benchmarks.account import Account
from benchmarks.cache import cached
from benchmarks.dataset import BenchmarkError
from benchmarks.formats import PADDING, Prepared, TextFormat

Fits = Callable[[PreTrainedTokenizerBase], tuple[Sequence[str], list[int]]]
NOTES, SHOWN = "notes.json", 40  # characters of a text that a note shows
RULES = 2  # counts up where the same texts give other tokens than before
CHUNK = 1000  # texts tokenised in one call, to bound the memory of Python's integers
TOKENIZER_FILES = ("*.json", "*.txt", "*.model")


def load_tokenizer(format: TextFormat) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub name; code that comes with it is not run."""
    options = {"gguf_file": format.gguf_file} if format.gguf_file else {}
    try:
        return AutoTokenizer.from_pretrained(format.tokenizer, trust_remote_code=False, **options)
    except (ImportError, OSError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BenchmarkError(f"{format.tokenizer}: its tokenizer cannot be loaded ({reason}); name another") from None


def prepare_texts(
    texts: Sequence[str],
    answers: Sequence[str] | None,
    format: TextFormat,
    length: int,
    answer_length: int,
    fits: Fits | None = None,
    options: Sequence[Sequence[str]] = (),
) -> Prepared:
    """Tokens int32 [n, longest] of ``texts``, and of ``answers`` where given, padded with -1 at the end.

    Special tokens are those that the tokenizer adds by itself. A text of more than ``length`` tokens loses its end,
    or its start where the backbone writes answers, since the question stands at the end of a prompt; where given,
    ``fits`` cuts them before that, and says which. All texts are tokenised the first time; later calls, in any
    process, find them on disk. BenchmarkError where two of a task's ``options`` are the same tokens.
    """
    made_from = {
        "texts": digest(texts),
        "answers": None if answers is None else digest(answers),
        "length": length,
        "answer_length": answer_length,
        "keep_end": format.answers,
        "fits": fits is not None,
        "options": [list(words) for words in options],
        "rules": RULES,
        "tokenizer": identity(format),
        # Another version may split the same text into other tokens.
        "libraries": [tokenizers.__version__, transformers.__version__],
    }

    def make(folder: Path) -> None:
        tokenizer, account = load_tokenizer(format), Account()
        fitting, cut = fits(tokenizer) if fits else (texts, [])
        tokens = tokenise_texts(tokenizer, fitting, length, keep_end=format.answers)
        save(folder / "texts.npy", tokens)
        note_cut(account, texts, cut or too_long(tokenizer, fitting, tokens, length), f"texts cut to {length} tokens")
        if answers is not None:
            for words in options:
                check_apart(tokenizer, words, answer_length)
            found = tokenise_answers(tokenizer, answers, answer_length)
            save(folder / "answers.npy", found)
            # Only one that was cut has no end token.
            ended = (found == tokenizer.eos_token_id).any(1).tolist()
            cut = [row for row, whole in enumerate(ended) if not whole]
            note_cut(account, answers, cut, f"answers cut to {answer_length} tokens")
        (folder / NOTES).write_text(json.dumps(account.as_list()))

    folder, fresh = cached("tokens", made_from, make)
    return Prepared(
        load(folder / "texts.npy"),
        kept=torch.ones(len(texts), dtype=torch.bool),
        answers=None if answers is None else load(folder / "answers.npy"),
        fresh=len(texts) if fresh else 0,
        account=Account.from_list(json.loads((folder / NOTES).read_text())),
    )


def check_apart(tokenizer: PreTrainedTokenizerBase, options: Sequence[str], length: int) -> None:
    """BenchmarkError for label words of a task that are the same tokens: none could be told from the other."""
    known: dict[tuple[int, ...], str] = {}
    for word, row in zip(options, tokenise_answers(tokenizer, options, length).tolist(), strict=True):
        other = known.setdefault(tuple(row), word)
        if other != word:
            raise BenchmarkError(
                f"benchmark.text.answer_length={length}: the labels {other!r} and {word!r} are the same tokens for "
                "this backbone; rename one, raise the length, or choose another backbone"
            )


def note_cut(account: Account, texts: Sequence[str], cut: Sequence[int], what: str) -> None:
    if cut:
        words = " ".join(texts[cut[0]].split())
        account.note(what, f"'{words[:SHOWN]} …'", len(cut))


def too_long(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], tokens: Tensor, length: int) -> list[int]:
    """Which of the texts have more than the ``length`` tokens that were kept of them."""
    full = ((tokens != PADDING).sum(1) == length).nonzero().flatten().tolist()
    return [row for row in full if len(tokenizer(texts[row], verbose=False)["input_ids"]) > length]


def tokenise_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int, keep_end: bool) -> Tensor:
    """Tokens int32 [n, longest] with the tokenizer's special tokens, ``length`` at most."""
    special = tokenizer.num_special_tokens_to_add()
    if length <= special:
        raise BenchmarkError(f"benchmark.text.length={length}: {special} are special tokens; use a larger one")
    tokenizer.truncation_side = "left" if keep_end else "right"
    return padded(tokenizer, texts, length, truncation=True, max_length=length)


def tokenise_answers(tokenizer: PreTrainedTokenizerBase, answers: Sequence[str], length: int) -> Tensor:
    """Tokens int32 [n, longest], each answer with the end token, so that a model learns to stop.

    An answer of more than ``length`` tokens, the end token included, is cut and has no end token.
    """
    if tokenizer.eos_token is None:
        raise BenchmarkError(f"{tokenizer.name_or_path}: its tokenizer has no end token; name another backbone")
    tokens = padded(tokenizer, answers, length, add_special_tokens=False)
    # By hand: only some tokenizers add an end token, and truncation would cut it off.
    room = torch.nn.functional.pad(tokens, (0, 1), value=PADDING)
    ends = (room != PADDING).sum(1, keepdim=True)
    return room.scatter(1, ends, tokenizer.eos_token_id)[:, :length].clone()


def padded(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], most: int, **options: Any) -> Tensor:
    """Tokens int32 [n, longest], at most ``most`` of each: one endless text must not make all rows as long."""
    rows: list[Tensor] = []
    for start in range(0, len(texts), CHUNK):
        found = tokenizer(list(texts[start : start + CHUNK]), **options, verbose=False)["input_ids"]
        rows += [torch.tensor(row[:most], dtype=torch.int32) for row in found]
    return pad_sequence(rows, batch_first=True, padding_value=PADDING)


def save(file: Path, tokens: Tensor) -> None:
    numpy.save(file, tokens.numpy(), allow_pickle=False)


def load(file: Path) -> Tensor:
    """An array over a memory map; pages that someone writes to are copied, the file stays as it is."""
    return torch.from_numpy(numpy.load(file, mmap_mode="c", allow_pickle=False))


def digest(texts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()


def identity(format: TextFormat) -> list[Any]:
    """What identifies a tokenizer: its name on the hub, or the files of its folder."""
    folder = Path(format.tokenizer)
    if not folder.is_dir():
        return [format.tokenizer, format.gguf_file]
    if format.gguf_file is not None:
        about = (folder / format.gguf_file).stat()  # too large to be hashed for each split
        return [format.tokenizer, format.gguf_file, about.st_size, about.st_mtime_ns]
    files = sorted(file for pattern in TOKENIZER_FILES for file in folder.glob(pattern))
    return [[file.name, hashlib.sha256(file.read_bytes()).hexdigest()] for file in files]
