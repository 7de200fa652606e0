"""Backbones that write answers, against transformers on single rows without any padding."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.dataset import Batch, BenchmarkError
from benchmarks.models.backbones import check_backbone
from benchmarks.models.heads import HeadConfig
from benchmarks.models.writer import AnswerWriter
from benchmarks.sources import models_root
from benchmarks.texts.tokens import tokenise_answers, tokenise_texts
from orchestrator.settings.compose import load_experiment
from tests.support.models import ANSWER_LENGTH, adapted, built, free_task, labelled_task, option_likelihoods, writer
from tests.support.tiny import END, changed, named

STORIES = models_root() / "stories260K"
KINDS = ("llama", "gpt2", "t5", "bart")
every_kind = pytest.mark.parametrize("kind", KINDS)
PROMPTS = ["the cat sees a big red bird", "yes", "the dog likes no fish", "a small blue world eats", "bad"]
ANSWERS = ["good", "", "a green fish sees the dog", "no sports", "the bird eats"]
OPTIONS = ["yes", "no good bad world", "big cat", "red"]


@pytest.fixture
def model(tiny_models: dict[str, Path], kind: str) -> AnswerWriter:
    return writer(tiny_models[kind])


def tokens_of(model: AnswerWriter, prompts: list[str], answers: list[str]) -> tuple[Tensor, Tensor]:
    return (
        tokenise_texts(model.tokenizer, prompts, 32, keep_end=True),
        tokenise_answers(model.tokenizer, answers, ANSWER_LENGTH),
    )


def batch_of(model: AnswerWriter, prompts: list[str] = PROMPTS, answers: list[str] = ANSWERS) -> Batch:
    inputs, tokens = tokens_of(model, prompts, answers)
    return Batch(inputs, torch.zeros(len(prompts), dtype=torch.long), tokens, tuple(answers))


def row(tokens: Tensor) -> Tensor:
    """Tokens [1, length] without padding."""
    return tokens[None, tokens >= 0].long()


def plain_loss(model: AnswerWriter, prompt: Tensor, answer: Tensor) -> Tensor:
    """What transformers says the loss of one answer is, its mean over the answer's tokens."""
    prompt, answer = row(prompt), row(answer)
    if model.backbone.config.is_encoder_decoder:
        return model.backbone(input_ids=prompt, labels=answer).loss
    labels = torch.cat([torch.full_like(prompt, -100), answer], 1)
    return model.backbone(input_ids=torch.cat([prompt, answer], 1), labels=labels).loss


def plain_answer(model: AnswerWriter, prompt: Tensor) -> str:
    """One greedy answer, a token at a time, with nothing kept between them."""
    encodes = model.backbone.config.is_encoder_decoder
    written = torch.tensor([[model.backbone.config.decoder_start_token_id]]) if encodes else row(prompt)
    start = written.shape[1]
    for _ in range(ANSWER_LENGTH):
        given = {"input_ids": row(prompt), "decoder_input_ids": written} if encodes else {"input_ids": written}
        written = torch.cat([written, model.backbone(**given).logits[:, -1:].argmax(2)], 1)
        if written[0, -1] == END:
            break
    return model.tokenizer.decode(written[0, start:], skip_special_tokens=True)


@every_kind
@torch.no_grad()
def test_the_loss_of_a_row_is_that_of_transformers(model: AnswerWriter) -> None:
    batch = batch_of(model)
    assert batch.answers is not None
    expected = torch.stack([plain_loss(model, *pair) for pair in zip(batch.inputs, batch.answers, strict=True)])
    assert torch.allclose(model(batch, free_task()), expected, atol=1e-5)
    assert len(set(expected.tolist())) == len(PROMPTS)


@every_kind
@torch.no_grad()
def test_the_loss_depends_neither_on_padding_nor_on_other_rows(model: AnswerWriter) -> None:
    batch = batch_of(model)
    assert batch.answers is not None
    loss = model(batch, free_task())
    wider = replace(batch, inputs=functional.pad(batch.inputs, (0, 7), value=-1))
    longer = replace(wider, answers=functional.pad(batch.answers, (0, 3), value=-1))
    assert torch.allclose(model(longer, free_task()), loss, atol=1e-5)
    alone = [Batch(batch.inputs[i : i + 1], batch.labels[:1], batch.answers[i : i + 1]) for i in range(len(PROMPTS))]
    assert torch.allclose(torch.cat([model(one, free_task()) for one in alone]), loss, atol=1e-5)


@every_kind
def test_the_gradient_is_that_of_transformers(tiny_models: dict[str, Path], kind: str) -> None:
    model = adapted(writer(tiny_models[kind]))
    assert isinstance(model, AnswerWriter)
    batch = batch_of(model)
    assert batch.answers is not None
    parameters = [p for _, p in model.adapters()]
    found = torch.autograd.grad(model(batch, free_task()).sum(), parameters)
    plain = torch.stack([plain_loss(model, *pair) for pair in zip(batch.inputs, batch.answers, strict=True)]).sum()
    expected = torch.autograd.grad(plain, parameters)
    assert all(e.abs().sum() > 0 for e in expected)
    assert all((f - e).norm() <= 1e-4 * e.norm() for f, e in zip(found, expected, strict=True))


@every_kind
@pytest.mark.parametrize("options", [OPTIONS, ["yes", "no", "bad"]])
@torch.no_grad()
def test_options_are_as_likely_as_each_of_them_alone(model: AnswerWriter, options: list[str]) -> None:
    prompts, answers = (tokens.long() for tokens in tokens_of(model, PROMPTS, options))
    found = option_likelihoods(model, prompts, answers)
    plain = [[-plain_loss(model, prompt, answer) * (answer >= 0).sum() for answer in answers] for prompt in prompts]
    assert torch.allclose(found, torch.tensor(plain), atol=1e-4)
    repeated = [model.likelihoods(prompts, answer.expand(len(prompts), -1)).sum(1) for answer in answers]
    assert torch.allclose(found, torch.stack(repeated, 1), atol=1e-4)


