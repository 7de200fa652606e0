"""``run.py tree``: what it prints of a finished and of an interrupted run, and what it refuses in one line."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError
from rich.console import Console
from torch import Tensor

from orchestrator import tree_source
from orchestrator.cluster import tree_actor
from orchestrator.cluster.tree_actor import start_actor
from orchestrator.pages.tree_view import search_by_tasks, tasks_below, tree_parts
from orchestrator.run import checkpoint
from orchestrator.run.checkpoint import read_json
from orchestrator.run.folder import claim
from orchestrator.run.learner import Learner, part
from orchestrator.settings.compose import load_experiment
from orchestrator.tree_source import find_tree
from tests.orchestrator.test_cli import PROJECT, call, refusal
from tests.support.experiments import SMALL

NAMES = ["cats", "dogs", "[b]owls[/b]", "crows"]


def node(number: int, parent: int | None, tasks: list[int] | None, diameter: float, **seen: Any) -> dict[str, Any]:
    return {"id": number, "parent": parent, "tasks": tasks, "diameter": diameter} | seen


def seen(pulls: int, mean: float | None, bound: float | None) -> dict[str, Any]:
    return {"pulls": pulls, "mean": mean, "bound": bound}


# The search was over a tree without task 3; its node 1 is the stored tree's node 2, its node 2 the stored node 4.
SEARCHED = [
    node(0, None, None, 0.75, **seen(12, 0.5, 0.25)),
    node(1, 0, [1], 0.0, **seen(0, None, float("-inf"))),
    node(2, 0, [0, 2], 0.125, **seen(12, 0.5, 0.375)),
]
STORED = [
    node(0, None, None, 0.875),
    node(1, 0, None, 0.5),
    node(2, 1, [1], 0.0),
    node(3, 1, [3], 0.0),
    node(4, 0, [0, 2], 0.125),
]
REPORT: dict[str, Any] = {
    "tree": {"nodes": STORED},
    "entries": [[0, 2], [1], [3]],
    "distances": [[0.0, 0.8125, 0.875], [0.8125, 0.0, 0.5], [0.875, 0.5, 0.0]],
    "pulls": [[0] * 4, [0] * 4, [0] * 4, [12, 0, 0, 0]],
    "chosen": [[], [], [], [0, 0]],
    "search": {
        "task": 3,
        "nodes": SEARCHED,
        "entries": [{"tasks": [0, 2], **seen(12, 0.5, 0.375)}, {"tasks": [1], **seen(0, None, None)}],
    },
}


def printed(report: dict[str, Any], names: list[str] = NAMES, width: int = 100) -> str:
    console = Console(file=StringIO(), width=width)
    console.print(*tree_parts(report, names), sep="\n", crop=False)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines())


def test_the_tree_has_its_leaves_diameters_and_what_the_search_knows_of_the_same_tasks() -> None:
    assert printed(REPORT).splitlines()[:5] == [
        "diameter 0.875",
        "├── diameter 0.500",
        "│   ├── dogs (pulls 0, mean –, bound –)",
        "│   └── crows",
        "└── cats + [b]owls[/b], diameter 0.125 (pulls 12, mean 0.500, bound 0.375)",
    ]


def test_leaves_show_the_search_of_their_entries_where_it_tells_nothing_of_nodes() -> None:
    report = REPORT | {"search": {"task": 3, "entries": REPORT["search"]["entries"]}}
    assert printed(report).splitlines() == printed(REPORT).splitlines()
    assert "dogs (pulls 0" in printed(report) and "crows (" not in printed(report)


def test_tasks_below_a_node_are_those_of_its_leaves() -> None:
    assert tasks_below(STORED)[0] == {0, 1, 2, 3} and tasks_below(STORED)[1] == {1, 3}
    assert {tasks: found["id"] for tasks, found in search_by_tasks(REPORT).items()} == {
        frozenset({0, 1, 2}): 0,
        frozenset({1}): 1,
        frozenset({0, 2}): 2,
    }


def test_distances_and_search_are_tables() -> None:
    text = printed(REPORT)
    assert "1 cats + [b]owls[/b]      –  0.812  0.875".replace(" ", "") in text.replace(" ", "")
    assert "2dogs0.812–0.500" in text.replace(" ", "")
    search = text.split("Search while learning crows")[1].replace(" ", "")
    assert "cats+[b]owls[/b]120.5000.375" in search and "dogs0––" in search


def many(entries: int) -> dict[str, Any]:
    """Entries on a line, a tenth of a thousandth apart and growing: each one's nearest is the one before it."""
    places = [place * (place + 1) / 2000 for place in range(entries)]
    nodes = [node(0, None, None, 0.9), *(node(1 + task, 0, [task], 0.0) for task in range(entries))]
    distances = [[abs(one - other) for other in places] for one in places]
    return {"tree": {"nodes": nodes}, "entries": [[task] for task in range(entries)], "distances": distances}


