"""Registered models answer in a process that knows nothing of the project as the run's own model does here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image
from torch import Tensor

from benchmarks.formats import PADDING
from benchmarks.models.backbones import text_format
from benchmarks.models.classifier import Classifier
from benchmarks.models.predictor import load_predictor
from benchmarks.models.writer import AnswerWriter
from benchmarks.texts.tokens import load_tokenizer
from orchestrator.launch import train
from orchestrator.records import registry
from orchestrator.records.address import database_uri
from orchestrator.register import prepare, register, register_winner
from orchestrator.run.checkpoint import write_json
from orchestrator.run.service import make_service
from orchestrator.run.session import Session
from orchestrator.run.sharding import Place
from orchestrator.settings.compose import load_experiment
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError
from tests.orchestrator.test_export import text_run, texts  # noqa: F401  a fixture
from tests.records.test_record import empty_database, make, summary  # noqa: F401  fixtures
from tests.support import planted
from tests.support.interruption import train_until
from tests.support.record import artifacts, records
from tests.test_imports import PROJECT, imported

Make = Callable[..., Experiment]
QUICK = ["benchmark.tasks=2", "train.epochs=1", "train.learning_rate=1e-2"]
# The project may be installed where the tests run: its finder is taken away.
ELSEWHERE = """
import importlib.util, json, sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]
assert not any(importlib.util.find_spec(name) for name in ("orchestrator", "methods", "benchmarks", "run"))
import mlflow, numpy, pandas
name, file, task = sys.argv[1:]
model = mlflow.pyfunc.load_model(f"models:/{name}/1")
rows = numpy.load(file) if file.endswith(".npy") else pandas.DataFrame({"text": json.load(open(file))})
example = model.predict(model.input_example)
answers = [list(model.predict(rows)), list(model.predict(rows, params={"task": task}))]
print(json.dumps({"answers": answers, "example": list(example), "modules": list(sys.modules)}))
"""


def resumed(experiment: Experiment) -> Session:
    session = Session(experiment, Place(), make_service(experiment), lambda metrics: None)
    session.resume()
    return session


def own_answers(session: Session) -> tuple[Tensor, list[list[str]]]:
    """Test rows of the last task, and the names that the run's own model gives them: among all, among the task's."""
    task, names = session.stream.tasks[-1], session.stream.class_names
    inputs, model = task.test.batch().inputs, session.learner.model.eval()
    assert isinstance(model, Classifier)
    with session.learner.method.inference(), torch.inference_mode():
        logits = model.logits(inputs)
    among = logits[:, task.classes.start :].argmax(1) + task.classes.start
    return inputs, [[names[label] for label in labels] for labels in (logits.argmax(1), among)]


def elsewhere(experiment: Experiment, rows: Path, task: str) -> dict[str, Any]:
    """What another process says, which has MLflow's address and nothing of this project."""
    hidden = ("PYTHONPATH", "EVERGREEN_DATA", "EVERGREEN_MODELS")
    uri = database_uri(experiment.storage / "mlflow.db")
    environment = {k: v for k, v in os.environ.items() if k not in hidden} | {"MLFLOW_TRACKING_URI": uri}
    command = [sys.executable, "-I", "-B", "-c", ELSEWHERE, experiment.name, str(rows), task]
    called = subprocess.run(command, cwd=rows.parent, env=environment, capture_output=True, text=True)
    assert called.returncode == 0, called.stderr
    found: dict[str, Any] = json.loads(called.stdout.splitlines()[-1])
    return found


def assert_pinned(modules: list[str], required: tuple[str, ...]) -> None:
    """Whatever the code that went along imports, once it is loaded, is in the model's requirements."""
    files = [PROJECT / f"{module.replace('.', '/')}.py" for module in modules if module.startswith("benchmarks.")]
    tops = {name.partition(".")[0] for file in files if file.exists() for name in imported(file.read_text())}
    assert {"torch", "safetensors", "PIL"} <= tops
    owners = {top: {owner.lower().replace("-", "_") for owner in OWNERS.get(top, [])} for top in tops & set(modules)}
    assert [top for top, names in owners.items() if names and not names & {"evergreen", *required}] == []


