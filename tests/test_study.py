"""Studies: the page says what the runs gave, nothing is run twice, and a mistake anywhere starts nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from orchestrator.learner import Learner
from orchestrator.study import command, experiments, read_study, run_name
from orchestrator.study_page import matrix, percent, table
from tests.test_cli import PROJECT, call, refusal

STUDIES = sorted((PROJECT / "docs" / "studies").glob("*.yaml"))
TINY = ["benchmark.tasks=2", "benchmark.classes=4", "benchmark.train_per_class=8", "benchmark.test_per_class=4"]
TINY += ["train.epochs=1", "train.batch_size=7", "tracking.enabled=false"]  # two steps a task
ROWS = {"rank 2": ["method=lora", "method.rank=2"], "rank 3 | gaussian": ["method=lora", "head=gaussian"]}
RUNS = ["mine-rank-2-seed0", "mine-rank-2-seed4", "mine-rank-3-gaussian-seed0", "mine-rank-3-gaussian-seed4"]


def write(file: Path, **changes: Any) -> Path:
    """A study of two rows and two seeds; JSON is YAML too."""
    study = {"title": "Two ranks", "about": "About\nthem.", "settings": TINY, "seeds": [0, 4], "rows": ROWS}
    file.write_text(json.dumps({k: v for k, v in (study | {"matrices": True} | changes).items() if v is not None}))
    return file


def compare(folder: Path, file: Path) -> list[str]:
    return ["compare", str(file), f"storage={folder / 'runs'}", "--output", str(folder / "page.md")]


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / "runs" / name / "result.json").read_text()) for name in RUNS]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that ended after it was stopped in the second seed of the first row."""
    folder = tmp_path_factory.mktemp("study")
    file = write(folder / "mine.yaml")
    step, seen = Learner.step, []

    def stopping(self: Learner, rows: Tensor, number: int) -> float:
        seen.append((self.seed, self.task.index, number))
        if seen[-1] == (4, 1, 0):
            raise KeyboardInterrupt
        return step(self, rows, number)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Learner, "step", stopping)
        assert call(*compare(folder, file)) == 130
    assert (folder / "runs" / RUNS[0] / "result.json").exists() and not (folder / "runs" / RUNS[2]).exists()
    with pytest.MonkeyPatch.context() as patched:
        again: list[int] = []
        patched.setattr(Learner, "step", lambda self, rows, number: again.append(self.seed) or step(self, rows, number))
        assert call(*compare(folder, file)) == 0
    assert again == [4] * 2 + [0] * 4 + [4] * 4, "the finished run and the finished task are not repeated"
    return folder


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def mean_and_error(values: list[float]) -> str:
    """Of two values the standard error is half of what they differ by."""
    return f"{50 * sum(values):.1f} ± {50 * abs(values[0] - values[1]):.1f}"


def test_the_page_says_what_the_results_say(ended: Path) -> None:
    lines = (ended / "page.md").read_text().splitlines()
    assert lines[:4] == ["# Two ranks", "", "About", "them."]
    assert "Stream of the first row: split_digits, 2 tasks, scenario class, order seed none. " in lines[5]
    assert lines[5].endswith("Subset: classes 4, train_per_class 8, test_per_class 4.")
    head = next(index for index, line in enumerate(lines) if line.startswith("|"))
    names = cells(lines[head])
    assert names[1:6] == ["final average", "anytime", "own task", "forgetting", "backward transfer"]
    found = results(ended)
    seconds = [sum(run["seconds"][kind] for kind in ("train", "method")) for run in found]
    for row, label in enumerate(("rank 2", r"rank 3 \| gaussian")):
        own, shown = found[2 * row : 2 * row + 2], cells(lines[head + 2 + row])
        assert len(shown) == len(names) and shown[0] == label
        last = [run["accuracy_matrix"][-1] for run in own]
        first = [run["accuracy_matrix"][0] for run in own]
        assert shown[1] == mean_and_error([(a + b) / 2 for a, b in last])
        assert shown[2] == mean_and_error(
            [((a + b) / 2 + one) / 2 for (a, b), (one, _) in zip(last, first, strict=True)]
        )
        assert shown[3] == mean_and_error([(one + b) / 2 for (_, b), (one, _) in zip(last, first, strict=True)])
        assert shown[4] == mean_and_error([one - a for (a, _), (one, _) in zip(last, first, strict=True)])
        assert shown[5] == mean_and_error([a - one for (a, _), (one, _) in zip(last, first, strict=True)])
        assert shown[6] == f"{sum(run['seconds']['total'] for run in own) / 120:.1f}"
        assert shown[8] == f"{sum(seconds[2 * row : 2 * row + 2]) / sum(seconds[:2]):.2f}x"
        assert shown[7] == f"{sum(run['peak_memory_bytes'] for run in own) / 2**21:.0f} MiB"
    assert "seeds 0, 4, ± standard error over them." in (ended / "page.md").read_text()