@every_kind
@torch.no_grad()
def test_options_of_a_single_token_are_read_off_the_prompt(model: AnswerWriter) -> None:
    prompts, answers = (tokens.long() for tokens in tokens_of(model, PROMPTS, OPTIONS))
    found = option_likelihoods(model, prompts, answers[:, :1])
    plain = [[-plain_loss(model, prompt, answer[:1]) for answer in answers] for prompt in prompts]
    assert torch.allclose(found, torch.tensor(plain), atol=1e-4)


@every_kind
@torch.no_grad()
def test_answers_are_written_greedily_whatever_the_other_prompts_are(model: AnswerWriter) -> None:
    prompts = batch_of(model).inputs.long()
    expected = [plain_answer(model, prompt) for prompt in prompts]
    assert len({len(answer.split()) for answer in expected}) > 1, "answers end at different lengths"
    assert model.written(prompts) == expected
    assert model.written(functional.pad(prompts, (0, 5), value=-1)) == expected
    assert [model.written(row(prompt))[0] for prompt in prompts] == expected


@every_kind
@torch.no_grad()
def test_the_folder_s_own_way_of_writing_is_left_aside(tiny_models: dict[str, Path], tmp_path: Path, kind: str) -> None:
    folder = changed(tiny_models[kind], tmp_path / "model")
    own = {"do_sample": True, "temperature": 9.0, "repetition_penalty": 5.0, "max_length": 3, "forced_bos_token_id": 7}
    (folder / "generation_config.json").write_text(json.dumps(own))
    model = writer(folder)
    prompts = batch_of(model).inputs.long()
    assert model.written(prompts) == [plain_answer(model, prompt) for prompt in prompts]


@every_kind
@torch.no_grad()
def test_a_labelled_task_is_scored_by_its_likeliest_option(model: AnswerWriter) -> None:
    batch = batch_of(model)
    task = replace(labelled_task(*OPTIONS), classes=range(4, 8))
    options = tokenise_answers(model.tokenizer, OPTIONS, ANSWER_LENGTH).long()
    likeliest = option_likelihoods(model, batch.inputs.long(), options).argmax(1) + 4
    right = replace(batch, labels=likeliest)
    assert model.scores(right, task, [range(8)]).tolist() == [[1.0]] * len(PROMPTS)
    labels = likeliest.clone()
    labels[1], labels[3] = 4 + (labels[1] - 3) % 4, 4 + (labels[3] - 3) % 4
    wrong = replace(batch, labels=labels)
    assert model.scores(wrong, task, [range(4, 8), range(8)]).tolist() == [[1.0], [0.0], [1.0], [0.0], [1.0]]


@every_kind
@torch.no_grad()
def test_a_free_task_is_scored_by_what_is_written(model: AnswerWriter) -> None:
    batch = batch_of(model)
    answers = model.written(batch.inputs.long())
    references = (answers[0], "never said", answers[2], answers[3] + " cat", answers[4])
    found = model.scores(replace(batch, references=references), free_task(), [range(0)])
    assert found.tolist() == [[1.0], [0.0], [1.0], [0.0], [1.0]]
    assert found.dtype == torch.float64
    close = model.scores(replace(batch, references=references), free_task("edit_similarity"), [range(0)])
    assert 0 < close[3].item() < 1


@every_kind
def test_scores_get_the_prompts_as_text(model: AnswerWriter) -> None:
    assert model.text(batch_of(model).inputs) == PROMPTS


@pytest.mark.parametrize("kind", KINDS)
def test_a_writer_learns_answers_with_their_end(tiny_models: dict[str, Path], kind: str) -> None:
    torch.manual_seed(0)
    targets = {"llama": ["mlp.up_proj", "v_proj"], "bart": ["fc1", "v_proj"]}.get(kind)
    model = adapted(built(named(tiny_models[kind], targets=targets)), rank=8)
    assert isinstance(model, AnswerWriter)
    batch = batch_of(model)
    optimizer = torch.optim.Adam([p for _, p in model.adapters()], lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        model(batch, free_task()).mean().backward()
        optimizer.step()
    assert model.eval().scores(batch, free_task(), [range(0)]).mean() >= 0.8
    assert model.head_parameters(free_task()) == []


@pytest.mark.realdata
@pytest.mark.skipif(not STORIES.is_dir(), reason="stories260K is not in the model folder")
@torch.no_grad()
def test_stories260k_tells_a_story() -> None:
    model = built(load_experiment(["backbone=stories260k"]).backbone).eval()
    assert isinstance(model, AnswerWriter)
    assert len(model.blocks()) == 5 and model.targets == ("q_proj", "v_proj")
    prompts, options = tokens_of(model, ["Once upon a time, there was a little", "Lily was a"], ["girl", "xq"])
    answers = model.written(prompts.long())
    assert answers == [plain_answer(model, prompt) for prompt in prompts]
    assert answers[0].startswith("girl named Lily.")
    assert option_likelihoods(model, prompts.long(), options.long()).argmax(1).tolist() == [0, 0]


def test_a_head_is_refused_for_a_backbone_that_writes(tiny_models: dict[str, Path]) -> None:
    with pytest.raises(BenchmarkError, match=r"^head.kind=gaussian: .* its answers without a head; leave head out$"):
        check_backbone(named(tiny_models["llama"]), HeadConfig(kind="gaussian"))
    check_backbone(named(tiny_models["bert"]), HeadConfig(kind="gaussian"))
