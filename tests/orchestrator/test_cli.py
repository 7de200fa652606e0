"""The command line from outside: what it prints, what it refuses, and what it leaves untouched."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from orchestrator.run.checkpoint import DIGESTS, TENSORS, VALUES
from orchestrator.run.lock import held
from orchestrator.settings.compose import GROUPS, option_names
from orchestrator.settings.config import Experiment
from tests.support.planted_runs import plant

COMMANDS = ("train", "check", "sweep", "compare", "tree", "report", "export", "sync", "register", "methods")
COMMANDS += ("benchmarks", "options", "submit", "jobs", "logs", "stop", "watch")
TINY = ["method=lora", "benchmark.tasks=2", "benchmark.train_per_class=4", "benchmark.test_per_class=4"]
TINY += ["train.epochs=1", "tracking.enabled=false"]
NAME = "lora-split_digits-train4-test4-seed0"
KEYS = {"name", "method", "benchmark", "seed", "order_seed", "config", "accuracy_matrix", "final_average_accuracy"}
KEYS |= {"average_anytime_accuracy", "backward_transfer", "forgetting", "forward_transfer", "seconds"}
KEYS |= {"trainable_parameters", "versions", "unmasked_matrix", "prepared_rows", "peak_memory_bytes"}
KEYS |= {"stored_parameters"}
PROJECT = Path(__file__).resolve().parents[2]


def load_run() -> ModuleType:
    file = PROJECT / "run.py"
    spec = importlib.util.spec_from_file_location("run", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RUN = load_run()


def call(*arguments: str) -> int:
    """One command as from a shell; gives the exit code."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["run.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            RUN.main()
    return ended.value.code or 0  # type: ignore[return-value]


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a refused command prints, without ``error: ``."""
    capsys.readouterr()
    code = call(*arguments)
    printed = capsys.readouterr()
    assert code == 2
    assert printed.out == ""
    assert printed.err.startswith("error: ") and printed.err.endswith("\n")
    assert printed.err.count("\n") == 1, printed.err
    assert "Traceback" not in printed.err
    return printed.err.removeprefix("error: ").rstrip("\n")


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here may reach a cluster or a record that the environment names."""
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Path]:
    """A storage folder that the command must not make."""
    yield tmp_path / "runs"
    assert not (tmp_path / "runs").exists()


REFUSED: dict[str, tuple[list[str], str]] = {
    "unknown setting": (["train.epoch=3"], "train.epoch: no such setting; did you mean train.epochs?"),
    "no setting": (["treelora"], "treelora: settings are written key=value"),
    "rank 0": (["method.rank=0"], "method.rank=0: should be greater than 0"),
    "sparsity above 1": (["method.sparsity=1.2"], "method.sparsity=1.2: should be less than 1"),
    "negative workers": (["scale.workers=-1"], "scale.workers=-1: should be greater than or equal to 0"),
    "unknown method": (["method=treelor"], "method=treelor: choose one of "),
    "unknown benchmark": (["benchmark=split_digit"], "benchmark=split_digit: choose one of "),
    "missing data": (["benchmark=array", "benchmark.path=/nowhere.npz"], "benchmark.path=/nowhere.npz: not found, "),
    "no data": (["benchmark=array"], "benchmark.path: name the file or folder to read, "),
    "too many tasks": (["benchmark.tasks=11"], "benchmark.tasks=11: split_digits has only 10 classes"),
    "name with a separator": (["name=a/b"], "name=a/b: use letters, digits, "),
    "missing weights": (
        ["backbone.pretrained=/nowhere.safetensors"],
        "backbone.pretrained=/nowhere.safetensors: no such file, nor in the model folder ",
    ),
    "unknown backbone": (
        ["backbone.name=micro_vot"],
        "backbone.name=micro_vot: no ",
    ),
}
REFUSED_SWEEPS: dict[str, tuple[list[str], str]] = {
    "invalid corner": (["sweep.space.method.rank=[0,4]"], "method.rank=0: should be greater than 0"),
    "invalid end": (
        ["sweep.space.method.rank={uniform: [0, 4]}"],
        "method.rank=0: should be greater than 0",
    ),
    "unknown setting": (
        ["sweep.space.method.rnk=[2,4]"],
        "sweep.space.method.rnk: no such setting; did you mean method.rank?",
    ),
    "setting below a number": (
        ["sweep.space.method.rank.x=[2,4]"],
        "sweep.space.method.rank.x: no such setting; did you mean method.rank?",
    ),
    "one value": (["sweep.space.method.rank=4"], "sweep.space.method.rank=4: write [a, b], "),
    "no value": (["sweep.space.method.rank=[]"], "sweep.space.method.rank=[]: write [a, b], "),
    "ends in the wrong order": (
        ["sweep.space.train.learning_rate={loguniform: [1, 0.1]}"],
        "sweep.space.train.learning_rate={'loguniform': [1, 0.1]}: write [a, b], ",
    ),
    "trials beside the grid": (
        ["sweep.space.method.rank=[2,4]", "sweep.trials=3"],
        "sweep.trials=3: the grid has 2 points; choose a multiple of it",
    ),
}


