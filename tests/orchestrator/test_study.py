"""Studies: the page says what the runs gave, nothing is run twice, and a mistake anywhere starts nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from orchestrator.compare import run_study
from orchestrator.run import trials
from orchestrator.run.checkpoint import write_json
from orchestrator.run.learner import Learner
from orchestrator.settings.config import Experiment
from orchestrator.study import command, experiments, read_study, run_name
from tests.orchestrator.test_cli import PROJECT, call, refusal
from tests.support.study_pages import cells, html_cells, made, markdown_cells

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
    storage = f"storage={folder / 'runs'}"
    return ["compare", str(file), storage, "sweep.concurrent=1", "--output", str(folder / "page.md")]


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


def mean_and_error(values: list[float]) -> str:
    """Of two values the standard error is half of what they differ by."""
    return f"{50 * sum(values):.1f} ± {50 * abs(values[0] - values[1]):.1f}"


def test_the_page_says_what_the_results_say(ended: Path) -> None:
    lines = (ended / "page.md").read_text().splitlines()
    assert lines[:4] == ["# Two ranks", "", "About", "them."]
    assert "Stream of the first row: split_digits, 2 tasks, scenario class, order seed none. " in lines[5]
    assert lines[5].endswith("Subset: classes 4, train_per_class 8, test_per_class 4.")
    assert lines[7] == "Rows differ in head.kind."
    head = next(index for index, line in enumerate(lines) if line.startswith("|"))
    names = cells(lines[head])
    assert names[1:4] == ["final average", "validation", "anytime"]
    assert names[4:7] == ["own task", "forgetting", "backward transfer"]
    found = results(ended)
    seconds = [sum(run["seconds"][kind] for kind in ("train", "method")) for run in found]
    for row, label in enumerate(("rank 2", r"rank 3 \| gaussian")):
        own, shown = found[2 * row : 2 * row + 2], cells(lines[head + 2 + row])
        assert len(shown) == len(names) and shown[0] == label
        last = [run["accuracy_matrix"][-1] for run in own]
        first = [run["accuracy_matrix"][0] for run in own]
        assert shown[1] == mean_and_error([(a + b) / 2 for a, b in last])
        assert shown[2] == mean_and_error([sum(run["validation_matrix"][-1]) / 2 for run in own])
        assert shown[3] == mean_and_error(
            [((a + b) / 2 + one) / 2 for (a, b), (one, _) in zip(last, first, strict=True)]
        )
        assert shown[4] == mean_and_error([(one + b) / 2 for (_, b), (one, _) in zip(last, first, strict=True)])
        assert shown[5] == mean_and_error([one - a for (a, _), (one, _) in zip(last, first, strict=True)])
        assert shown[6] == mean_and_error([a - one for (a, _), (one, _) in zip(last, first, strict=True)])
        assert shown[7] == f"{sum(run['seconds']['total'] for run in own) / 120:.1f}"
        assert shown[8] == f"{sum(run['peak_memory_bytes'] for run in own) / 2**21:.0f} MiB"
        shares = [run["seconds"]["method"] / (run["seconds"]["train"] + run["seconds"]["method"]) for run in own]
        assert shown[9] == f"{sum(run['stored_parameters'] for run in own) / 2000:.0f} k"
        assert shown[10] == f"{50 * sum(shares):.1f} %"
        assert shown[11] == f"{sum(seconds[2 * row : 2 * row + 2]) / sum(seconds[:2]):.2f}x"
    assert names[8:11] == ["peak memory", "stored", "method's share"]
    page = (ended / "page.md").read_text()
    assert "seeds 0, 4, ± standard error over them." in page
    assert "*Stored*: numbers that the adapted model holds beside backbone and head." in page


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


def test_the_html_has_the_words_and_numbers_of_the_markdown(ended: Path) -> None:
    markdown, html = (ended / "page.md").read_text(), (ended / "page.html").read_text()
    assert html_cells(html) == markdown_cells(markdown)
    assert len(html_cells(html)) == 3 + 2 * 3, "the comparison and two matrices"
    assert "<h1>Two ranks</h1>" in html and "<title>Two ranks</title>" in html
    assert "<h2>rank 3 | gaussian</h2>" in html


def test_the_same_study_again_runs_nothing_and_counts_its_runs(
    ended: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (ended / "page.md").read_text()
    (ended / "page.md").unlink()
    monkeypatch.setattr(Learner, "__init__", None)
    assert call(*compare(ended, ended / "mine.yaml")) == 0
    assert (ended / "page.md").read_text() == before
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [f"page: {ended / 'page.md'}", f"HTML: {ended / 'page.html'}"]
    assert printed.err == ""


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
    "groups without one": ({"groups": {}}, "groups={}: "),
    "an unknown setting of a group": (
        {"groups": {"few": ["train.epoch=1"]}},
        "row 'few, rank 2': train.epoch: no such setting; did you mean train.epochs?",
    ),
    "one folder for two groups": (
        {"groups": {"a b": [], "a-b": []}},
        "the rows 'a b, rank 2' and 'a-b, rank 2' would have the same folder; rename one",
    ),
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
    for output, reason in (
        (tmp_path, "it is a folder; name a file in it"),
        (file / "page.md", "cannot be written ("),
        (tmp_path / "page.html", "name the Markdown file, as in page.md; its HTML goes beside it"),
    ):
        said = refusal(capsys, *compare(tmp_path, file)[:-1], str(output))
        assert said.startswith(f"--output {output}: {reason}")
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_the_projects_own_studies_can_be_composed(file: Path) -> None:
    study = read_study(file)
    groups = experiments(file, study, [])
    assert list(groups) == list(study.groups)
    assert all(list(rows) == list(study.rows) for rows in groups.values())
    for runs in (runs for rows in groups.values() for runs in rows.values()):
        assert [run.seed for run in runs] == study.seeds
        assert len({run.name for run in runs}) == len(runs)


def test_there_are_studies_in_the_project() -> None:
    assert {"pre_study", "streams"} <= {file.stem for file in STUDIES}


def test_every_row_is_run_under_each_group_and_what_the_row_sets_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = {"few": ["train.epochs=1"], "wide": ["train.epochs=2", "head=gaussian"]}
    rows = {"LoRA": ["method=lora"], "floor": ["method=frozen", "train.epochs=5"]}
    file = write(tmp_path / "mine.yaml", groups=groups, rows=rows, seeds=[0, 1])
    ran: list[Experiment] = []

    def run(experiment: Experiment, report: Callable[[dict[str, Any]], None]) -> None:
        ran.append(experiment)
        result = made(experiment.method.name, 0.9, 0, 0.2, 0.8, 0.3, 0.5, seconds=3, seed=experiment.seed)
        write_json(experiment.folder / "result.json", result)

    monkeypatch.setattr(trials, "run_here", run)
    settings = [f"storage={tmp_path / 'runs'}", "sweep.concurrent=1", "tracking.enabled=false"]
    found = run_study(file, read_study(file), tmp_path / "page.md", settings, "run.py compare mine.yaml")
    assert list(found) == ["few, LoRA", "few, floor", "wide, LoRA", "wide, floor"]
    assert [run.name for run in ran[::2]] == [f"mine-{name.replace(', ', '-')}-seed0" for name in found]
    assert [run.train.epochs for run in ran[::2]] == [1, 5, 2, 5]
    assert [run.head.kind for run in ran[1::2]] == ["auto", "auto", "gaussian", "gaussian"]
    assert [run.seed for run in ran] == [0, 1] * 4
    written = (tmp_path / "page.md").read_text()
    assert written.count("| LoRA |") == 2 and written.index("## few\n") < written.index("## wide\n")
    assert html_cells((tmp_path / "page.html").read_text()) == markdown_cells(written)


def test_a_long_label_leaves_the_seed_in_the_name() -> None:
    assert run_name(Path("a/mine.yaml"), "LoRA, rank 8 (µ)", 3) == "mine-LoRA-rank-8-seed3"
    long = [run_name(Path("mine.yaml"), "label " * 40, seed) for seed in (3, 12)]
    assert [len(name) for name in long] == [100, 100] and [name[-6:] for name in long] == ["-seed3", "seed12"]


def test_the_command_holds_what_the_numbers_depend_on() -> None:
    file = PROJECT / "docs" / "studies" / "streams.yaml"
    given = ["storage=/data/runs", "tracking.enabled=false", "train.epochs=[1, 2]", "checkpoint.every=9"]
    assert command(file, given) == "run.py compare docs/studies/streams.yaml 'train.epochs=[1, 2]'"
    assert command(Path("/elsewhere/mine.yaml"), []) == "run.py compare mine.yaml"
