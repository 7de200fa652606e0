"""Texts: how tasks become classes and groups, and how each unusable line is named."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks.dataset import FREE, BenchmarkError, Dataset, StreamConfig
from benchmarks.sources import data_root
from benchmarks.texts.folder import jsonl_folder
from benchmarks.texts.prompts import as_prompt
from orchestrator.run.session import read_stream
from orchestrator.settings.compose import load_experiment
from tests.support import planted

CL15, TRACE = data_root() / "cl15.tar.gz", data_root() / "trace8.tar.gz"
NEWS = [
    {"text": "a goal", "label": "sport"},
    {"text": "a vote", "label": "politics"},
    {"text": "1-0", "label": "sport"},
]
FILMS = [{"text": "dull", "label": "bad"}, {"text": "fine", "label": "good"}, {"text": "sport", "label": "sport"}]
SUMS = [{"prompt": "1+1=", "answer": "2"}, {"prompt": "2+2=", "answer": "4"}]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two labelled tasks, which share the word sport, and a free one between them."""
    return written(tmp_path / "mine", {"news": NEWS, "films": FILMS, "maths": SUMS})


def written(folder: Path, tasks: dict[str, list[dict[str, Any]]], ending: str = "jsonl") -> Path:
    """Train rows are all, test rows all but the first."""
    for name, rows in tasks.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for split, part in (("train", rows), ("test", rows[1:])):
            lines = "\n".join(map(json.dumps, part))
            (folder / name / f"{split}.{ending}").write_text(lines if ending == "jsonl" else json.dumps(part))
    return folder


def config(path: Path | None, **settings: Any) -> StreamConfig:
    return StreamConfig(name="mine", source="jsonl_folder", path=path, **settings)


def read(path: Path, **settings: Any) -> Dataset:
    return jsonl_folder(config(path, **settings))


def plain(data: Dataset) -> list[object]:
    """Everything in a data set, to be compared."""
    found: list[object] = [data.class_names, data.group_names]
    for part in (data.train, data.test):
        assert part.groups is not None
        found += [list(part.items), part.labels.tolist(), part.groups.tolist(), list(part.answers)]
    return found


