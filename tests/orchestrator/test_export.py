"""``run.py export``: PEFT gives the run's own answers from it, and what cannot be exported is one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.models.backbones import build_model
from benchmarks.models.classifier import Classifier
from benchmarks.models.deferred import filled
from benchmarks.models.model import Model
from benchmarks.models.writer import AnswerWriter
from methods.base import Method
from methods.lora import LoRA
from orchestrator.export import export_run, lora_config, write
from orchestrator.launch import train
from orchestrator.run import checkpoint
from orchestrator.run.checkpoint import read_json
from orchestrator.run.folder import claim
from orchestrator.run.learner import part
from orchestrator.run.session import read_stream
from orchestrator.settings.compose import load_experiment
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError
from tests.orchestrator.test_cli import call, contents, refusal
from tests.support import planted
from tests.support.experiments import small_experiment
from tests.support.interruption import train_until

Small = Callable[..., Experiment]
Refused = Callable[[str, Path, Path], str]
ROUNDING = 1e-4
WEIGHTS = "adapter_model.safetensors"
FILES = ["adapter_config.json", WEIGHTS, "head.safetensors", "model.json"]


class Recorder:
    """The arguments and the answer of the last call of a model's method."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, model: type[Model], name: str) -> None:
        called = getattr(model, name)

        def recording(model: Model, *arguments: Any) -> Any:
            self.arguments, self.answer = arguments, called(model, *arguments)
            return self.answer

        monkeypatch.setattr(model, name, recording)


def exported(experiment: Experiment, folder: Path) -> Path:
    return export_run(experiment.name, folder, [f"storage={experiment.storage}"]).folder


def fresh(experiment: Experiment) -> Model:
    """The pre-trained backbone with an untrained head."""
    return filled(build_model(experiment.backbone, experiment.head, read_stream(experiment), experiment.seed)).eval()


def with_peft(experiment: Experiment, folder: Path) -> Model:
    model = fresh(experiment)
    model.backbone = PeftModel.from_pretrained(model.backbone, str(folder))
    return model.eval()


def with_head(model: Model, folder: Path) -> Classifier:
    assert isinstance(model, Classifier)
    tensors = load_file(folder / "head.safetensors")
    model.load_statistics(part(tensors, "statistics."))
    model.head.load_state_dict({name: value for name, value in tensors.items() if name.startswith("parts.")})
    return model