def test_twenty_leaves_are_shown_in_full_on_a_narrow_terminal() -> None:
    text = printed(many(20), [f"task {number}" for number in range(20)], width=40)
    line = next(line for line in text.splitlines() if line.strip().startswith("20 task 19"))
    assert re.findall(r"\d\.\d{3}|–", line) == [
        *(f"{0.19 - place * (place + 1) / 2000:.3f}" for place in range(19)),
        "–",
    ]
    assert "…" not in text and "nearest" not in text


def test_of_more_leaves_only_the_nearest_of_each_is_told() -> None:
    text = printed(many(21), [f"task {number}" for number in range(21)])
    assert "Leaf distances" not in text
    told = [line.split() for line in text.split("nearest leaf")[1].splitlines() if line.strip().startswith("task")]
    assert [" ".join(words) for words in told] == [
        "task 0 task 1 0.001",
        *(f"task {one} task {one - 1} {one / 1000:.3f}" for one in range(1, 21)),
    ]


def test_a_single_task_has_neither_distances_nor_a_search() -> None:
    report = {"tree": {"nodes": [node(0, None, [0], 0.0)]}, "entries": [[0]], "distances": [[0.0]], "search": None}
    assert printed(report).strip() == "cats"


# --- runs ---


def tiny(storage: Path, *settings: str) -> list[str]:
    return [*SMALL, "train.epochs=1", "checkpoint.every=1", f"storage={storage}", *settings]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage of a run that was stopped in its third task, after a search point."""
    storage = tmp_path_factory.mktemp("tree") / "runs"
    step = Learner.step

    def stopping(self: Learner, rows: Tensor, number: int) -> float:
        if (self.task.index, number) == (2, 4):
            raise KeyboardInterrupt
        return step(self, rows, number)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Learner, "step", stopping)
        assert call("train", *tiny(storage, "name=mine")) == 130
    return storage


def test_a_stopped_run_shows_the_tree_of_its_last_checkpoint(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert call("tree", "mine", f"storage={stopped}") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "mine: as of its last checkpoint (tasks learned: 2, steps of the next: 4)"
    assert lines[1].startswith("diameter 0.")
    assert {line[4:].split(" (")[0] for line in lines[2:4]} == {"0, 1, 2", "3, 4, 5"}


def test_a_folder_below_storage_names_a_run_too(stopped: Path) -> None:
    other = find_tree(str(stopped / "mine"), [])
    assert other == find_tree("mine", [f"storage={stopped}"])
    assert other.names[:2] == ["0, 1, 2", "3, 4, 5"]


def test_what_is_under_way_and_what_is_finished_are_the_same_tree(stopped: Path, tmp_path: Path) -> None:
    """The checkpoint after the last task holds what the result reports."""
    assert call("train", *tiny(tmp_path / "runs", "name=whole")) == 0
    folder = tmp_path / "runs" / "whole"
    finished = find_tree("whole", [f"storage={folder.parent}"])
    assert finished.report == read_json(folder / "result.json")["method_report"]
    (folder / "result.json").unlink()
    restored = find_tree("whole", [f"storage={folder.parent}"])
    assert json.loads(json.dumps(restored.report)) == finished.report
    assert restored.names == finished.names
    assert (finished.when, restored.when) == (
        "the finished run",
        "as of its last checkpoint (tasks learned: 3, steps of the next: 0)",
    )


@pytest.fixture
def on_workers(stopped: Path, tmp_path: Path) -> Path:
    """The storage of a copy of the stopped run that says it has a worker."""
    shutil.copytree(stopped / "mine", tmp_path / "mine")
    file = tmp_path / "mine" / "experiment.json"
    identity = read_json(file)
    file.write_text(json.dumps(identity | {"scale": identity["scale"] | {"workers": 1}}))
    return tmp_path


class Answer:
    """Stands for the actor, its method, and what a call gives."""

    def __init__(self, value: Any) -> None:
        self.report, self.value = self, value

    def remote(self) -> Any:
        return self.value


def test_the_actor_of_a_run_under_way_is_asked_before_its_checkpoint(
    on_workers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree_actor, "joined", nullcontext)
    monkeypatch.setattr(tree_actor, "find_actor", lambda experiment: Answer(REPORT | {"name": experiment.name}))
    monkeypatch.setattr(ray, "get", lambda report, timeout: report)
    found = find_tree("mine", [f"storage={on_workers}"])
    assert found.report == REPORT | {"name": "mine"} and found.when == "the run under way"


@pytest.mark.parametrize("error", [ConnectionError("no cluster"), ValueError("no such actor"), RayActorError()])
def test_without_an_actor_that_answers_the_checkpoint_counts(
    on_workers: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def failing() -> None:
        raise error

    monkeypatch.setattr(tree_actor, "joined", failing)
    assert find_tree("mine", [f"storage={on_workers}"]).when.startswith("as of its last checkpoint")


@pytest.mark.ray
def test_a_run_under_way_on_a_cluster_is_asked_from_another_process(on_workers: Path) -> None:
    state = checkpoint.load(on_workers / "mine")
    assert state is not None
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        actor = start_actor(tree_source.experiment_of("mine", [f"storage={on_workers}"]))
        ray.get(actor.load.remote(part(state[0], "search."), 1))
        shown = subprocess.run(
            [sys.executable, "run.py", "tree", "mine", f"storage={on_workers}"],
            cwd=PROJECT,
            env=os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address},
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        ray.shutdown()
    assert shown.stdout.splitlines()[0] == "mine: the run under way"
    assert "0, 1, 2" in shown.stdout


def test_an_unknown_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, "tree", "nothing", f"storage={tmp_path}")
    assert said == f"nothing: no such run in {tmp_path}; name another, or set storage=…"
    assert list(tmp_path.iterdir()) == []


def claimed(storage: Path, name: str, method: str) -> None:
    """A run's folder before its first checkpoint."""
    claim(load_experiment([f"method={method}", f"name={name}", f"storage={storage}"]))


def test_a_run_without_a_tree_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    claimed(tmp_path, "plain", "lora")
    said = refusal(capsys, "tree", "plain", f"storage={tmp_path}")
    assert said == "plain: method lora has no tree; name a run of one that has, as treelora"


def test_a_run_that_has_not_learned_a_task_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    claimed(tmp_path, "young", "treelora")
    said = refusal(capsys, "tree", "young", f"storage={tmp_path}")
    assert said == "young: the run has not learned a task yet, so it has no tree; try again later"


def test_a_sweep_is_one_line_that_names_its_trials(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "swept" / "trials").mkdir(parents=True)
    said = refusal(capsys, "tree", "swept", f"storage={tmp_path}")
    assert said == "swept: a sweep; name one of its trials, as in swept/trials/…"


def test_a_damaged_result_names_file_and_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    claimed(tmp_path, "torn", "treelora")
    (tmp_path / "torn" / "result.json").write_text("{\n")
    assert refusal(capsys, "tree", "torn", f"storage={tmp_path}").startswith(f"{tmp_path}/torn/result.json:2: not JSON")