def refusal(path: Path, **settings: Any) -> str:
    with pytest.raises(BenchmarkError) as caught:
        read(path, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_each_task_is_a_group_with_classes_of_its_own(folder: Path) -> None:
    data = read(folder)
    assert data.group_names == ["films", "maths", "news"], "by name"
    assert data.class_names == ["bad", "good", "sport", "politics", "sport"]
    assert data.train.items == ["dull", "fine", "sport", "1+1=", "2+2=", "a goal", "a vote", "1-0"]
    assert data.train.labels.tolist() == [0, 1, 2, FREE, FREE, 4, 3, 4]
    assert data.train.groups is not None and data.train.groups.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert data.train.answers == ["", "", "", "2", "4", "", "", ""]
    assert data.test.items == ["fine", "sport", "2+2=", "a vote", "1-0"]
    assert data.test.labels.tolist() == [1, 2, FREE, 3, 4]
    assert data.skipped == []


def test_tasks_come_in_the_order_they_are_named_in_and_no_other_is_read(folder: Path) -> None:
    (folder / "maths" / "train.jsonl").write_text("not JSON")
    data = read(folder, tasks=("news", "films"))
    assert data.group_names == ["news", "films"]
    assert data.class_names == ["politics", "sport", "bad", "good", "sport"]
    assert data.train.answers == [], "no answer is free"
    assert refusal(folder, tasks=("news", "film")) == (
        f"benchmark.tasks: no task 'film' in {folder}; there are films, maths, news"
    )


def test_json_lists_are_read_as_json_lines_are(folder: Path, tmp_path: Path) -> None:
    lists = written(tmp_path / "lists", {"news": NEWS, "films": FILMS, "maths": SUMS}, "json")
    assert plain(read(lists)) == plain(read(folder))


@pytest.mark.parametrize("place", ["news/labels.json", "tasks.json"])
def test_a_given_list_orders_the_labels_and_integers_count_into_it(folder: Path, place: str) -> None:
    labels = ["sport", "politics"]
    (folder / place).write_text(json.dumps(labels if "labels" in place else {"news": {"labels": labels}, "films": {}}))
    (folder / "news" / "test.jsonl").write_text('{"text": "x", "label": 1}\n{"text": "y", "label": "politics"}')
    data = read(folder, tasks=("news", "films"))
    assert data.class_names == ["sport", "politics", "bad", "good", "sport"]
    assert data.test.labels.tolist()[:2] == [1, 1]


def test_integer_labels_are_classes_in_their_own_order(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": 10}, {"text": "b", "label": 9}, {"text": "c", "label": 10}]
    data = read(written(tmp_path / "mine", {"task": rows}))
    assert data.class_names == ["9", "10"]
    assert data.train.labels.tolist() == [1, 0, 1]


def test_byte_order_marks_blank_lines_and_line_separators_inside_texts_do_no_harm(folder: Path) -> None:
    text = "one\u2028two\x85three"
    lines = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in [{"text": text, "label": "sport"}, *NEWS])
    (folder / "news" / "train.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode() + b"\r\n\r\n")
    assert read(folder, tasks=("news",)).train.items == [text, "a goal", "a vote", "1-0"]


def archived(folder: Path, ending: str) -> Path:
    return Path(shutil.make_archive(str(folder.parent / "packed"), ending, folder.parent, folder.name))


@pytest.mark.parametrize("ending", ["gztar", "zip"])
def test_an_archive_is_unpacked_once_and_its_top_folder_entered(folder: Path, ending: str, tmp_path: Path) -> None:
    archive = archived(folder, ending)
    assert plain(read(archive)) == plain(read(folder))
    [unpacked] = (folder for folder in (tmp_path / "cache").glob("unpacked-*") if folder.is_dir())
    file = unpacked / "mine" / "news" / "train.jsonl"
    file.write_text(file.read_text() + '\n{"text": "", "label": "sport"}')
    assert refusal(archive).startswith(f"{archive}/news/train.jsonl:4: the text is empty"), "read again, not unpacked"


def test_a_single_folder_around_the_tasks_is_entered(folder: Path) -> None:
    around = folder.parent / "around"
    around.mkdir()
    folder = folder.rename(around / "mine")
    assert read(around).group_names == ["films", "maths", "news"]
    (folder / "news" / "train.jsonl").write_text("{}")
    assert refusal(around).startswith(f"{folder}/news/train.jsonl:1: "), "the file that is there"


def test_another_archive_of_the_same_name_is_unpacked_anew(folder: Path) -> None:
    before = read(archived(folder, "zip"))
    shutil.rmtree(folder / "maths")
    assert before.group_names != read(archived(folder, "zip")).group_names == ["films", "news"]


def test_files_that_would_leave_the_folder_are_not_unpacked(folder: Path, tmp_path: Path) -> None:
    archive = archived(folder, "tar")
    with tarfile.open(archive, "a") as opened:
        opened.addfile(tarfile.TarInfo("../outside.txt"), io.BytesIO())
    assert refusal(archive).startswith(f"benchmark.path={archive}: cannot be unpacked (")
    archive = archived(folder, "zip")
    with zipfile.ZipFile(archive, "a") as opened_zip:
        opened_zip.writestr("../outside.txt", "x")
    assert refusal(archive) == f"benchmark.path={archive}: '../outside.txt' in it would be written elsewhere"
    assert not list(tmp_path.rglob("outside.txt"))


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    for name in ("cut.tar.gz", "cut.zip", "table.csv"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 cut")
        assert refusal(tmp_path / name).startswith(f"benchmark.path={tmp_path / name}: neither a folder nor a whole ")


BAD_LINES = {
    "not JSON": (b'{"text": "x", "label"', "not JSON (Expecting ':' delimiter at column 22)"),
    "not an object": (b'["x", "y"]', "not an object"),
    "deep": (b"[" * 100_000, "not JSON ("),
    "no label": (b'{"text": "x"}', "fields are missing; a row needs text and label, or prompt and answer"),
    "neither form": (b'{"question": "x", "label": "y"}', "fields are missing; a row needs text and label, or"),
    "both forms": (b'{"text": "x", "label": "y", "prompt": "x", "answer": "y"}', "has both forms; a row needs"),
    "text of a wrong type": (b'{"text": 3, "label": "sport"}', "the text is not a string"),
    "label of a wrong type": (b'{"text": "x", "label": 1.5}', "the label is neither a text nor a whole number"),
    "label that is nothing": (b'{"text": "x", "label": null}', "the label is neither a text nor a whole number"),
    "empty text": (b'{"text": " \\n", "label": "sport"}', "the text is empty"),
    "empty label": (b'{"text": "x", "label": ""}', "the label is empty"),
    "Latin-1": (b'{"text": "caf\xe9", "label": "sport"}', "not UTF-8 (byte 14 of the line), likely Windows-1252"),
    "lone surrogate": (b'{"text": "\\ud800", "label": "sport"}', "the text has half of a character"),
    "other form": (b'{"prompt": "x", "answer": "y"}', "other fields than the task's first row; all rows need text"),
    "label only in test": (b'{"text": "x", "label": "art"}', "label 'art' is in no train row of the task"),
}


@pytest.mark.parametrize("mistake", BAD_LINES)
def test_a_bad_line_is_named_with_its_file_and_number_or_left_out(folder: Path, mistake: str) -> None:
    line, reason = BAD_LINES[mistake]
    file = folder / "news" / "test.jsonl"
    good = file.read_bytes()
    file.write_bytes(good + b"\n\n" + line)
    message = refusal(folder)
    assert message.startswith(f"{file}:4: {reason}")
    assert message.endswith("; correct this, or leave bad rows out with --skip-bad")
    data = read(folder, skip_bad=True)
    assert len(data.skipped) == 1 and data.skipped[0].startswith(f"{file}:4: {reason}")
    file.write_bytes(good)
    assert plain(read(folder)) == plain(data)


def test_more_bad_lines_are_counted_and_each_is_named_when_left_out(folder: Path) -> None:
    for name in ("news", "films"):
        file = folder / name / "train.jsonl"
        file.write_bytes(b'{"text": "", "label": "x"}\n' + file.read_bytes() + b"\n{}")
    reason = "the text is empty; 3 more bad rows; correct this, or leave bad rows out with --skip-bad"
    assert refusal(folder) == f"{folder}/films/train.jsonl:1: {reason}"
    places = [skipped.split(": ")[0] for skipped in read(folder, skip_bad=True).skipped]
    assert places == [f"{folder}/{task}/train.jsonl:{line}" for task in ("films", "news") for line in (1, 5)]


def test_a_label_outside_the_given_list_is_a_bad_line(folder: Path) -> None:
    (folder / "news" / "labels.json").write_text('["sport"]')
    message = f"{folder}/news/train.jsonl:2: label 'politics' is not in the task's list of labels; 1 more bad rows;"
    assert refusal(folder).startswith(message)
    assert len(read(folder, skip_bad=True).skipped) == 2


def test_an_entry_of_a_json_list_is_named_by_its_number(tmp_path: Path) -> None:
    folder = written(tmp_path / "mine", {"maths": SUMS}, "json")
    file = folder / "maths" / "train.json"
    file.write_text(json.dumps([*SUMS, {"prompt": "3+3=", "answer": ""}]))
    assert refusal(folder).startswith(f"{file}: entry 3: the answer is empty; ")
    assert read(folder, skip_bad=True).train.answers == ["2", "4"]


WHOLE_FILES = {
    "cut": (b'[{"prompt": "x",\n "answer', ":2: not JSON (Unterminated string starting at); correct the file"),
    "Latin-1": (b'[\n\n{"prompt": "caf\xe9"}]', ":3: not UTF-8, likely Windows-1252; correct the file"),
    "object": (b"{}", ": not a JSON list; put one line for each row into a .jsonl file instead"),
    "empty list": (b"[]", ": the file is empty; add rows or leave out the task 'maths'"),
    "empty": (b"", ": the file is empty; add rows or leave out the task 'maths'"),
}


@pytest.mark.parametrize("mistake", WHOLE_FILES)
def test_a_json_file_that_is_no_list_is_refused(tmp_path: Path, mistake: str) -> None:
    file = written(tmp_path / "mine", {"maths": SUMS}, "json") / "maths" / "train.json"
    content, expected = WHOLE_FILES[mistake]
    file.write_bytes(content)
    assert refusal(tmp_path / "mine", skip_bad=True) == f"{file}{expected}"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "labels.json:1: not JSON (Expecting property name enclosed in double quotes); correct the file"),
        ('"sport"', "labels.json: the labels are not a list of strings or integers"),
        ("[]", "labels.json: the labels are not a list of strings or integers"),
        ('["a", null]', "labels.json: the label is neither a text nor a whole number"),
        ('["a", "b", "a"]', "labels.json: a label is named twice"),
    ],
)
def test_a_wrong_list_of_labels_is_refused(folder: Path, content: str, reason: str) -> None:
    (folder / "news" / "labels.json").write_text(content)
    assert refusal(folder) == f"{folder}/news/{reason}"