@pytest.mark.parametrize("command", ["train", "sweep"])
@pytest.mark.parametrize("mistake", REFUSED)
def test_bad_settings_are_one_line_and_leave_nothing(
    command: str, mistake: str, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, expected = REFUSED[mistake]
    assert refusal(capsys, command, f"storage={storage}", *settings).startswith(expected)


@pytest.mark.parametrize("mistake", REFUSED_SWEEPS)
def test_bad_spaces_are_one_line_and_leave_nothing(
    mistake: str, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, expected = REFUSED_SWEEPS[mistake]
    assert refusal(capsys, "sweep", f"storage={storage}", *settings).startswith(expected)


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_more_workers_than_cpus_are_refused_before_any_starts(
    command: str, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cpus = os.cpu_count() or 1
    said = refusal(capsys, command, f"storage={storage}", f"scale.workers={cpus + 1}")
    assert said == (f"scale.workers={cpus + 1}: there are {cpus} CPUs, one for each worker; set scale.workers={cpus}")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], "No such command 'trian'. Did you mean 'train'?"),
        (["train", "--jsn"], "No such option: --jsn"),
        (["watch", "--port", "0"], "Invalid value for '--port': "),
        (["watch", "--port", "high"], "Invalid value for '--port': "),
        (["methods", "lora"], "Got unexpected extra argument"),
        (["tree"], "Missing argument 'run'"),
        (["compare"], "Missing argument 'study'"),
        (["stop", "some-job"], "Missing option '--address'"),
        (["logs", "--address", "http://127.0.0.1:1"], "Missing argument 'job'"),
        (["submit", "--address", "http://127.0.0.1:1"], "Missing argument '-- COMMAND...'"),
        (
            ["submit", "--address", "http://127.0.0.1:1", "--", "train", "method.rnak=3"],  # told before it is sent
            "method.rnak: no such setting; did you mean method.rank?",
        ),
    ],
)
def test_a_wrong_command_line_is_one_line(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(capsys, *arguments)
    assert said.startswith(expected)
    if "--jsn" in arguments:
        assert "--json" in said.removeprefix(expected), "the option that was meant"


def test_there_is_no_record_to_watch_before_the_first_run(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, "watch", f"storage={storage}")
    assert said == f"tracking.uri=sqlite:///{storage / 'mlflow.db'}: there is no record yet; train a run first"


@pytest.mark.parametrize(("command", "group"), [("methods", "method"), ("benchmarks", "benchmark")])
def test_listings_are_one_line_for_each_option(command: str, group: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(command) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert [line.split()[0] for line in lines] == option_names(group)
    assert all(len(line.split()) > 3 and "#" not in line for line in lines), "with a few words each"
    assert printed.err == ""


def test_all_options_are_listed_by_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("options") == 0
    printed = capsys.readouterr().out.strip().split("\n\n")
    found = {block.splitlines()[0]: [line.split()[0] for line in block.splitlines()[1:]] for block in printed}
    assert found == {f"{group}=": option_names(group) for group in GROUPS}


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--help") == 0
    helped = capsys.readouterr()
    assert helped.out.startswith("Usage: ") and helped.err == ""
    listed = helped.out[helped.out.index("Commands:") :]
    assert re.findall(r"^  (\w+)", listed, re.M) == list(COMMANDS)
    assert call() == 0
    assert capsys.readouterr() == helped, "without a command, too"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(command, "--help") == 0
    printed = capsys.readouterr()
    assert re.match(rf"Usage: .* {command} \[OPTIONS\]", printed.out) and printed.err == ""
    assert len(printed.out.splitlines()[2].split()) >= 3, "what it does"


# --- a finished run ---


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A tiny run's storage folder, and what ``train --json`` printed."""
    torch.set_num_threads(1)
    storage = tmp_path_factory.mktemp("storage") / "runs"
    printed = StringIO()
    with redirect_stdout(printed):
        assert call("train", "--json", f"storage={storage}", *TINY) == 0
    return storage, printed.getvalue()


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and time of change of every file below ``folder``."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file.relative_to(folder)): (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


def result_of(storage: Path) -> dict[str, Any]:
    return json.loads((storage / NAME / "result.json").read_text())


def test_a_result_has_all_its_numbers(finished: tuple[Path, str]) -> None:
    result = result_of(finished[0])
    assert set(result) >= KEYS
    assert set(result["seconds"]) == {"train", "evaluate", "method", "checkpoint", "total"}
    assert (result["name"], result["method"], result["benchmark"]) == (NAME, "lora", "split_digits")
    assert (result["seed"], result["order_seed"]) == (0, None)
    assert [len(row) for row in result["accuracy_matrix"]] == [2, 2]
    assert result["final_average_accuracy"] == sum(result["accuracy_matrix"][1]) / 2
    assert result["config"]["train"]["epochs"] == 1
    assert (result["scenario"], result["scores"], result["unmasked_matrix"]) == ("class", ["accuracy"] * 2, [])
    assert (result["subset"], result["skipped"]) == ({"train_per_class": 4, "test_per_class": 4}, [])
    assert result["prepared_rows"] == 0, "digits are images already"
    assert 10**8 < result["peak_memory_bytes"] < 10**11
    assert result["trainable_parameters"] == 6 * 4 * (128 + 384) + 128 * 10 + 10, "adapters on qkv, and the head"
    assert {"torch", "ray", "peft"} <= set(result["versions"])
    seconds = result["seconds"]
    assert 0 < seconds["train"] + seconds["evaluate"] + seconds["method"] <= seconds["total"]


def test_json_output_is_the_result_and_nothing_else(finished: tuple[Path, str]) -> None:
    storage, printed = finished
    assert printed.count("\n") == 1
    assert json.loads(printed) == result_of(storage)


def test_a_finished_run_is_a_folder_with_result_report_and_checkpoints(finished: tuple[Path, str]) -> None:
    storage, _ = finished
    assert [entry.name for entry in storage.iterdir()] == [NAME], "no record where tracking is off"
    assert set(contents(storage / NAME)) == {
        "experiment.json",
        "progress.json",
        "result.json",
        "report.html",
        *(f"checkpoints/00000{n}/{file}" for n in (1, 2) for file in (TENSORS, VALUES, DIGESTS)),
        *(f"checkpoints/finished/00000{n}.safetensors" for n in (0, 1)),
    }


@pytest.mark.parametrize("as_json", [True, False])
def test_the_same_command_again_shows_the_result_and_trains_nothing(
    finished: tuple[Path, str], as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    storage, first = finished
    before = contents(storage)
    assert call("train", *(["--json"] if as_json else []), f"storage={storage}", *TINY) == 0
    printed = capsys.readouterr()
    assert "is finished; its result is shown" in printed.err
    assert contents(storage) == before
    if as_json:
        assert printed.out == first
    else:
        result = result_of(storage)
        assert f"{result['final_average_accuracy']:.1%}" in printed.out
        assert str(storage / NAME / "report.html") in "".join(printed.out.split("\n"))


@pytest.mark.parametrize(
    ("setting", "holds"),
    [("train.epochs=2", "train.epochs=1, not 2"), ("method=treelora", "method.name=lora, not treelora")],
)
def test_a_finished_run_is_not_overwritten_by_one_with_other_settings(
    finished: tuple[Path, str], capsys: pytest.CaptureFixture[str], setting: str, holds: str
) -> None:
    storage, _ = finished
    before = contents(storage)
    said = refusal(capsys, "train", f"storage={storage}", *TINY, f"name={NAME}", setting)
    assert said == (
        f"name={NAME}: {storage / NAME} holds a run with {holds}; choose another name=… or remove that folder"
    )
    assert contents(storage) == before


def failing(experiment: Experiment) -> float:
    if experiment.method.rank == 3:  # type: ignore[attr-defined]
        raise ZeroDivisionError("planted")
    return 0.5


def test_a_command_of_which_a_part_failed_ends_with_1_and_says_so_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sweep and a study; once all can be done, the same command ends with 0."""
    common = [f"storage={tmp_path / 'runs'}", "sweep.concurrent=1", *TINY]
    sweep = ["sweep", "name=s", "sweep.space.method.rank=[2,3]", "sweep.confirm=0", *common]
    study = ["compare", "methods=[lora]", "method.rank=3", *common, f"--output={tmp_path / 'page.md'}"]
    plant(monkeypatch, failing, tasks=2)
    for command, said in ((sweep, "s: 1 of 2 trials failed"), (study, "1 of 1 runs failed")):
        assert call(*command) == 1
        last = capsys.readouterr().err.splitlines()[-1]
        assert said in last and last.endswith("the same command tries them again")
    plant(monkeypatch, lambda experiment: 0.5, tasks=2)
    assert call(*sweep) == 0


def test_a_run_that_is_under_way_is_not_started_again(
    finished: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with held(tmp_path / NAME, "a run"):
        before = (tmp_path / NAME / "lock.json").read_bytes()
        said = refusal(capsys, "train", f"storage={tmp_path}", *TINY)
        assert said.startswith(f"{tmp_path / NAME}: a run is under way in process {os.getpid()} on ")
        assert [file.name for file in (tmp_path / NAME).iterdir()] == ["lock.json"]
        assert (tmp_path / NAME / "lock.json").read_bytes() == before
    with held(finished[0] / NAME, "a run"):
        assert call("train", f"storage={finished[0]}", *TINY) == 0, "what is finished can be shown at any time"


def test_a_folder_with_a_dead_runs_lock_may_begin_with_other_settings(tmp_path: Path) -> None:
    """The lock, and what one left that died while it took it over, are no work."""
    with held(tmp_path / NAME, "a run"):
        left = (tmp_path / NAME / "lock.json").read_text().replace('"started": "', '"started": "0')
    for name in ("lock.json", "lock.json.1-2"):
        (tmp_path / NAME / name).write_text(left)
    assert call("train", f"storage={tmp_path}", *TINY) == 0
    assert not (tmp_path / NAME / "lock.json").exists()


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "cat.txt").write_text("meow")
    before = contents(tmp_path)
    said = refusal(capsys, "train", f"storage={tmp_path}", "name=photos", *TINY)
    assert said == f"name=photos: {folder} exists and is no run; choose another name=…"
    assert contents(tmp_path) == before


def test_a_damaged_experiment_file_names_file_and_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine" / "experiment.json"
    file.parent.mkdir()
    file.write_text('{\n "seed": \n')
    said = refusal(capsys, "train", f"storage={tmp_path}", "name=mine", *TINY)
    assert said.startswith(f"{file}:3: not JSON (")
