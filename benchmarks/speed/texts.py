"""A stream of small text tasks and a decoder of 260,000 random parameters for it, made on the spot."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

WORDS = [f"w{number}" for number in range(508)]
LABELS, LONGEST = 5, 60  # words of a text, at most


def decoder(folder: Path) -> Path:
    """Of the shape of a small Llama, with a tokenizer of whole words."""
    torch.manual_seed(0)
    layers = {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 5}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "tie_word_embeddings": True}
    config = LlamaConfig(vocab_size=len(WORDS) + 4, max_position_embeddings=256, **layers, **heads)  # type: ignore[arg-type]
    logging.disable_progress_bar()
    LlamaForCausalLM(config).save_pretrained(folder)
    numbers = {word: number for number, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    backend = Tokenizer(WordLevel(numbers, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **named).save_pretrained(folder)
    return folder


def text_tasks(folder: Path, tasks: int, train: int, test: int) -> Path:
    """So many tasks of five labels of two words, with so many rows to learn and to test; texts of many lengths."""
    generator = numpy.random.default_rng(0)
    for task in range(tasks):
        labels = [" ".join(generator.choice(WORDS, 2)) for _ in range(LABELS)]
        (folder / f"task{task:02}").mkdir(parents=True)
        for split, rows in (("train", train), ("test", test)):
            lines = []
            for row in range(rows):
                words = generator.choice(WORDS, int(generator.integers(5, LONGEST)))
                words[-1] = WORDS[LABELS * task + row % LABELS]  # tells the label
                lines.append(json.dumps({"text": " ".join(words), "label": labels[row % LABELS]}))
            (folder / f"task{task:02}" / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder
