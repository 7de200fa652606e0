"""Tiny transformers models with random weights and a tokenizer of words, as folders that a user could name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from benchmarks.models.config import BackboneConfig

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
PAD, START, END, UNKNOWN = range(4)
NOUNS = ["a", "the", "cat", "dog", "bird", "fish", "world", "sports"]
OTHERS = ["sees", "likes", "eats", "red", "green", "blue", "big", "small", "yes", "no", "good", "bad"]
WORDS = NOUNS + OTHERS
VOCABULARY = len(SPECIAL) + len(WORDS)
POSITIONS = 64
SEEDS = {"bert": 0, "llama": 10, "gpt2": 10, "t5": 6, "bart": 0}  # with these, answers are of many lengths
# What each tokenizer puts around a text, and whether it has a token for padding.
TOKENIZERS = {
    "bert": ("<s> $A </s>", True),
    "llama": ("<s> $A", False),
    "gpt2": ("$A", False),
    "t5": ("$A </s>", True),
    "bart": ("<s> $A </s>", True),
}


def tiny_model(folder: Path, kind: str) -> Path:
    """A model of kind ``bert``, ``llama``, ``gpt2``, ``t5`` or ``bart`` with its tokenizer, in ``folder``."""
    torch.manual_seed(SEEDS[kind])
    MODELS[kind]().save_pretrained(folder)
    template, pads = TOKENIZERS[kind]
    tokenizer(template, pads).save_pretrained(folder)
    return folder


def named(folder: Path, **settings: Any) -> BackboneConfig:
    return BackboneConfig.model_validate({"name": str(folder)} | settings)


def changed(folder: Path, target: Path, **settings: Any) -> Path:
    """A copy of ``folder`` with other settings in its config.json."""
    shutil.copytree(folder, target)
    about = json.loads((target / "config.json").read_text()) | settings
    (target / "config.json").write_text(json.dumps(about))
    return target


def tokenizer(template: str, pads: bool) -> PreTrainedTokenizerFast:
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(SPECIAL + WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.post_processor = TemplateProcessing(single=template, special_tokens=[("<s>", START), ("</s>", END)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | ({"pad_token": "<pad>"} if pads else {})
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def sizes(**other: Any) -> dict[str, Any]:
    """Settings by the names that most architectures share; weights are large, so that answers differ."""
    shared = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens = {"pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END}
    return shared | tokens | {"initializer_range": 0.3} | other


def bert() -> PreTrainedModel:
    return BertModel(BertConfig(**sizes(intermediate_size=64, max_position_embeddings=POSITIONS)))


def llama() -> PreTrainedModel:
    own = {"intermediate_size": 64, "max_position_embeddings": POSITIONS, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes(num_hidden_layers=3, pad_token_id=None, **own)))


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(**sizes(pad_token_id=None, max_position_embeddings=POSITIONS)))


def t5() -> PreTrainedModel:
    own = {"d_kv": 8, "d_ff": 64, "decoder_start_token_id": PAD, "initializer_factor": 1.5}
    return T5ForConditionalGeneration(T5Config(**sizes(num_layers=2, num_decoder_layers=2, **own)))


def bart() -> PreTrainedModel:
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "decoder_start_token_id": END}
    own = {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "init_std": 0.3}
    width = {"vocab_size": VOCABULARY, "d_model": 32, "max_position_embeddings": POSITIONS}
    return BartForConditionalGeneration(BartConfig(**width, **heads, **own, pad_token_id=PAD, eos_token_id=END))


MODELS: dict[str, Callable[[], PreTrainedModel]] = {"bert": bert, "llama": llama, "gpt2": gpt2, "t5": t5, "bart": bart}