def far(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


RUNS = {
    "lora": ["method=lora", "method.rank=3", "method.alpha=5"],
    "some blocks": ["method=lora", "method.levels=[1,4]"],
    "closed form": ["method=lora", "head=gaussian"],
    "directions": ["method=sdlora", "method.rank=4"],
    "directions by projection": ["method=sdlora_kd_released", "method.rank=4", "method.absorption.threshold=10"],
    "protected pairs": ["method=gorp", "method.full_rank=[]"],
}


OFTEN = ("directions",)


@pytest.mark.parametrize(
    "settings", [pytest.param(s, id=n, marks=() if n in OFTEN else pytest.mark.slow) for n, s in RUNS.items()]
)
def test_images_get_the_logits_of_the_runs_last_evaluation(
    small: Small, tmp_path: Path, settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = small(*settings, "name=a", "train.learning_rate=1e-2", "benchmark.tasks=2", "train.epochs=1")
    folder = assert_same_logits(experiment, tmp_path / "adapter", monkeypatch)
    assert sorted(entry.name for entry in folder.iterdir()) == FILES


@pytest.mark.slow
def test_a_mean_over_tasks_is_exported_and_not_the_adapter_trained_last(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = small("name=a", "method=treelora", "method.inference=mean", "train.learning_rate=1e-2")
    folder = assert_same_logits(experiment, tmp_path / "adapter", monkeypatch)
    tensors = load_file(folder / WEIGHTS)
    assert far(tensors["base_model.model.blocks.0.attn.qkv.lora_A.weight"], trained(experiment, "lora_A")) > 1e-3


def assert_same_logits(experiment: Experiment, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Train, export to ``folder``, and compare with the run's last evaluation."""
    seen, answered = Recorder(monkeypatch, Classifier, "encode"), Recorder(monkeypatch, Classifier, "answers")
    train(experiment)
    inputs, expected = seen.arguments[0].inputs, answered.answer
    exported(experiment, folder)
    with torch.no_grad():
        assert far(with_head(with_peft(experiment, folder), folder).logits(inputs), expected) < ROUNDING
        assert far(with_head(fresh(experiment), folder).logits(inputs), expected) > 0.1, "the adapter counts"
    return folder


def trained(experiment: Experiment, factor: str) -> Tensor:
    """The first block's factor in the newest checkpoint."""
    found = checkpoint.load(experiment.folder)
    assert found is not None
    return found[0][f"model.backbone.blocks.0.attn.qkv.{factor}.weight"]


@pytest.fixture
def texts(tmp_path: Path, cache: Path) -> Path:
    for name, marks in {"animals": {"yes": "cat", "no": "dog"}, "colours": {"good": "red", "bad": "blue"}}.items():
        planted.text_task(tmp_path / "data" / name, planted.labelled(marks, 12), planted.labelled(marks, 4))
    return tmp_path / "data"


def text_run(texts: Path, model: Path) -> Experiment:
    places = [f"benchmark.path={texts}", f"storage={texts.parent / 'runs'}", f"backbone.name={model}", "name=a"]
    lengths = ["benchmark.text.answer_length=3", "benchmark.text.length=32", "tracking.enabled=false"]
    rates = ["train.epochs=2", "train.batch_size=4", "train.learning_rate=1e-2", "train.head_learning_rate=0.1"]
    return load_experiment(["benchmark=jsonl_folder", "method=lora", *places, *lengths, *rates])


def test_an_encoder_gets_the_logits_of_the_runs_last_evaluation(
    texts: Path, tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_same_logits(text_run(texts, tiny_models["bert"]), tmp_path / "adapter", monkeypatch)


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.slow) for kind in ("llama", "gpt2", "t5")])
def test_a_model_that_writes_gets_the_likelihoods_of_the_runs_last_evaluation_and_has_no_head(
    texts: Path, tiny_models: dict[str, Path], tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = text_run(texts, tiny_models[kind])
    seen = Recorder(monkeypatch, type(fresh(experiment)), "read")
    train(experiment)
    arguments, expected = seen.arguments, seen.answer
    folder = exported(experiment, tmp_path / "adapter")
    assert sorted(entry.name for entry in folder.iterdir()) == [*FILES[:2], FILES[3]]
    if kind != "t5":  # of the language-modelling classes, by the kind of task that the adapter names
        loaded = AutoPeftModelForCausalLM.from_pretrained(str(folder))
        assert loaded.peft_config["default"].task_type == "CAUSAL_LM"
    adapted, plain = with_peft(experiment, folder), fresh(experiment)
    assert isinstance(adapted, AnswerWriter) and isinstance(plain, AnswerWriter)
    with torch.no_grad():
        assert far(adapted.read(*arguments).first, expected.first) < ROUNDING
        assert far(plain.read(*arguments).first, expected.first) > 0.1


class Nested(nn.Module):
    """Two maps one after another, whose names end alike."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 5)])
        self.inner = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(5, 4)])})

    def forward(self, x: Tensor) -> Tensor:
        return self.inner["layers"][0](self.layers[0](x))


@pytest.mark.parametrize("ranks", [(1, 3), (3, 1), (2, 2)])
def test_each_module_can_have_a_rank_of_its_own(tmp_path: Path, ranks: tuple[int, int]) -> None:
    model, x, expected = Nested(), torch.randn(7, 6), Nested()
    expected.load_state_dict(model.state_dict())
    pairs = {}
    for name, rank in zip(("layers.0", "inner.layers.0"), ranks, strict=True):
        layer = expected.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        down, up = torch.randn(rank, layer.in_features), torch.randn(layer.out_features, rank)
        pairs[name] = down, up
        layer.weight.data += up @ down
    write(tmp_path / "adapter", lora_config("nested", pairs), pairs, {}, {})
    assert torch.allclose(PeftModel.from_pretrained(model, str(tmp_path / "adapter"))(x), expected(x), atol=1e-5)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """A run that was stopped in its second task, after two steps of four."""
    settings = ["name=mine", "method=lora", "method.rank=2", "method.alpha=6", "checkpoint.every=1"]
    experiment = small_experiment(tmp_path_factory.mktemp("stopped"), *settings)
    train_until(experiment, 1, 2)
    return experiment


def test_of_a_stopped_run_the_newest_checkpoint_is_taken(
    stopped: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(stopped.folder)
    capsys.readouterr()
    assert call("export", "mine", "--output", str(tmp_path / "new" / "adapter"), f"storage={stopped.storage}") == 0
    assert capsys.readouterr().out.splitlines() == [
        "mine: tasks learned: 1, steps of the next: 2",
        f"adapter, for PeftModel.from_pretrained(backbone, …): {tmp_path / 'new' / 'adapter'}",
    ]
    tensors = load_file(tmp_path / "new" / "adapter" / WEIGHTS)
    down, up = (tensors[f"base_model.model.blocks.0.attn.qkv.lora_{factor}.weight"] for factor in "AB")
    assert torch.allclose(up @ down, 3 * trained(stopped, "lora_B") @ trained(stopped, "lora_A"), atol=1e-6)
    assert float((up @ down).abs().max()) > 1e-3
    assert contents(stopped.folder) == before, "the run is only read"
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "adapter"]


def test_the_settings_name_the_backbone_and_every_module_at_scale_one(stopped: Experiment, tmp_path: Path) -> None:
    about = read_json(exported(stopped, tmp_path / "adapter") / "adapter_config.json")
    assert (about["peft_type"], about["base_model_name_or_path"]) == ("LORA", "micro_vit")
    assert (about["r"], about["lora_alpha"], about["lora_dropout"]) == (2, 2, 0.0)
    assert sorted(about["target_modules"]) == [f"blocks.{block}.attn.qkv" for block in range(6)]
    assert about["rank_pattern"] == about["alpha_pattern"] == {}


def test_class_names_in_the_order_of_labels_and_the_pixels_go_with_an_adapter(
    stopped: Experiment, tmp_path: Path
) -> None:
    known = read_json(exported(stopped, tmp_path / "adapter") / "model.json")
    stream = read_stream(stopped)
    assert known["class_names"] == stream.class_names and known["tasks"][0]["options"] == stream.tasks[0].options
    assert (known["pixels"]["size"], known["pixels"]["mean"]) == (32, [0.5] * 3)


def test_a_run_on_workers_is_exported_here_and_a_folder_names_it(stopped: Experiment, tmp_path: Path) -> None:
    here = exported(stopped, tmp_path / "here")
    storage = tmp_path / "runs"
    file = shutil.copytree(stopped.folder, storage / "other" / "mine") / "experiment.json"
    scale = {"workers": 2, "sharding": "fsdp2", "gpus_per_worker": 1.0, "max_failures": 3}
    file.write_text(json.dumps(read_json(file) | {"scale": scale}))
    (tmp_path / "workers").mkdir()
    for run, folder in (("other/mine", tmp_path / "workers"), (str(file.parent), tmp_path / "by folder")):
        done = export_run(run, folder, [f"storage={storage}"])
        assert (done.run, done.folder) == ("mine", folder)
        assert all((folder / name).read_bytes() == (here / name).read_bytes() for name in FILES[1:])


@pytest.mark.parametrize("method", ["lora", "treelora"])
def test_data_that_are_gone_are_not_needed(
    tmp_path: Path, cache: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    planted.classes(tmp_path / "data", "ant", "bee", "cow", "dog")
    settings = [f"method={method}", "benchmark=image_folder", f"benchmark.path={tmp_path / 'data'}", "name=a"]
    experiment = small_experiment(tmp_path, *settings, "benchmark.tasks=2", "checkpoint.every=1", "train.epochs=1")
    train_until(experiment, 1, 1)
    here = exported(experiment, tmp_path / "here")
    shutil.rmtree(tmp_path / "data")
    shutil.rmtree(cache)
    gone = exported(experiment, tmp_path / "gone")
    assert all((here / name).read_bytes() == (gone / name).read_bytes() for name in FILES)
    if method == "treelora":
        assert call("tree", "a", f"storage={experiment.storage}") == 0
        assert "ant, bee" in capsys.readouterr().out


# --- what is refused ---


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """The one line of a refused export of a run to a folder, from a storage; nothing is written, not even beside."""

    def said(run: str, folder: Path, storage: Path) -> str:
        before = sorted(tmp_path.rglob("*"))
        line = refusal(capsys, "export", run, "--output", str(folder), f"storage={storage}")
        assert sorted(tmp_path.rglob("*")) == before
        return line

    return said


def test_an_unknown_run_is_one_line(tmp_path: Path, refused: Refused) -> None:
    said = refused("nothing", tmp_path / "new" / "adapter", tmp_path / "runs")
    assert said == f"nothing: no such run in {tmp_path / 'runs'}; name another, or set storage=…"


def test_another_run_with_the_same_last_name_is_not_taken(
    stopped: Experiment, tmp_path: Path, refused: Refused
) -> None:
    said = refused("elsewhere/mine", tmp_path / "adapter", stopped.storage)
    assert said.startswith("elsewhere/mine: no such run in ")


def test_another_tree_with_the_same_last_name_is_not_shown(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = small("name=mine")
    claim(experiment)
    said = refusal(capsys, "tree", "elsewhere/mine", f"storage={experiment.storage}")
    assert said.startswith("elsewhere/mine: no such run in ")


def test_a_run_without_a_checkpoint_is_one_line(small: Small, tmp_path: Path, refused: Refused) -> None:
    experiment = small("name=young")
    claim(experiment)
    said = refused("young", tmp_path / "adapter", experiment.storage)
    assert said == "young: the run has no checkpoint yet, so there is nothing to export; try again later"


def test_a_method_without_a_low_rank_update_says_so_in_one_line(
    stopped: Experiment, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LoRA, "pairs", Method.pairs)
    said = refused("mine", tmp_path / "adapter", stopped.storage)
    assert said == "mine: method=lora: its update is not one of low rank"


def test_what_is_there_is_not_overwritten(stopped: Experiment, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("kept")
    for folder in (tmp_path / "full", tmp_path / "full" / "file"):
        said = refused("mine", folder, stopped.storage)
        assert said == f"--output {folder}: it exists and is not an empty folder; name another"
    assert (tmp_path / "full" / "file").read_text() == "kept"


def test_a_folder_that_cannot_be_made_is_one_line(
    stopped: Experiment, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    said = refused("mine", tmp_path / "file" / "adapter", stopped.storage)
    reason = f"{tmp_path / 'file'} is not a folder that can be written to"
    assert said == f"--output {tmp_path / 'file' / 'adapter'}: cannot be written ({reason}); name another folder"
    said = refused("mine", tmp_path / ("long" * 80), stopped.storage)
    assert "File name too long" in said and said.endswith("; name another folder")
    monkeypatch.setattr(Path, "rename", Broken(OSError(28, "No space left on device")))
    said = refused("mine", tmp_path / "adapter", stopped.storage)
    assert "cannot be written ([Errno 28] No space left on device); name another folder" in said


class Broken:
    """Stands for a call that ends in an error."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __call__(self, *arguments: Any, **named: Any) -> None:
        raise self.error


def test_a_stopped_export_leaves_nothing(stopped: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopping(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str]) -> None:
        if file.name == "head.safetensors":
            raise KeyboardInterrupt
        save_file(tensors, file, metadata)

    monkeypatch.setattr("orchestrator.run.trained.save_file", stopping)
    before = sorted(tmp_path.rglob("*"))
    assert call("export", "mine", "--output", str(tmp_path / "adapter"), f"storage={stopped.storage}") == 130
    assert sorted(tmp_path.rglob("*")) == before


def test_whole_weights_do_not_go_into_an_adapter(small: Small, tmp_path: Path) -> None:
    experiment = small("method=gorp", "name=a", "benchmark.tasks=2", "train.epochs=1")
    train(experiment)
    with pytest.raises(UserError, match=r"method=gorp trains .*blocks\.0\.mlp\.fc1 whole; .* method\.full_rank=\[\]"):
        exported(experiment, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