def test_an_empty_file_and_one_without_a_good_line_are_refused(folder: Path) -> None:
    file = folder / "news" / "test.jsonl"
    file.write_text("\n\n")
    assert refusal(folder, skip_bad=True) == f"{file}: the file is empty; add rows or leave out the task 'news'"
    file.write_text("no\nno")
    assert refusal(folder).startswith(f"{file}:1: not JSON (Expecting value at column 1); 1 more bad rows; ")
    assert refusal(folder, skip_bad=True) == (f"{file}: no usable row is in it; add some or leave out the task 'news'")


def test_a_task_needs_one_file_of_each_split(folder: Path) -> None:
    (folder / "news" / "train.json").write_text("[]")
    assert refusal(folder) == (
        f"{folder}/news: train.json and train.jsonl are both there; a task needs one file of each split"
    )
    (folder / "films" / "test.jsonl").unlink()
    assert refusal(folder) == f"{folder}/films: no test.jsonl (or test.json); a task needs one file of each split"


def test_a_folder_without_tasks_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty" / "inside").mkdir(parents=True)
    assert refusal(tmp_path / "empty") == (
        f"benchmark.path={tmp_path / 'empty'}: no task in it; each task is a folder with train.jsonl and test.jsonl"
    )
    assert refusal(tmp_path / "none").startswith(f"benchmark.path={tmp_path / 'none'}: not found")


