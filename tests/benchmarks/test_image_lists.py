"""CUB-200-2011 and DomainNet: the published lists decide the split."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.dataset import SOURCES, BenchmarkError, Dataset, Records, StreamConfig
from benchmarks.images.folder import image_folder
from benchmarks.images.lists import cub200, domainnet


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_CACHE", str(tmp_path / "cache"))


def config(source: str, path: Path, **settings: Any) -> StreamConfig:
    return StreamConfig(name=source, source=source, path=path, **settings)


def draw(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 2)).save(file)


def names(records: Records) -> list[str]:
    assert all(isinstance(item, Path) and item.is_file() for item in records.items)
    return [item.name for item in records.items if isinstance(item, Path)]


def birds(root: Path) -> Path:
    """Two kinds of birds in three and two images."""
    images = [f"001.Albatross/A_{i}.jpg" for i in (9, 2, 5)] + [f"002.Auklet/B_{i}.jpg" for i in (1, 2)]
    for image in images:
        draw(root / "images" / image)
    (root / "attributes").mkdir()
    (root / "images.txt").write_text("".join(f"{n} {image}\n" for n, image in enumerate(images, 1)))
    (root / "train_test_split.txt").write_text("1 1\n2 0\n3 1\n4 0\n5 1\n")
    return root


def check_birds(data: Dataset) -> None:
    assert data.class_names == ["001.Albatross", "002.Auklet"]
    assert names(data.train) == ["A_5.jpg", "A_9.jpg", "B_2.jpg"] and data.train.labels.tolist() == [0, 0, 1]
    assert names(data.test) == ["A_2.jpg", "B_1.jpg"] and data.test.labels.tolist() == [0, 1]


def test_cub200_keeps_the_published_split(tmp_path: Path) -> None:
    root = birds(tmp_path / "CUB_200_2011")
    check_birds(cub200(config("cub200", root)))


def test_cub200_is_read_from_its_archive(tmp_path: Path) -> None:
    root = birds(tmp_path / "CUB_200_2011")
    (tmp_path / "attributes.txt").write_text("a list that lies beside the folder in the archive")
    with tarfile.open(tmp_path / "CUB_200_2011.tgz", "w:gz") as archive:
        archive.add(tmp_path / "attributes.txt", "attributes.txt")
        archive.add(root, root.name)
    check_birds(cub200(config("cub200", tmp_path / "CUB_200_2011.tgz")))


@pytest.mark.parametrize("missing", ["images.txt", "train_test_split.txt"])
def test_cub200_without_a_list_is_refused(tmp_path: Path, missing: str) -> None:
    root = birds(tmp_path / "CUB_200_2011")
    (root / missing).unlink()
    with pytest.raises(BenchmarkError, match="the list cannot be read") as caught:
        cub200(config("cub200", root))
    assert str(caught.value).startswith(f"{root / missing}: ")


def test_a_bad_line_is_refused_or_left_out(tmp_path: Path) -> None:
    root = birds(tmp_path / "CUB_200_2011")
    with (root / "images.txt").open("a") as file:
        file.write("\n6 002.Auklet/B 3.jpg\n")
    reason = f"{root / 'images.txt'}:7: 3 fields, not 2"
    with pytest.raises(BenchmarkError) as caught:
        cub200(config("cub200", root))
    assert str(caught.value) == f"{reason}; repair it or use --skip-bad"
    data = cub200(config("cub200", root, skip_bad=True))
    check_birds(data)
    assert data.skipped == [reason]


def pictures(root: Path) -> Path:
    """Two domains; sketch has the class cup in its test list only, as DomainNet's painting has t-shirt."""
    lists = {
        "real_train": ["real/cup/real_2.jpg", "real/axe/real_1.jpg"],
        "real_test": ["real/cup/real_3.jpg", "real/axe/real_4.jpg"],
        "sketch_train": ["sketch/axe/sketch_1.jpg"],
        "sketch_test": ["sketch/cup/sketch_2.jpg"],
    }
    for name, images in lists.items():
        for image in images:
            draw(root / image)
        (root / f"{name}.txt").write_text("".join(f"{image} {'cup' in image:d}\n" for image in images))
    return root


def test_domainnet_keeps_the_published_split_of_each_domain(tmp_path: Path) -> None:
    data = domainnet(config("domainnet", pictures(tmp_path / "domainnet"), scenario="domain"))
    assert data.class_names == ["axe", "cup"] and data.group_names == ["real", "sketch"]
    assert names(data.train) == ["real_1.jpg", "real_2.jpg", "sketch_1.jpg"]
    assert names(data.test) == ["real_4.jpg", "real_3.jpg", "sketch_2.jpg"]
    assert data.train.labels.tolist() == [0, 1, 0] and data.test.labels.tolist() == [0, 1, 1]
    assert data.train.groups is not None and data.test.groups is not None
    assert data.train.groups.tolist() == data.test.groups.tolist() == [0, 0, 1]


def test_domainnet_without_lists_is_refused(tmp_path: Path) -> None:
    root = pictures(tmp_path / "domainnet")
    (root / "sketch_test.txt").unlink()
    with pytest.raises(BenchmarkError, match=r"sketch_test.txt: the list cannot be read"):
        domainnet(config("domainnet", root, scenario="domain"))
    for file in root.glob("*.txt"):
        file.unlink()
    with pytest.raises(BenchmarkError, match=r"no list DOMAIN_train.txt in it; put it beside the domains$"):
        domainnet(config("domainnet", root, scenario="domain"))


def test_a_bad_line_of_tiny_imagenets_annotations_is_named(tmp_path: Path) -> None:
    root = tmp_path / "tiny"
    draw(root / "train" / "n01" / "images" / "n01_0.JPEG")
    draw(root / "val" / "images" / "val_0.JPEG")
    annotations = root / "val" / "val_annotations.txt"
    annotations.write_text("val_0.JPEG\tn01\t0\t0\t1\t1\nval_1.JPEG\n")
    with pytest.raises(BenchmarkError, match=r"val_annotations.txt:2: 1 fields, not 6"):
        image_folder(config("image_folder", root))
    data = image_folder(config("image_folder", root, skip_bad=True))
    assert names(data.test) == ["val_0.JPEG"] and data.skipped == [f"{annotations}:2: 1 fields, not 6"]


def test_the_readers_are_registered() -> None:
    assert SOURCES["cub200"] is cub200 and SOURCES["domainnet"] is domainnet
