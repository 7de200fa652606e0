"""Backbones that write their answers: decoders and encoder-decoders of transformers.

A labelled task is answered by the likeliest of its label words, each scored whole with its end token; a free answer is
written greedily and judged by the task's score.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional
from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from benchmarks.dataset import Batch
from benchmarks.formats import PADDING
from benchmarks.models.model import Model, trimmed
from benchmarks.models.options import likeliest
from benchmarks.texts.scores import SCORES
from benchmarks.texts.tokens import tokenise_answers

if TYPE_CHECKING:
    from benchmarks.stream import Task


@dataclass(frozen=True)
class Reading:
    """Prompts that were read: logits of the answer's first token [n, words], and what reading on needs."""

    first: Tensor
    mask: Tensor
    read: Any


class AnswerWriter(Model):
    """Learns to answer prompts. Tokens are int32 [n, length], padded with -1; an answer has ``length`` at most."""

    def __init__(
        self, backbone: nn.Module, targets: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, length: int
    ) -> None:
        super().__init__(backbone, targets)
        self.tokenizer, self.length = tokenizer, length
        self.known_words: dict[tuple[str, ...], Tensor] = {}
        # The model's own may sample, or forbid tokens that its training has.
        self.backbone.generation_config = greedy(tokenizer, self.backbone.config, length)

    @abstractmethod
    def likelihoods(self, prompts: Tensor, answers: Tensor) -> Tensor:
        """Log-likelihood of each answer token [n, answer length], 0 at padding; one answer a prompt."""

    @abstractmethod
    def read(self, prompts: Tensor) -> Reading:
        """Read every prompt once, whatever answers follow it."""

    @abstractmethod
    def rest(self, reading: Reading, rows: Tensor, answers: Tensor) -> Tensor:
        """Log-likelihood [m] of all but the first token of ``answers`` [m, length] after the prompts ``rows`` [m]."""

    def forward(self, batch: Batch, task: Task) -> Tensor:
        """Mean negative log-likelihood over the tokens of each row's answer."""
        assert batch.answers is not None
        answers = trimmed(batch.answers)
        tokens = (answers != PADDING).sum(1).clamp(min=1)
        return -self.likelihoods(trimmed(batch.inputs), answers).sum(1) / tokens

    def encode(self, batch: Batch, tasks: Sequence[Task]) -> Tensor:
        """The rows' scores [n, 1]."""
        prompts = trimmed(batch.inputs)
        if tasks[0].options:
            chosen = self.likeliest(prompts, [self.words(tuple(task.options)) for task in tasks])
            starts = torch.tensor([task.classes.start for task in tasks], device=chosen.device)
            return (chosen + starts).eq(batch.labels).double()[:, None]
        rows = zip(self.written(prompts), batch.references, self.text(prompts), strict=True)
        found = [[SCORES[task.score](*row)] for task, row in zip(tasks, rows, strict=True)]
        return torch.tensor(found, dtype=torch.float64, device=prompts.device)

    def judge(self, encoded: Tensor, labels: Tensor, candidates: Sequence[Sequence[range]]) -> Tensor:
        return encoded

    def words(self, options: tuple[str, ...]) -> Tensor:
        """Tokens [options, length] of label words, kept since every batch asks for them."""
        if options not in self.known_words:
            self.known_words[options] = trimmed(tokenise_answers(self.tokenizer, options, self.length))
        return self.known_words[options]

    def likeliest(self, prompts: Tensor, options: Sequence[Tensor]) -> Tensor:
        """The number [n] of the likeliest of each prompt's ``options`` [options, length], the first of equal ones."""
        reading = self.read(prompts)
        first = reading.first.float().log_softmax(1)
        return likeliest(first, options, lambda rows, answers: self.rest(reading, rows, answers), self.most)

    def written(self, prompts: Tensor) -> list[str]:
        """Greedy answers. Shards have to go on together, so all wait for the longest answer."""
        tokens, mask = self.padded(prompts)
        written = self.backbone.generate(
            input_ids=tokens,
            attention_mask=mask.long(),
            generation_config=self.backbone.generation_config,
            # Parameters would not tell: in ``encode``, a registered forward method, they are gathered and no DTensors.
            synced_gpus=isinstance(self, FSDPModule),
        )
        start = 0 if self.backbone.config.is_encoder_decoder else tokens.shape[1]
        return self.tokenizer.batch_decode(written[:, start:], skip_special_tokens=True)

    @abstractmethod
    def padded(self, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens with their padding where this model wants it, any token there, and the mask."""

    def text(self, tokens: Tensor) -> list[str]:
        rows = [row[row != PADDING].tolist() for row in tokens.cpu()]
        return self.tokenizer.batch_decode(rows, skip_special_tokens=True)


class Decoder(AnswerWriter):
    """Prompt and answer are one sequence; prompts are padded at the start, so that answers begin in one column."""

    def padded(self, prompts: Tensor) -> tuple[Tensor, Tensor]:
        return left_padded(prompts)

    def likelihoods(self, prompts: Tensor, answers: Tensor) -> Tensor:
        tokens, mask = self.padded(prompts)
        mask = torch.cat([mask, answers != PADDING], 1)
        tokens = torch.cat([tokens, answers.clamp(min=0)], 1)
        # Logits of the answer's columns alone: those of a whole prompt are [n, length, words], often gigabytes.
        logits = self.logits(tokens, mask, keep=answers.shape[1] + 1, use_cache=False).logits[:, :-1]
        return token_likelihoods(logits, answers)

    def read(self, prompts: Tensor) -> Reading:
        tokens, mask = self.padded(prompts)
        output = self.logits(tokens, mask, keep=1, use_cache=True)
        return Reading(output.logits[:, -1], mask, output.past_key_values)

    def rest(self, reading: Reading, rows: Tensor, answers: Tensor) -> Tensor:
        """From the cached keys and values of the prompts."""
        if answers.shape[1] == 1:
            return reading.first.new_zeros(len(rows))
        cache = copy(reading.read)  # to select rows changes a cache's layers in place, their tensors it replaces
        cache.layers = [copy(layer) for layer in cache.layers]
        cache.batch_select_indices(rows)
        shown = answers[:, :-1]
        mask = torch.cat([reading.mask[rows], shown != PADDING], 1)
        output = self.logits(shown.clamp(min=0), mask, keep=shown.shape[1], use_cache=True, past_key_values=cache)
        return token_likelihoods(output.logits, answers[:, 1:]).sum(1)

    def logits(self, tokens: Tensor, mask: Tensor, keep: int, **options: Any) -> Any:
        """The model's output on ``tokens``, the last columns of what ``mask`` covers; logits of the last ``keep``."""
        # Given, since transformers would count the padding at the start as positions.
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        return self.backbone(
            input_ids=tokens, attention_mask=mask.long(), position_ids=positions, logits_to_keep=keep, **options
        )


class EncoderDecoder(AnswerWriter):
    """The encoder reads the prompt, once for all its options; the decoder writes the answer."""

    def padded(self, prompts: Tensor) -> tuple[Tensor, Tensor]:
        return prompts.clamp(min=0), prompts != PADDING

    def likelihoods(self, prompts: Tensor, answers: Tensor) -> Tensor:
        tokens, mask = self.padded(prompts)
        return token_likelihoods(self.logits(self.encoded(tokens, mask), mask, answers[:, :-1]), answers)

    def read(self, prompts: Tensor) -> Reading:
        tokens, mask = self.padded(prompts)
        hidden = self.encoded(tokens, mask)
        return Reading(self.logits(hidden, mask, prompts.new_empty(len(prompts), 0))[:, 0], mask, hidden)

    def rest(self, reading: Reading, rows: Tensor, answers: Tensor) -> Tensor:
        logits = self.logits(reading.read[rows], reading.mask[rows], answers[:, :-1])
        return token_likelihoods(logits[:, 1:], answers[:, 1:]).sum(1)

    def encoded(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """What the encoder makes of prompts, called apart so that each is read once and not for each of its options."""
        return self.backbone.get_encoder()(input_ids=tokens, attention_mask=mask.long()).last_hidden_state

    def logits(self, hidden: Tensor, mask: Tensor, shown: Tensor) -> Tensor:
        """The decoder's logits [n, length + 1, words] after its start token and each token of ``shown`` [n, length]."""
        start = shown.new_full((len(shown), 1), self.backbone.config.decoder_start_token_id)
        output = self.backbone(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            attention_mask=mask.long(),
            decoder_input_ids=torch.cat([start, shown.clamp(min=0)], 1),
            use_cache=False,
        )
        return output.logits


def greedy(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, length: int) -> GenerationConfig:
    """The likeliest token each time, up to ``length`` or the end token."""
    # Any token pads where a mask hides it; not all tokenizers have one of their own.
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return GenerationConfig(
        max_new_tokens=length,
        do_sample=False,
        num_beams=1,
        pad_token_id=padding,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=getattr(config, "decoder_start_token_id", None),
    )


def token_likelihoods(logits: Tensor, answers: Tensor) -> Tensor:
    """Log-likelihood [n, length] of ``answers`` [n, length] under ``logits`` [n, length, words], 0 at padding."""
    losses = functional.cross_entropy(logits.float().transpose(1, 2), answers, ignore_index=PADDING, reduction="none")
    return -losses


def left_padded(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Move the padding of ``tokens`` [n, length] from the end to the start (any token there), with the mask."""
    length = tokens.shape[1]
    shift = length - (tokens != PADDING).sum(1, keepdim=True)
    source = torch.arange(length, device=tokens.device) - shift
    return tokens.gather(1, source.clamp(min=0)).clamp(min=0), source >= 0
