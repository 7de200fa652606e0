"""From the rows that a stream uses to arrays that its backbone reads, decoded or tokenised once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.dataset import FREE, BenchmarkError, Records, StreamConfig
from benchmarks.formats import Format, Prepared, TextFormat
from benchmarks.images.decode import prepare_images
from benchmarks.parts import Part


def prepare(
    records: Records, rows: Tensor, owners: Tensor, parts: list[Part], config: StreamConfig, form: Format
) -> Prepared:
    """The rows ``rows`` [n] of ``records``, each used by the task ``parts[owners[row]]``."""
    if isinstance(form, TextFormat):
        return texts(records, rows, [parts[owner] for owner in owners.tolist()], config, form)
    if isinstance(records.items, Tensor):
        return Prepared(records.items[rows], torch.ones(len(rows), dtype=torch.bool))
    files = [item for item in taken(records, rows) if isinstance(item, Path)]
    if len(files) < len(rows):
        raise BenchmarkError(f"benchmark={config.name}: its rows are texts; choose a backbone that reads them")
    return prepare_images(files, form.size, config.skip_bad)


def texts(records: Records, rows: Tensor, owners: list[Part], config: StreamConfig, form: TextFormat) -> Prepared:
    """Tokens; for a backbone that writes, a labelled text becomes a prompt and its label word the answer."""
    from benchmarks.texts.prompts import fitted  # imports transformers
    from benchmarks.texts.tokens import prepare_texts

    check_length(config, form)
    contents = [item for item in taken(records, rows) if isinstance(item, str)]
    if len(contents) < len(rows):
        raise BenchmarkError(f"benchmark={config.name}: its rows are images; choose a backbone that reads them")
    labels = records.labels[rows].tolist()
    if not form.answers:
        if FREE in labels:
            task = owners[labels.index(FREE)].name
            raise BenchmarkError(f"benchmark={config.name}: {task} has free answers; choose a backbone that writes")
        named = [with_name(text, part, config) for text, part in zip(contents, owners, strict=True)]
        return prepare_texts(named, None, form, config.text.length, config.text.answer_length)
    makes = [maker(part, config, labelled=label != FREE) for label, part in zip(labels, owners, strict=True)]
    fits = None if FREE in labels else partial(fitted, texts=contents, makes=makes, length=config.text.length)
    prompts = [make(text) for text, make in zip(contents, makes, strict=True)]
    answers = [
        records.answers[row] if label == FREE else part.options[part.classes.index(label)]
        for row, label, part in zip(rows.tolist(), labels, owners, strict=True)
    ]
    # Some tasks may have no options, as their answers are free.
    options = [words for words in {id(part): part.options for part in owners}.values() if words]
    return prepare_texts(prompts, answers, form, config.text.length, config.text.answer_length, fits, options)


def maker(part: Part, config: StreamConfig, labelled: bool) -> Callable[[str], str]:
    """What makes a text of ``part`` a prompt: a free one is a prompt already."""
    from benchmarks.texts.prompts import as_prompt

    def make(text: str) -> str:
        return with_name(as_prompt(config.text.template, text, part.options) if labelled else text, part, config)

    return make


def check_length(config: StreamConfig, form: TextFormat) -> None:
    """BenchmarkError where the settings allow texts, with their answers, beyond the backbone's positions."""
    room = config.text.answer_length if form.answers else 0
    if form.limit is not None and config.text.length + room > form.limit:
        beside = f" with an answer of {room}" if room else ""
        raise BenchmarkError(
            f"benchmark.text.length={config.text.length}: the backbone reads {form.limit} tokens{beside} at most; "
            f"use {form.limit - room} or less"
        )


def with_name(text: str, part: Part, config: StreamConfig) -> str:
    return f"Dataset: {part.name}\n{text}" if config.text.add_dataset_name else text


def taken(records: Records, rows: Tensor) -> list[Path | str | Tensor]:
    return [records.items[row] for row in rows.tolist()]
