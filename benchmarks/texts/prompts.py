"""Labelled texts as prompts for a model that writes its answers; where one is too long, its text is cut.

The options and what stands around them are kept: cut from the left, a prompt with many options would hold no text at
all, and all prompts would be the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from string import Formatter

from transformers import PreTrainedTokenizerBase

from benchmarks.dataset import BenchmarkError

FEWEST = 16  # tokens of a text that have to fit beside the options
ESCAPES = {r"\n": "\n", r"\t": "\t"}  # as they are typed in a shell

Make = Callable[[str], str]  # a text to its prompt


def as_prompt(template: str, text: str, options: Sequence[str]) -> str:
    """Put a labelled text and its label words into ``benchmark.text.template``."""
    setting = f"benchmark.text.template={template!r}"
    for typed, meant in ESCAPES.items():
        template = template.replace(typed, meant)
    try:
        fields = {field for _, field, _, _ in Formatter().parse(template) if field is not None}
        filled = template.format_map({"text": text, "options": ", ".join(options)})
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        reason = f"{error} cannot be filled in"
        raise BenchmarkError(f"{setting}: {reason}; the fields are {{text}} and {{options}}") from None
    if "text" not in fields:
        raise BenchmarkError(f"{setting}: {{text}} is missing in it")
    return filled


def fitted(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], makes: Sequence[Make], length: int
) -> tuple[list[str], list[int]]:
    """The prompt of each text in ``length`` tokens at most, and which of the texts lost their end for that.

    BenchmarkError where what stands around a text leaves too little room for it.
    """
    prompts = [make(text) for text, make in zip(texts, makes, strict=True)]
    long = [row for row, prompt in enumerate(prompts) if tokens_of(tokenizer, prompt) > length]
    for row in long:
        prompts[row] = shortened(tokenizer, texts[row], makes[row], length)
    return prompts, long


def shortened(tokenizer: PreTrainedTokenizerBase, text: str, make: Make, length: int) -> str:
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    around = tokens_of(tokenizer, make(""))
    if length - around < min(FEWEST, len(ids)):
        raise BenchmarkError(
            f"benchmark.text.length={length}: a prompt's options and what stands around them take {around} tokens and "
            f"leave too few for its text; use {around + FEWEST} or more, or fewer classes a task"
        )
    kept = length - around
    # Tokens at the seams may join or part, so that the first guess can be one too many.
    while tokens_of(tokenizer, prompt := make(str(tokenizer.decode(ids[:kept])))) > length:
        kept -= 1
    return prompt


def tokens_of(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    return len(tokenizer(text, verbose=False)["input_ids"])
