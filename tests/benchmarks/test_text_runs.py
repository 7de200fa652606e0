"""Texts through whole runs: an encoder with a head, and models that write label words or free answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.dataset import Batch
from benchmarks.models.writer import AnswerWriter
from orchestrator.launch import train
from orchestrator.run import checkpoint
from orchestrator.run.learner import Learner, part
from orchestrator.run.session import read_stream
from orchestrator.run.sharding import Place, load_adapters_and_head
from orchestrator.settings.compose import load_experiment
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError
from tests.support import planted
from tests.support.interruption import train_until
from tests.support.tiny import tiny_model

Make = Callable[..., Experiment]
TASKS = {"animals": {"yes": "cat", "no": "dog"}, "colours": {"good": "red", "bad": "blue"}}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data and three tiny models, beside each other."""
    folder = tmp_path_factory.mktemp("texts")
    for name, marks in TASKS.items():
        planted.text_task(folder / "labelled" / name, planted.labelled(marks, 24), planted.labelled(marks, 10))
        planted.text_task(folder / "free" / name, planted.answered(marks, 24), planted.answered(marks, 10))
    for kind in ("bert", "llama", "t5"):
        tiny_model(folder / kind, kind)
    return folder


@pytest.fixture
def make(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Experiments on labelled or free tasks: ``make("bert", "labelled")``."""
    monkeypatch.setenv("EVERGREEN_CACHE", str(models / "cache"))
    places = ["benchmark=jsonl_folder", f"storage={tmp_path / 'runs'}", "tracking.enabled=false", "name=a"]
    chosen = ["method=lora", "method.rank=8", "train.batch_size=12"]
    chosen += ["benchmark.text.answer_length=3", "benchmark.text.length=32"]

    def experiment(kind: str, data: str, *settings: str) -> Experiment:
        return load_experiment(
            [*places, *chosen, f"backbone.name={models / kind}", f"benchmark.path={models / data}", *settings]
        )

    return experiment


def learned(experiment: Experiment) -> list[float]:
    """The score on each task just after it was learned; every score was at chance or below before."""
    result = train(experiment)
    assert max(result["initial_accuracy"]) <= 0.6
    return [row[index] for index, row in enumerate(result["accuracy_matrix"])]


def test_an_encoder_learns_labelled_tasks(make: Make) -> None:
    rates = ["train.learning_rate=3e-3", "train.head_learning_rate=1e-2"]
    assert min(learned(make("bert", "labelled", "train.epochs=14", *rates))) >= 0.9


def test_a_decoder_learns_label_words(make: Make) -> None:
    experiment = make("llama", "labelled", "train.epochs=8", "train.learning_rate=1e-2")
    assert min(learned(experiment)) >= 0.9
    learner = as_trained(experiment)
    task = learner.stream.tasks[1]
    assert task.options == ["bad", "good"] and task.score == "accuracy"
    chosen = [likeliest(learner, task.test.take(torch.tensor([row])).batch(), task.options) for row in range(20)]
    right = [answer + 2 == label for answer, label in zip(chosen, task.test.batch().labels.tolist(), strict=True)]
    assert learner.scores([task], "test", 2) == [[sum(right) / 20]]


def likeliest(learner: Learner, batch: Batch, options: list[str]) -> int:
    """The option whose words are likeliest after the prompt, each read by itself."""
    assert isinstance(learner.model, AnswerWriter)
    prompt = batch.inputs[0][batch.inputs[0] >= 0].tolist()
    found = []
    for option in options:
        answer = [*learner.model.tokenizer(option, add_special_tokens=False)["input_ids"], 2]
        with torch.no_grad():
            read = learner.model.eval().backbone(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        found.append(sum(float(read[len(prompt) - 1 + place, token]) for place, token in enumerate(answer)))
    return found.index(max(found))


def as_trained(experiment: Experiment) -> Learner:
    learner = Learner(experiment, read_stream(experiment), Place(), None)
    load_adapters_and_head(learner.model, part(tensors_of(experiment), "model."))
    return learner


def tensors_of(experiment: Experiment) -> dict[str, Tensor]:
    found = checkpoint.load(experiment.folder)
    assert found is not None
    return found[0]


def test_a_decoder_learns_to_write_free_answers(make: Make) -> None:
    experiment = make("llama", "free", "train.epochs=8", "train.learning_rate=3e-2")
    assert min(learned(experiment)) >= 0.8
    learner = as_trained(experiment)
    task = learner.stream.tasks[1]
    assert task.score == "exact_match" and task.options == [] and len(task.classes) == 0
    batch = task.test.batch()
    assert isinstance(learner.model, AnswerWriter)
    written = learner.model.eval().written(batch.inputs.long())
    assert set(batch.references) == {"good", "bad"}
    right = [answer == reference for answer, reference in zip(written, batch.references, strict=True)]
    assert learner.scores([task], "test", 2) == [[sum(right) / 20]]


def test_free_answers_are_judged_by_the_score_of_their_task(make: Make) -> None:
    experiment = make("llama", "free", "train.epochs=1", "benchmark.text.scores={animals: rouge_l}")
    assert train(experiment)["scores"] == ["rouge_l", "exact_match"]
    with pytest.raises(UserError, match=r"^benchmark.text.scores.animals=rouge: choose one of exact_match, .*"):
        read_stream(make("llama", "free", "benchmark.text.scores={animals: rouge}"))


def test_an_encoder_cannot_write_and_images_are_no_texts(make: Make) -> None:
    with pytest.raises(UserError, match=r"^benchmark=jsonl_folder: animals has free answers; choose a backbone that "):
        read_stream(make("bert", "free"))
    with pytest.raises(UserError, match=r"^benchmark=jsonl_folder: its rows are texts; choose a backbone that reads"):
        read_stream(make("bert", "labelled", "backbone.name=micro_vit"))


@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_a_checkpoint_of_a_language_model_holds_no_frozen_tensor(make: Make, kind: str) -> None:
    """The embeddings of t5 are tied: one tensor under several names."""
    experiment = make(kind, "labelled", "train.epochs=1")
    train(experiment)
    names = [name.removeprefix("model.") for name in tensors_of(experiment) if name.startswith("model.")]
    assert names and all("lora_" in name or name.startswith("head.") for name in names)


def test_a_stopped_run_of_a_model_with_tied_embeddings_goes_on(make: Make) -> None:
    settings = ["train.epochs=1", "checkpoint.every=1"]
    whole = train(make("t5", "labelled", *settings, "name=whole"))
    train_until(make("t5", "labelled", *settings), 1, 2)
    assert train(make("t5", "labelled", *settings))["accuracy_matrix"] == whole["accuracy_matrix"]
    one, other = (tensors_of(make("t5", "labelled", f"name={name}")) for name in ("whole", "a"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_frozen_model_that_writes_takes_no_step(make: Make) -> None:
    result = train(make("llama", "labelled", "method=frozen"))
    assert result["accuracy_matrix"] == [result["initial_accuracy"]] * 2