OWNERS = packages_distributions()


def test_a_model_of_images_answers_elsewhere(make: Make, tmp_path: Path) -> None:  # noqa: F811
    """GORP trains some weights whole, so that no adapter has all of them: the model has, and says so."""
    experiment = make("name=images", "method=gorp", "head=gaussian", *QUICK)
    train(experiment)
    place = [f"storage={experiment.storage}"]
    assert register("images", place).version == "1"
    assert register("images", place).version == "2"
    session = resumed(experiment)
    pixels, expected = own_answers(session)
    numpy.save(tmp_path / "rows.npy", pixels.permute(0, 2, 3, 1).numpy())
    found = elsewhere(experiment, tmp_path / "rows.npy", session.stream.tasks[-1].name)
    assert found["answers"] == expected and len(set(expected[0])) > 3
    assert len(found["example"]) == 2
    assert not {"ray", "orchestrator", "methods", "transformers", "peft"} & set(found["modules"])
    assert_pinned(found["modules"], registry.REQUIRED)


def test_a_model_of_texts_answers_elsewhere(
    make: Make,  # noqa: F811
    texts: Path,  # noqa: F811
    tiny_models: dict[str, Path],
    tmp_path: Path,
) -> None:
    storage = make().storage
    experiment = text_run(texts, tiny_models["bert"]).model_copy(update={"storage": storage, "name": "texts"})
    train(experiment)
    texts.rename(texts.with_name("away"))
    register("texts", [f"storage={storage}"])  # needs none of the data, and shows none
    texts.with_name("away").rename(texts)
    session = resumed(experiment)
    tokens, expected = own_answers(session)
    (tmp_path / "rows.json").write_text(json.dumps(as_texts(experiment, tokens)))
    found = elsewhere(experiment, tmp_path / "rows.json", session.stream.tasks[-1].name)
    assert found["answers"] == expected and len(set(expected[1])) == 2
    assert_pinned(found["modules"], registry.REQUIRED + registry.REQUIRED_FOR_TEXTS)
    uri = database_uri(storage / "mlflow.db")
    (run,) = records(uri)
    assert "adapter" in artifacts(uri, run)
    adapter = {file.path for file in MlflowClient(uri).list_artifacts(run.info.run_id, "adapter")}
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"} <= adapter
    files = [file for file in (storage / "mlflow-artifacts").rglob("*") if file.is_file()]
    assert not [file for file in files if file.suffix in (".pkl", ".pickle", ".pt", ".bin", ".pyc")]


def as_texts(experiment: Experiment, tokens: Tensor) -> list[str]:
    tokenizer = load_tokenizer(text_format(experiment.backbone))
    return tokenizer.batch_decode([row[row != PADDING].tolist() for row in tokens], skip_special_tokens=True)


@pytest.mark.parametrize("settings", [["method=treelora", "method.inference=mean"], ["method=sdlora"], ["method=lora"]])
def test_every_kind_of_adapter_is_folded_exactly(make: Make, tmp_path: Path, settings: list[str]) -> None:  # noqa: F811
    experiment = make("name=a", "head=linear", *settings, *QUICK)
    train(experiment)
    prepare(experiment, tmp_path)
    inputs, expected = own_answers(resumed(experiment))
    found = load_predictor(tmp_path / "model")
    rows = inputs.permute(0, 2, 3, 1).numpy()
    assert [found.predict(rows), found.predict(rows, found.tasks[-1].name)] == expected
    with pytest.raises(ValueError, match=r"task='x': choose one of 0, 1, 2 …, "):
        found.predict(rows, "x")


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_a_model_that_writes_chooses_among_the_words_of_its_task(
    texts: Path,  # noqa: F811
    tiny_models: dict[str, Path],
    tmp_path: Path,
    kind: str,
) -> None:
    experiment = text_run(texts, tiny_models[kind])
    train(experiment)
    prepare(experiment, tmp_path / "new")
    session = resumed(experiment)
    model, task = session.learner.model.eval(), session.stream.tasks[-1]
    assert isinstance(model, AnswerWriter)
    batch = task.test.batch()
    with torch.inference_mode():
        right = model.scores(batch, task, session.stream.candidates(2, 1))[:, 0].bool().tolist()
    labels = [task.options[label - task.classes.start] for label in batch.labels]
    rows = [json.loads(line) for line in (texts / "colours" / "test.jsonl").read_text().splitlines()]
    found = load_predictor(tmp_path / "new" / "model")
    answers = found.predict([row["text"] for row in rows], task.name)
    # The stream has the file's rows in another order.
    judged = [(row["label"], row["label"] == answer) for row, answer in zip(rows, answers, strict=True)]
    assert Counter(judged) == Counter(zip(labels, right, strict=True))
    assert set(found.predict([row["text"] for row in rows])) <= {"yes", "no", "good", "bad"}