ONE_LABEL = [
    (["cat", "cat ", "\tcat"], ["cat"], True),
    ([1, "1", 1.0, "2"], ["1", "2"], True),
    (["caf\u00e9", "cafe\u0301"], ["caf\u00e9"], True),
    ([True, "true", False], ["false", "true"], False),
    ([1.0, 2, 1], [1, 2], False),
    (["Cat", "cat"], ["Cat", "cat"], False),
]


@pytest.mark.parametrize(("labels", "classes", "rewritten"), ONE_LABEL)
def test_labels_that_mean_the_same_are_one_class(
    tmp_path: Path, labels: list[Any], classes: list[Any], rewritten: bool
) -> None:
    rows = [{"text": f"text {number}", "label": label} for number, label in enumerate(labels)]
    folder = written(tmp_path / "mine", {"pets": [rows[0], *rows]})  # test rows are all of them
    data = read(folder)
    assert data.class_names == [str(name) for name in classes]
    found = {note.split(" ", 1)[1].partition(" (")[0]: int(note.split()[0]) for note in data.account.lines()}
    assert (found.pop("labels written in another way than the rest", 0) > 0) == rewritten
    assert list(found) == (["labels that differ from another in case alone"] if classes == ["Cat", "cat"] else [])


def test_a_label_written_in_another_way_is_named_with_its_line(tmp_path: Path) -> None:
    rows = [{"text": "purrs", "label": "cat"}, {"text": "meows", "label": "cat "}, {"text": "barks", "label": "dog"}]
    data = read(written(tmp_path / "mine", {"pets": rows}))
    place = tmp_path / "mine" / "pets" / "train.jsonl"
    assert data.account.lines() == [f"2 labels written in another way than the rest (first: {place}:2: 'cat ')"]