def test_the_page_shows_the_matrix_of_each_rows_first_seed(ended: Path) -> None:
    page = (ended / "page.md").read_text()
    for label, run in zip(ROWS, results(ended)[::2], strict=True):
        block = page.split(f"## {label}\n")[1].split("##")[0].strip().splitlines()
        shown = [cells(line) for line in block if line.startswith("|")]
        assert shown[0] == ["after", "0, 1", "2, 3"]
        assert shown[2:] == [
            [name, *(f"{100 * value:.1f}" for value in row)]
            for name, row in zip(("0, 1", "2, 3"), run["accuracy_matrix"], strict=True)
        ]


def test_the_same_study_again_runs_nothing(ended: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (ended / "page.md").read_text()
    (ended / "page.md").unlink()
    monkeypatch.setattr(Learner, "__init__", None)
    assert call(*compare(ended, ended / "mine.yaml")) == 0
    assert (ended / "page.md").read_text() == before


def test_a_finished_row_whose_settings_have_changed_is_refused_before_a_new_one_starts(
    ended: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = {"new": ["method=lora"]} | ROWS | {"rank 3 | gaussian": ["method=lora", "head=prototype"]}
    (ended / "changed").mkdir()
    file = write(ended / "changed" / "mine.yaml", rows=changed)
    said = refusal(capsys, *compare(ended, file))
    assert said.startswith(f"{file}: row 'rank 3 | gaussian': name=mine-rank-3-gaussian-seed0: ")
    assert "holds a run with head.kind=gaussian, not prototype" in said
    assert not (ended / "runs" / "mine-new-seed0").exists()


LONG = {"long " * 30 + "a": ["method=lora"], "long " * 30 + "b": ["method=frozen"]}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown field": ({"row": {}}, "row: no such setting; did you mean rows?"),
    "no title": ({"title": None}, "title: a value is missing"),
    "no rows": ({"rows": {}}, "rows={}: "),
    "no seeds": ({"seeds": []}, "seeds=[]: "),
    "a seed twice": ({"seeds": [1, 1]}, "seeds=[1, 1]: name each seed once"),
    "a row in words": ({"rows": {"a": "method=lora"}}, "rows=method=lora: should be a valid list"),
    "an unknown setting": ({"rows": ROWS | {"c": ["method.rnk=2"]}}, "row 'c': method.rnk: no such setting; did you"),
    "an unknown option": ({"rows": ROWS | {"c": ["method=lroa"]}}, "row 'c': method=lroa: choose one of "),
    "an unusable value": ({"rows": ROWS | {"c": ["train.epochs=0"]}}, "row 'c': train.epochs=0: should be greater"),
    "a seed below zero": ({"seeds": [0, -1]}, "row 'rank 2': seed=-1: should be greater than or equal to 0"),
    "missing data": (
        {"rows": ROWS | {"c": ["benchmark=array", "benchmark.path=/nowhere.npz"]}},
        "row 'c': benchmark.path=/nowhere.npz: not found, ",
    ),
    "too many tasks": ({"rows": ROWS | {"c": ["benchmark.tasks=5"]}}, "row 'c': benchmark.tasks=5: split_digits has "),
    "missing weights": (
        {"rows": ROWS | {"c": ["backbone.pretrained=/nowhere.safetensors"]}},
        "row 'c': backbone.pretrained=/nowhere.safetensors: no such file",
    ),
    "one folder for two": (
        {"rows": {"rank 2": ["method=lora"], "rank-2": ["method=frozen"]}},
        "the rows 'rank 2' and 'rank-2' would have the same folder; rename one",
    ),
    "one folder for two long ones": ({"rows": LONG}, "the rows 'long long "),
}


@pytest.mark.parametrize("mistake", BAD)
def test_a_mistake_in_a_study_is_one_line_and_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mistake: str
) -> None:
    changes, expected = BAD[mistake]
    file = write(tmp_path / "mine.yaml", **changes)
    assert refusal(capsys, *compare(tmp_path, file)).startswith(f"{file}: {expected}")
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"title: [", "not YAML ("),
        (b"title: \xff", "not YAML ("),
        (b"", "not a study; it needs at least title and rows, as in docs/studies"),
        (b"- a\n- b", "not a study; it needs at least title and rows, as in docs/studies"),
        (None, "cannot be read (No such file or directory); name one as in docs/studies"),
    ],
)
def test_a_file_that_is_no_study_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, expected: str
) -> None:
    file = tmp_path / "mine.yaml"
    if content is not None:
        file.write_bytes(content)
    assert refusal(capsys, *compare(tmp_path, file)).startswith(f"{file}: {expected}")
    assert not (tmp_path / "runs").exists()


