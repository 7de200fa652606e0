"""Texts that the library datasets loads: the same stream as from files, and how wrong descriptions are refused.

All is read from local folders of the files that the hub has.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest

from benchmarks.dataset import BenchmarkError, Dataset, StreamConfig
from benchmarks.texts.hub import hub_texts
from tests.benchmarks.test_texts import FILMS, NEWS, plain, read, written


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written(tmp_path / "mine", {"news": NEWS, "films": FILMS})


def from_hub(described: object, /, **settings: Any) -> Dataset:
    return hub_texts(StreamConfig(name="mine", source="hub_texts", options={"tasks": described}, **settings))


def hub_refusal(described: object, /, **settings: Any) -> str:
    with pytest.raises(BenchmarkError) as caught:
        from_hub(described, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def described(folder: Path, **fields: Any) -> dict[str, Any]:
    return {"dataset": str(folder), "text": "{text}", "label": "label"} | fields


def test_the_same_rows_from_datasets_are_the_same_stream(folder: Path) -> None:
    tasks = {name: described(folder / name) for name in ("films", "news")}
    for order in (("films", "news"), ("news", "films")):
        assert plain(from_hub(tasks, tasks=order)) == plain(read(folder, tasks=order))
    assert from_hub(tasks).group_names == ["films", "news"], "all, in the order of their descriptions"


def test_columns_of_parquet_files_are_joined_by_a_template_and_class_names_are_labels(tmp_path: Path) -> None:
    columns = {"word": ["call", "bank"], "use": ["a call", None], "same": [1, 0]}
    features = datasets.Features(
        {
            "word": datasets.Value("string"),
            "use": datasets.Value("string"),
            "same": datasets.ClassLabel(names=["n", "y"]),
        }
    )
    for split in ("train", "validation"):
        datasets.Dataset.from_dict(columns, features).to_parquet(tmp_path / "wic" / f"{split}.parquet")
    task = described(tmp_path / "wic", text="word: {word}\n{use}", label="same", test="validation")
    data = from_hub({"wic": task})
    assert data.train.items == ["word: call\na call", "word: bank\n"]
    assert data.class_names == ["n", "y"] and data.test.labels.tolist() == [1, 0]
    named = from_hub({"wic": task | {"labels": ["no", "yes"]}})
    assert named.class_names == ["no", "yes"] and named.test.labels.tolist() == [1, 0]


def test_a_folder_in_the_data_folder_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_DATA", str(folder))
    assert from_hub({"films": described(Path("films"))}).train.items == ["dull", "fine", "sport"]


def test_bad_rows_of_datasets_are_named_or_left_out(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": 0}, {"text": None, "label": 1}, {"text": "c", "label": -1}]
    folder = written(tmp_path / "mine", {"task": [{"text": "first", "label": 1}, *rows]})
    tasks = {"task": described(folder / "task", labels=["no", "yes"])}
    place = f"{folder}/task"
    assert hub_refusal(tasks).startswith(f"{place} train row 3: the text is empty; 3 more bad rows; ")
    assert from_hub(tasks, skip_bad=True).skipped == [
        f"{place} train row 3: the text is empty",
        f"{place} test row 2: the text is empty",
        f"{place} train row 4: label -1 is not in the task's list of labels",
        f"{place} test row 3: label -1 is not in the task's list of labels",
    ]


def test_a_hub_that_cannot_be_reached_is_told_in_one_line() -> None:
    assert hub_refusal({"agnews": described(Path("fancyzhx/ag_news"))}) == (
        "benchmark.options.tasks.agnews: fancyzhx/ag_news cannot be loaded (Couldn't reach 'fancyzhx/ag_news' on the "
        "Hub (OfflineModeIsEnabled)); check the name and the network, or name a folder of its files"
    )


def test_wrong_descriptions_of_tasks_are_refused(folder: Path) -> None:
    setting = "benchmark.options.tasks"
    good = described(folder / "news")
    assert hub_refusal({}).startswith(f"{setting}: describe the tasks as {{TASK: ")
    assert hub_refusal({"news": good}, tasks=("new",)) == (
        f"benchmark.tasks: no task 'new' in {setting}; there are news"
    )
    fields = "the fields are dataset, config, train, test, text, label, labels"
    unknown = hub_refusal({"news": good | {"column": "x"}})
    assert unknown == f"{setting}.news.column: Extra inputs are not permitted; {fields}"
    assert hub_refusal({"news": {"dataset": "x"}}) == f"{setting}.news.text: Field required; {fields}"
    for wrong in ({"label": "topic"}, {"text": "{topic}"}):
        there = f"no column 'topic' in {folder / 'news'}; there are text, label"
        assert hub_refusal({"news": good | wrong}) == f"{setting}.news: {there}"
    assert hub_refusal({"news": good | {"text": "{"}}).endswith("; columns are written as {column}")
    assert hub_refusal({"news": good | {"labels": ["a", "a"]}}) == f"{setting}.news.labels: a label is named twice"
    assert 'Unknown split "dev"' in hub_refusal({"news": good | {"test": "dev"}})
