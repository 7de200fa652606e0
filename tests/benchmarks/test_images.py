"""Digits, arrays, Omniglot and CIFAR-100: the rows that each source of ready images gives."""

from __future__ import annotations

import hashlib
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor
from torchvision.datasets import CIFAR100, Omniglot

from benchmarks.dataset import SOURCES, BenchmarkError, Dataset, StreamConfig
from benchmarks.images.arrays import array, digits
from benchmarks.images.lists import cub200, domainnet
from benchmarks.images.omniglot import omniglot, omniglot_background
from benchmarks.images.torchvision_sets import cifar100
from benchmarks.sources import data_root

REAL_OMNIGLOT = data_root() / "omniglot_8alphabets_32px.npz"
REAL_CIFAR = data_root() / "cifar100_100x100_50.npz"
NOWHERE = "http://127.0.0.1:9/"


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_CACHE", str(tmp_path / "cache"))


def config(source: str, path: Path | None = None, **settings: Any) -> StreamConfig:
    return StreamConfig(name=source, source=source, path=path, **settings)


def images(data: Dataset) -> tuple[Tensor, Tensor]:
    """Train and test images of a source that gives them ready."""
    assert isinstance(data.train.items, Tensor) and isinstance(data.test.items, Tensor)
    return data.train.items, data.test.items


def test_digits_are_ready_images() -> None:
    data = digits(config("digits"))
    train, test = images(data)
    assert train.shape == (1347, 3, 32, 32) and test.shape == (450, 3, 32, 32) and train.dtype == torch.uint8
    assert data.train.labels.shape == (1347,) and data.test.labels.bincount().tolist() == [
        45, 46, 44, 46, 45, 46, 45, 45, 43, 45,
    ]  # fmt: skip
    assert data.class_names == [str(digit) for digit in range(10)] and data.train.groups is None


def test_an_array_is_found_in_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_DATA", str(tmp_path))
    pixels = numpy.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), dtype=numpy.uint8)
    labels = numpy.array([0, 1, 1, 0])
    (tmp_path / "own").mkdir()
    numpy.savez(tmp_path / "own" / "set.npz", x_train=pixels, y_train=labels, x_test=pixels[:2], y_test=labels[:2])
    data = array(config("array", Path("own/set.npz")))
    train, test = images(data)
    assert torch.equal(train, torch.from_numpy(pixels).permute(0, 3, 1, 2)) and torch.equal(test, train[:2])
    assert data.train.labels.tolist() == [0, 1, 1, 0] and data.class_names == ["0", "1"]


@pytest.mark.parametrize("source", ["digits", "array", "omniglot", "omniglot_background", "cifar100"])
def test_an_option_that_is_not_known_is_refused(source: str) -> None:
    with pytest.raises(BenchmarkError, match=rf"^benchmark.options.fold: {source} has no such option; it has none$"):
        SOURCES[source](config(source, options={"fold": 1}))


# --- Omniglot ---


def characters(**changes: Any) -> dict[str, Any]:
    """Three characters of two alphabets by 20 drawers; the rows of the last two characters are interleaved."""
    labels = numpy.concatenate([numpy.zeros(20, int), numpy.tile([1, 2], 20)])
    alphabets = numpy.array(["Korean", "Greek", "Korean"])[labels]
    drawings = numpy.random.default_rng(0).integers(0, 256, (60, 4, 4), dtype=numpy.uint8)
    names = numpy.array(["Korean/1", "Greek/1", "Korean/2"])
    return {"x": drawings, "y": labels, "alphabet": alphabets, "classes": names} | changes


def test_the_first_15_drawers_of_each_character_are_learned_from(tmp_path: Path) -> None:
    content = characters()
    numpy.savez(tmp_path / "omniglot.npz", **content)
    data = omniglot(config("omniglot", tmp_path / "omniglot.npz"))
    assert data.class_names == ["Korean/1", "Greek/1", "Korean/2"] and data.group_names == ["Greek", "Korean"]
    train, test = images(data)
    rows = [*range(15, 20), *range(50, 60)]
    grey = torch.from_numpy(content["x"][rows])
    assert all(torch.equal(test[:, channel], grey) for channel in range(3)) and len(train) == 45
    assert data.test.labels.tolist() == [0] * 5 + [1, 2] * 5
    assert data.test.groups is not None and data.test.groups.tolist() == [1] * 5 + [0, 1] * 5
    assert data.train.labels.bincount().tolist() == [15, 15, 15]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"alphabet": numpy.array(["Greek"])}, "x, y, alphabet and classes do not fit together"),
        ({"classes": numpy.array(["a", "b"])}, "x, y, alphabet and classes do not fit together"),
        ({"x": numpy.zeros((60, 4))}, "x is float64 [60, 4], not [n, h, w] or [n, h, w, 3]"),
    ],
)
def test_characters_that_do_not_fit_together_are_refused(tmp_path: Path, changes: dict, reason: str) -> None:
    file = tmp_path / "omniglot.npz"
    numpy.savez(file, **characters(**changes))
    with pytest.raises(BenchmarkError) as caught:
        omniglot(config("omniglot", file))
    assert str(caught.value) == f"benchmark.path={file}: {reason}"