def test_content_that_is_in_train_and_test_or_has_two_labels_is_counted(tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "pets"
    texts = {"purrs": "cat", "meows": "cat", "barks": "dog", "growls": "dog"}
    train = [{"text": text, "label": label} for text, label in texts.items()]
    folder.mkdir(parents=True)
    planted.write_rows(folder / "train.jsonl", [*train, {"text": "purrs", "label": "dog"}])
    planted.write_rows(folder / "test.jsonl", [{"text": "meows", "label": "dog"}, {"text": "howls", "label": "cat"}])
    settings = ["benchmark=jsonl_folder", f"benchmark.path={tmp_path / 'mine'}", "storage=unused"]
    stream = read_stream(load_experiment(settings))
    assert [line.partition(" (")[0] for line in stream.account.lines()] == [
        "1 train rows that are those of another class too",
        "1 test rows that are in the train split too",
        "1 test rows that have another label in the train split",
    ]
    assert "(first: 'meows' is 'meows')" in stream.account.lines()[1]


def test_a_template_is_filled_with_text_and_options() -> None:
    text = "braces {in} a {text}"
    assert as_prompt("{text}\nOne of {options}:", text, ["a", "b c"]) == f"{text}\nOne of a, b c:"


def test_a_line_break_in_a_template_may_be_typed_as_in_a_shell() -> None:
    assert as_prompt(r"Review: {text}\nLabel:\t", r"a\n", ["x"]) == "Review: a\\n\nLabel:\t"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{txt}", "'txt' cannot be filled in; the fields are {text} and {options}"),
        ("{text} {", "Single '{' encountered in format string cannot be filled in; the fields are"),
        ("{}{text}", "the fields are {text} and {options}"),
        ("{text.nothing}", "the fields are {text} and {options}"),
        ("{options}", "{text} is missing in it"),
    ],
)
def test_a_template_with_other_fields_is_refused(template: str, reason: str) -> None:
    with pytest.raises(BenchmarkError) as caught:
        as_prompt(template, "x", ["a"])
    assert str(caught.value).startswith(f"benchmark.text.template={template!r}: ") and reason in str(caught.value)


def settings(choice: str) -> StreamConfig:
    return load_experiment([choice, "name=x"]).benchmark


@pytest.mark.parametrize("number", range(1, 7))
def test_the_orders_of_hub_and_archive_have_the_same_tasks_but_another_name(number: int) -> None:
    hub, archive = (settings(f"benchmark={name}_order{number}") for name in ("cl", "cl15"))
    assert hub.tasks == archive.tasks and isinstance(hub.tasks, tuple)
    assert len(hub.tasks) == (4 if number < 4 else 15)
    assert (hub.name, archive.name) == (f"cl_order{number}", f"cl15_order{number}")
    assert set(hub.tasks) <= set(hub.options["tasks"]), "each is described"


@pytest.mark.realdata
@pytest.mark.skipif(not CL15.is_file(), reason="cl15.tar.gz is not in the data folder")
def test_the_15_tasks_have_their_rows_and_60_classes() -> None:
    stream = settings("benchmark=cl15_order4")
    data = jsonl_folder(stream)
    assert (len(data.train), len(data.test), len(data.class_names)) == (36446, 19543, 60)
    assert data.group_names == list(stream.tasks or ()) and data.skipped == []
    assert data.class_names[:6] == ["neutral", "entailment", "contradiction", "entailment", "contradiction", "neutral"]
    assert data.train.groups is not None and Counter(data.train.groups.tolist())[0] == 3000
    assert data.train.answers == [] and int(data.train.labels.min()) == 0
    words = {
        name: task["labels"]
        for name, task in settings("benchmark=cl_order4").options["tasks"].items()
        if "labels" in task
    }
    for task, name in enumerate(data.group_names):
        found = {data.class_names[c] for c in data.train.labels[data.train.groups == task].tolist()}
        assert found == set(words.get(name, found)), "the hub's words are the same"


@pytest.mark.realdata
@pytest.mark.skipif(not TRACE.is_file(), reason="trace8.tar.gz is not in the data folder")
def test_trace_has_its_8_tasks_with_free_answers() -> None:
    stream = settings("benchmark=trace")
    data = jsonl_folder(stream)
    assert data.group_names == list(stream.tasks or ()) and data.class_names == []
    assert (len(data.train), len(data.test)) == (11223, 5341)
    assert set(data.train.labels.tolist()) == {FREE} and all(data.train.answers)
    assert set(stream.text.scores) == set(data.group_names)