def test_images_of_another_size_are_cut_as_the_run_cut_its_files(
    small: Make,
    tmp_path: Path,
    cache: Path,
) -> None:
    root = planted.classes(tmp_path / "data" / "train", "ant", "bee", "cow", "dog")
    planted.classes(tmp_path / "data" / "val", "ant", "bee", "cow", "dog", count=6)
    files = sorted(root.parent.rglob("*.png"))
    for file in files:
        Image.open(file).resize((60, 41)).save(file)
    place = ["benchmark=image_folder", f"benchmark.path={root.parent}"]
    experiment = load_experiment([*place, "name=a", f"storage={tmp_path / 'runs'}", "method=lora", *QUICK])
    train(experiment)
    prepare(experiment, tmp_path / "new")
    session = resumed(experiment)
    _, expected = own_answers(session)
    found = load_predictor(tmp_path / "new" / "model")
    names = session.stream.tasks[-1].options
    rows = [numpy.asarray(Image.open(file)) for file in files if file.parts[-3] == "val" and file.parts[-2] in names]
    assert Counter(found.predict(numpy.stack(rows))) == Counter(expected[0])
    with pytest.raises(ValueError, match=r"images are float32 \[2, 8, 8, 3\], not uint8"):
        found.predict(numpy.zeros((2, 8, 8, 3), numpy.float32))


def test_the_winner_of_a_sweep_is_registered_under_its_name(
    make: Make,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    sweep = make("name=s", *QUICK)
    write_json(sweep.folder / "experiment.json", sweep.identity())
    for number in range(2):
        train(make(*QUICK, f"name=s-{number:05d}", f"storage={sweep.folder / 'trials'}"))
    found = summary("finished", "finished")
    write_json(sweep.folder / "sweep.json", found)
    register_winner(sweep, found)
    assert capsys.readouterr().err.endswith("model: models:/s/1 is that of s-00001\n")
    uri = database_uri(sweep.storage / "mlflow.db")
    version = MlflowClient(uri).get_model_version("s", "1")
    assert MlflowClient(uri).get_run(str(version.run_id)).info.run_name == "s-00001"


def test_a_server_that_is_down_does_not_undo_a_sweep(make: Make, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    sweep = make("name=s", "tracking.uri=http://127.0.0.1:9", *QUICK)
    write_json(sweep.folder / "experiment.json", sweep.identity())
    train(make(*QUICK, "name=s-00001", f"storage={sweep.folder / 'trials'}"))
    found = summary("failed", "finished")
    write_json(sweep.folder / "sweep.json", found)
    register_winner(sweep, found)
    said = capsys.readouterr().err.splitlines()[-1]
    assert "the server does not answer" in said and said.endswith("run.py register s tries it again")


def test_what_cannot_be_registered_is_one_line(make: Make) -> None:  # noqa: F811
    experiment = make("name=a", *QUICK)
    place = [f"storage={experiment.storage}"]
    with pytest.raises(UserError, match="nothere: no such run"):
        register("nothere", place)
    train_until(experiment, 0, 1)
    with pytest.raises(UserError, match="a: the run has no checkpoint yet"):
        register("a", place)
    (experiment.folder / "trials").mkdir()
    with pytest.raises(UserError, match="a: no trial of the sweep has finished yet"):
        register("a", place)