def test_a_missing_array_is_named(tmp_path: Path) -> None:
    content = characters()
    del content["alphabet"]
    numpy.savez(tmp_path / "omniglot.npz", **content)
    with pytest.raises(BenchmarkError, match="the array 'alphabet' is missing in it"):
        omniglot(config("omniglot", tmp_path / "omniglot.npz"))


@pytest.mark.realdata
@pytest.mark.skipif(not REAL_OMNIGLOT.is_file(), reason=f"{REAL_OMNIGLOT.name} is not in the data folder")
def test_the_8_alphabets_at_hand_are_tasks() -> None:
    data = omniglot(config("omniglot", REAL_OMNIGLOT))
    assert data.group_names[:3] == ["Balinese", "Early_Aramaic", "Greek"] and len(data.group_names) == 8
    assert data.train.labels.bincount().tolist() == [15] * 242 and data.test.labels.bincount().tolist() == [5] * 242
    assert data.train.groups is not None
    alphabets = [data.group_names[group] for group in data.train.groups.tolist()]
    named = [data.class_names[label].partition("/")[0] for label in data.train.labels.tolist()]
    assert alphabets == named


def md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes()).hexdigest()


def test_omniglot_is_read_as_torchvision_downloads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "omniglot-py"
    for name in ("Greek/character01", "Greek/character02", "Korean/character01"):
        (folder / "images_background" / name).mkdir(parents=True)
        for drawer in range(1, 21):
            Image.new("1", (3, 3)).save(folder / "images_background" / name / f"0001_{drawer:02}.png")
    with zipfile.ZipFile(folder / "images_background.zip", "w") as archive:
        for file in folder.rglob("*.png"):
            archive.write(file, file.relative_to(folder))
    monkeypatch.setattr(Omniglot, "zips_md5", {"images_background": md5(folder / "images_background.zip")})
    monkeypatch.setenv("EVERGREEN_DATA", str(tmp_path))
    data = omniglot_background(config("omniglot_background"))
    assert data.class_names == ["Greek/character01", "Greek/character02", "Korean/character01"]
    assert data.group_names == ["Greek", "Korean"]
    test = [item.name for item in data.test.items if isinstance(item, Path)]
    assert test == [f"0001_{drawer}.png" for drawer in range(16, 21)] * 3
    assert data.train.labels.bincount().tolist() == [15] * 3
    assert data.train.groups is not None and data.train.groups.bincount().tolist() == [30, 15]


# --- CIFAR-100 ---


def published(root: Path, count: int = 4) -> dict[str, numpy.ndarray]:
    """CIFAR-100's own format with a few random images, and their pixels [n, 3, 32, 32]."""
    folder, pixels = root / "cifar-100-python", {}
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        pixels[split] = numpy.random.default_rng(len(split)).integers(0, 256, (count, 3, 32, 32), dtype=numpy.uint8)
        rows = {"data": pixels[split].reshape(count, -1), "fine_labels": list(range(count)), "coarse_labels": [0]}
        (folder / split).write_bytes(pickle.dumps(rows, protocol=2))
    names = [f"class{number:02}" for number in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names}, protocol=2))
    return pixels