def test_a_page_that_cannot_be_written_is_told_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "mine.yaml")
    for page, reason in ((tmp_path, "it is a folder; name a file in it"), (file / "page.md", "cannot be written (")):
        said = refusal(capsys, *compare(tmp_path, file)[:-1], str(page))
        assert said.startswith(f"--output {page}: {reason}")
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_the_projects_own_studies_can_be_composed(file: Path) -> None:
    study = read_study(file)
    rows = experiments(file, study, [])
    assert list(rows) == list(study.rows)
    for runs in rows.values():
        assert [run.seed for run in runs] == study.seeds
        assert len({run.name for run in runs}) == len(runs)


def test_there_are_studies_in_the_project() -> None:
    assert {"pre_study", "streams"} <= {file.stem for file in STUDIES}


# --- small parts ---


def test_a_long_label_leaves_the_seed_in_the_name() -> None:
    assert run_name(Path("a/mine.yaml"), "LoRA, rank 8 (µ)", 3) == "mine-LoRA-rank-8-seed3"
    long = [run_name(Path("mine.yaml"), "label " * 40, seed) for seed in (3, 12)]
    assert [len(name) for name in long] == [100, 100] and [name[-6:] for name in long] == ["-seed3", "seed12"]


def test_the_command_holds_what_the_numbers_depend_on() -> None:
    file = PROJECT / "docs" / "studies" / "streams.yaml"
    given = ["storage=/data/runs", "tracking.enabled=false", "train.epochs=[1, 2]", "checkpoint.every=9"]
    assert command(file, given) == "run.py compare docs/studies/streams.yaml 'train.epochs=[1, 2]'"
    assert command(Path("/elsewhere/mine.yaml"), []) == "run.py compare mine.yaml"


def test_percentages_have_an_error_only_over_several_values() -> None:
    assert percent([0.5]) == "50.0" and percent([None]) == "–"
    assert percent([0.1, 0.2, 0.6]) == "30.0 ± 15.3"  # deviation sqrt(0.07) = 0.26458, over sqrt(3)


def test_a_bar_in_a_name_does_not_end_a_cell_and_known_tasks_show_the_other_reading() -> None:
    run = {"task_names": ["a | b"], "scores": ["accuracy"], "accuracy_matrix": [[0.5]], "unmasked_matrix": [[0.25]]}
    lines = matrix("one | two", run).splitlines()
    assert r"| after | a \| b |" in lines and r"| a \| b | 50.0 |" in lines
    assert lines[-1] == "With all seen classes competing, after the last task: 25.0."


def test_one_task_has_no_forgetting() -> None:
    run: dict[str, Any] = {"final_average_accuracy": 0.5, "average_anytime_accuracy": 0.5, "forgetting": None}
    run |= {"backward_transfer": None, "accuracy_matrix": [[0.5]], "peak_memory_bytes": 2**20}
    run |= {"seconds": {"train": 0.0, "method": 0.0, "total": 90.0}, "benchmark": "digits"}
    row = cells(table({"joint": [run]}).splitlines()[2])
    assert row == ["joint", "50.0", "50.0", "50.0", "–", "–", "1.5", "1 MiB", "0.00x"]
    head, _, *rows = table({"joint": [run], "other": [run | {"benchmark": "texts"}]}).splitlines()
    assert "training time" not in head, "times on two benchmarks cannot be compared"
    assert [len(cells(row)) for row in rows] == [len(cells(head))] * 2