def accept(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    """Let torchvision take the files below ``root`` for the published ones."""
    folder = root / "cifar-100-python"
    for split in ("train", "test"):
        monkeypatch.setattr(CIFAR100, f"{split}_list", [[split, md5(folder / split)]])
    monkeypatch.setattr(CIFAR100, "meta", CIFAR100.meta | {"md5": md5(folder / "meta")})


@pytest.fixture
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder, and no network."""
    monkeypatch.setenv("EVERGREEN_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(CIFAR100, "url", NOWHERE + CIFAR100.filename)
    return tmp_path / "data"


def check_cifar(pixels: dict[str, numpy.ndarray]) -> None:
    data = cifar100(config("cifar100"))
    train, test = images(data)
    assert torch.equal(train, torch.from_numpy(pixels["train"])) and torch.equal(test, torch.from_numpy(pixels["test"]))
    assert data.train.labels.tolist() == data.test.labels.tolist() == [0, 1, 2, 3]
    assert len(data.class_names) == 100 and data.class_names[7] == "class07"


def test_cifar100_is_read_from_its_published_files(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = published(data_folder)
    accept(monkeypatch, data_folder)
    check_cifar(pixels)


def test_cifar100_is_unpacked_from_its_published_archive(
    tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = published(tmp_path / "made")
    accept(monkeypatch, tmp_path / "made")
    data_folder.mkdir()
    with tarfile.open(data_folder / CIFAR100.filename, "w:gz") as archive:
        archive.add(tmp_path / "made" / "cifar-100-python", "cifar-100-python")
    monkeypatch.setattr(CIFAR100, "tgz_md5", md5(data_folder / CIFAR100.filename))
    check_cifar(pixels)


@pytest.mark.parametrize("there", ["nothing", "other files"])
def test_cifar100_without_files_and_network_says_where_to_put_them(data_folder: Path, there: str) -> None:
    if there == "other files":
        published(data_folder)
    with pytest.raises(BenchmarkError) as caught:
        cifar100(config("cifar100"))
    message = str(caught.value)
    assert message.startswith(f"{data_folder / 'cifar-100-python.tar.gz'}: absent or damaged, and it cannot be downl")
    assert message.endswith("; put it there by hand, or set EVERGREEN_DATA to another folder") and "\n" not in message


@pytest.mark.realdata
@pytest.mark.skipif(not REAL_CIFAR.is_file(), reason=f"{REAL_CIFAR.name} is not in the data folder")
def test_the_subset_of_cifar100_is_an_array() -> None:
    data = array(config("array", Path(REAL_CIFAR.name)))
    train, test = images(data)
    assert train.shape == (10_000, 3, 32, 32) and test.shape == (5_000, 3, 32, 32)
    assert data.train.labels.bincount().tolist() == [100] * 100 and len(set(data.class_names)) == 100


# --- configurations ---

CONFIGURATIONS = Path(__file__).parents[2] / "configs" / "benchmark"
CONFIGURED: dict[str, tuple[str, int | None, str]] = {
    "array": ("array", None, "class"),
    "cifar100_subset": ("array", 10, "class"),
    "domainnet": ("domainnet", None, "domain"),
    "image_folder": ("image_folder", None, "class"),
    "omniglot": ("omniglot", None, "class"),
    "omniglot_background": ("omniglot_background", None, "class"),
    "split_cifar100": ("cifar100", 10, "class"),
    "split_cifar100_20": ("cifar100", 20, "class"),
    "split_cub200": ("cub200", 10, "class"),
    "split_digits": ("digits", 5, "class"),
    "split_domainnet": ("domainnet", 5, "class"),
    "split_imagenet_a": ("image_folder", 10, "class"),
    "split_imagenet_r_10": ("image_folder", 10, "class"),
    "split_imagenet_r_20": ("image_folder", 20, "class"),
    "split_imagenet_r_5": ("image_folder", 5, "class"),
    "split_tiny_imagenet": ("image_folder", 10, "class"),
    "tiny_imagenet_subset": ("image_folder", 10, "class"),
}


@pytest.mark.parametrize("name", CONFIGURED)
def test_a_configured_stream_begins_with_a_line_about_it_and_names_its_source(name: str) -> None:
    text = (CONFIGURATIONS / f"{name}.yaml").read_text()
    stream = StreamConfig(**yaml.safe_load(text))
    assert text.startswith("# ") and stream.name == name
    assert (stream.source, stream.tasks, stream.scenario) == CONFIGURED[name]


@pytest.mark.parametrize(
    ("name", "reader"), [("split_cub200", cub200), ("domainnet", domainnet), ("split_domainnet", domainnet)]
)
def test_a_set_that_is_not_there_says_where_it_is_published(
    name: str, reader: Callable[[StreamConfig], Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERGREEN_DATA", str(tmp_path))
    stream = StreamConfig(**yaml.safe_load((CONFIGURATIONS / f"{name}.yaml").read_text()))
    with pytest.raises(BenchmarkError, match=f"get it from {stream.options['origin']} and put it there"):
        reader(stream)
