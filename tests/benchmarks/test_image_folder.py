"""Folders of images: the layouts that are read, which rows they give, and how unusable ones are refused."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from benchmarks.dataset import BenchmarkError, Dataset, Records, StreamConfig
from benchmarks.formats import ImageFormat
from benchmarks.images.decode import prepare_images
from benchmarks.images.folder import image_folder
from benchmarks.sources import data_root
from benchmarks.stream import build_stream

TINY = data_root() / "tiny_imagenet_200x50_20.zip"


pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "images"


def fill(folder: Path, *names: str) -> None:
    """Small images with these names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (2, 2)).save(folder / name)


def numbered(folder: Path, count: int) -> None:
    fill(folder, *(f"{index:02}.png" for index in range(count)))


def read(path: Path, **settings: Any) -> Dataset:
    return image_folder(StreamConfig(name="image_folder", source="image_folder", path=path, **settings))


def refusal(path: Path, **settings: Any) -> str:
    with pytest.raises(BenchmarkError) as caught:
        read(path, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rows(records: Records, root: Path) -> list[tuple[str, int]]:
    """Path below ``root`` and label of each row."""
    files = [item.relative_to(root).as_posix() for item in records.items if isinstance(item, Path)]
    return list(zip(files, records.labels.tolist(), strict=True))


# --- layouts ---


@pytest.mark.parametrize("test", ["test", "val", "validation"])
def test_published_splits_are_kept(root: Path, test: str) -> None:
    fill(root / "train" / "dog", "b.png", "a.jpg")
    fill(root / "train" / "cat", "c.webp")
    fill(root / test / "dog", "d.PNG")
    fill(root / test / "cat", "e.gif", "f.bmp")
    data = read(root)
    assert data.class_names == ["cat", "dog"] and data.group_names == [] and data.skipped == []
    assert rows(data.train, root) == [("train/cat/c.webp", 0), ("train/dog/a.jpg", 1), ("train/dog/b.png", 1)]
    assert rows(data.test, root) == [(f"{test}/cat/e.gif", 0), (f"{test}/cat/f.bmp", 0), (f"{test}/dog/d.PNG", 1)]
    assert data.train.groups is None and data.train.labels.dtype == torch.int64


def test_test_is_preferred_to_val_and_one_without_class_folders_is_ignored(root: Path) -> None:
    for split in ("train", "test", "val"):
        numbered(root / split / "cat", 1)
    assert rows(read(root).test, root) == [("test/cat/00.png", 0)]
    (root / "test" / "cat" / "00.png").rename(root / "test" / "unlabelled.png")
    (root / "test" / "cat").rmdir()
    assert rows(read(root).test, root) == [("val/cat/00.png", 0)]


@pytest.mark.parametrize(
    ("train", "valid", "test"), [("Train", "Valid", "Test"), ("training", "val", "testing"), ("TRAIN", "dev", "test")]
)
def test_three_splits_are_kept_as_published(root: Path, train: str, valid: str, test: str) -> None:
    for split, count in ((train, 4), (valid, 3), (test, 2)):
        for name in ("cat", "dog"):
            numbered(root / split / name, count)
    (root / "README.txt").write_text("as exported")
    config = StreamConfig(name="mine", source="image_folder", path=root, tasks=1)
    (task,) = build_stream(config, None, ImageFormat(2)).tasks
    assert (len(task.train), len(task.validation), len(task.test)) == (8, 6, 4)
    data = read(root)
    assert data.train.held_out is not None
    held = [name for (name, _), out in zip(rows(data.train, root), data.train.held_out.tolist(), strict=True) if out]
    assert all(name.startswith(valid) for name in held) and len(held) == 6


def test_a_test_split_without_labels_is_named_and_a_fifth_of_train_is_taken(root: Path) -> None:
    numbered(root / "train" / "cat", 10)
    numbered(root / "train" / "dog", 10)
    numbered(root / "test", 7)
    data = read(root)
    assert (data.class_names, len(data.train), len(data.test)) == (["cat", "dog"], 16, 4)
    assert data.account.lines() == [
        f"7 files of a test split without class folders, which have no labels (first: {root / 'test'})"
    ]


def test_images_in_folders_inside_a_class_folder_belong_to_the_class(root: Path) -> None:
    numbered(root / "ant", 3)
    numbered(root / "ant" / "2023" / "may", 4)
    numbered(root / "bee" / "images", 5)
    numbered(root / "bee", 2)
    (root / "ant" / "again").symlink_to(root / "ant", target_is_directory=True)  # a circle
    numbered(root, 6)
    data = read(root)
    assert [int((torch.cat([data.train.labels, data.test.labels]) == c).sum()) for c in (0, 1)] == [7, 7]
    assert data.account.lines() == [
        f"6 images outside the class folders of the splits, which belong to no class (first: {root / '00.png'})"
    ]


def test_links_to_nothing_are_refused_or_left_out(root: Path) -> None:
    numbered(root / "ant", 10)
    for index in range(20):
        (root / "ant" / f"x{index:02}.png").symlink_to(root / "gone" / f"{index}.png")
    first = root / "ant" / "x00.png"
    problem = f"{root / 'ant'}: 20 of 30 files of 'ant' are links to nothing (first: {first})"
    assert refusal(root) == f"{problem}; mend or remove them, or leave them out with --skip-bad"
    data = read(root, skip_bad=True)
    assert data.skipped == [problem] and len(data.train) + len(data.test) == 10


def test_a_class_whose_name_is_not_utf_8_is_shown_with_a_stand_in(root: Path) -> None:
    numbered(root / "tea", 3)
    numbered(root / os.fsdecode(b"caf\xe9"), 3)
    numbered(root / os.fsdecode(b"caf\xe8"), 3)
    data = read(root)
    assert data.class_names == ["caf\ufffd", "caf\ufffd (1)", "tea"]
    assert data.account.lines() == ["2 names of folders that are not UTF-8, shown with stand-ins (first: caf\ufffd)"]
    json.dumps(data.class_names).encode()


def test_without_a_test_folder_a_fixed_fifth_of_each_class_is_the_test_split(root: Path) -> None:
    sizes = {"ant": 50, "bee": 13, "cow": 3, "dog": 2}
    for name, size in sizes.items():
        numbered(root / name, size)
    data, again = read(root), read(root)
    assert [int((data.test.labels == c).sum()) for c in range(4)] == [10, 3, 1, 1]
    assert sorted(rows(data.train, root) + rows(data.test, root)) == [
        (f"{name}/{index:02}.png", label) for label, (name, size) in enumerate(sizes.items()) for index in range(size)
    ]
    assert rows(data.test, root) == rows(again.test, root)
    assert [r for r in rows(data.test, root) if r[1] == 0] != [(f"ant/{i:02}.png", 0) for i in range(10)], "drawn"


def test_the_split_of_a_class_does_not_depend_on_the_other_classes(root: Path) -> None:
    numbered(root / "dog", 20)
    numbered(root / "emu", 20)
    before = [name for name, label in rows(read(root).test, root) if label == 0]
    numbered(root / "cat", 7)
    assert [name for name, label in rows(read(root).test, root) if label == 1] == before


def test_a_class_may_be_called_train(root: Path) -> None:
    for name in ("train", "test", "car"):
        numbered(root / name, 5)
    assert read(root).class_names == ["car", "test", "train"]


def test_hidden_files_and_those_that_are_no_images_are_ignored(root: Path) -> None:
    numbered(root / "cat", 5)
    numbered(root / ".thumbnails", 5)
    numbered(root / "__MACOSX", 5)
    fill(root / "cat", "._00.png", ".hidden.png")
    (root / "cat" / "boxes.txt").write_text("0 0 1 1")
    (root / "cat" / "sheet.pdf").write_text("Pillow writes PDF and does not read it")
    data = read(root)
    assert data.class_names == ["cat"] and len(data.train) + len(data.test) == 5
    assert data.account.lines() == [
        f"2 files left out whose ending is not that of an image (first: {root / 'cat' / 'boxes.txt'})"
    ]


def test_a_single_folder_at_the_top_is_entered(root: Path) -> None:
    for name in ("cat", "dog"):
        numbered(root / "photos" / "2024" / name, 5)
    (root / "README.txt").write_text("about")
    assert read(root).class_names == ["cat", "dog"]


def test_domains_are_groups_over_one_set_of_classes(root: Path) -> None:
    numbered(root / "sketch" / "cat", 5)
    numbered(root / "sketch" / "dog", 10)
    for split in ("train", "test"):
        numbered(root / "photo" / split / "dog", 1)
        numbered(root / "photo" / split / "emu", 2)
    data = read(root, scenario="domain")
    assert data.group_names == ["photo", "sketch"] and data.class_names == ["cat", "dog", "emu"]
    assert data.train.groups is not None and data.test.groups is not None
    counts = {}
    for group, domain in enumerate(data.group_names):
        for split, part in (("train", data.train), ("test", data.test)):
            counts[domain, split] = part.labels[part.groups == group].bincount(minlength=3).tolist()
    assert counts == {
        ("photo", "train"): [0, 1, 2],
        ("photo", "test"): [0, 1, 2],
        ("sketch", "train"): [4, 8, 0],
        ("sketch", "test"): [1, 2, 0],
    }
    assert [name.split("/")[0] for name, _ in rows(data.test, root)] == ["photo"] * 3 + ["sketch"] * 3


def test_tiny_imagenet_is_read_as_published(root: Path) -> None:
    fill(root / "train" / "n01" / "images", "n01_0.JPEG", "n01_1.JPEG")
    (root / "train" / "n01" / "n01_boxes.txt").write_text("n01_0.JPEG\t0\t0\t1\t1\n")
    fill(root / "train" / "n02" / "images", "n02_0.JPEG")
    fill(root / "val" / "images", "val_0.JPEG", "val_1.JPEG", "val_2.JPEG")
    fill(root / "test" / "images", "test_0.JPEG")
    labels = ["n02", "n01", "n02"]
    annotations = "".join(f"val_{i}.JPEG\t{label}\t0\t32\t44\t62\n" for i, label in enumerate(labels))
    (root / "val" / "val_annotations.txt").write_text(annotations)
    data = read(root)
    assert data.class_names == ["n01", "n02"]
    train = [("n01/images/n01_0.JPEG", 0), ("n01/images/n01_1.JPEG", 0), ("n02/images/n02_0.JPEG", 1)]
    assert rows(data.train, root / "train") == train
    assert rows(data.test, root / "val/images") == [("val_0.JPEG", 1), ("val_1.JPEG", 0), ("val_2.JPEG", 1)]


def test_classes_json_gives_readable_names_in_the_order_of_the_folders(root: Path) -> None:
    for name in ("n01", "n02", "n03"):
        numbered(root / name, 2)
    (root / "classes.json").write_text(json.dumps({"n01": "zebra", "n02": "ape", "n99": "absent"}))
    data = read(root)
    assert data.class_names == ["zebra", "ape", "n03"]
    (root / "classes.json").write_text(json.dumps(["zebra", "ape"]))
    assert read(root).class_names == ["n01", "n02", "n03"], "anything but a mapping of names is not for us"


@pytest.mark.parametrize(
    ("content", "reason"), [("{", "not JSON ("), ('{"n01": "ape", "n02": "ape"}', "it gives two folders the same name")]
)
def test_a_classes_json_that_cannot_be_used_is_refused(root: Path, content: str, reason: str) -> None:
    numbered(root / "n01", 2)
    (root / "classes.json").write_text(content)
    assert refusal(root).startswith(f"{root / 'classes.json'}: {reason}")


# --- archives ---


def packed(root: Path, file: Path) -> Path:
    if file.suffix == ".zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for member in sorted(root.rglob("*")):
                archive.write(member, member.relative_to(root.parent))
    else:
        with tarfile.open(file, f"w:{'gz' if file.suffix == '.tgz' else ''}") as archive:
            archive.add(root, root.name)
    return file


@pytest.mark.parametrize("name", ["images.zip", "images.tar", "images.tgz"])
def test_an_archive_is_unpacked_once_into_the_cache(root: Path, cache: Path, name: str) -> None:
    for animal in ("cat", "dog"):
        numbered(root / animal, 5)
    file = packed(root, root.parent / name)
    first, second = read(file), read(file)
    [folder] = cache.glob("unpacked-*/images")
    assert rows(first.train, folder) == rows(second.train, folder) == rows(read(root).train, root)
    assert prepare_images(first.train.items, 2, False).fresh == 8
    assert prepare_images(second.train.items, 2, False).fresh == 0, "the files are those of the first time"


def test_a_zip_that_would_write_elsewhere_is_refused(tmp_path: Path, cache: Path) -> None:
    for index, name in enumerate(("../../outside.png", "/outside.png", "cat/..\\..\\outside.png")):
        file = tmp_path / f"{index}.zip"
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(name, "content")
        assert refusal(file) == f"benchmark.path={file}: {name!r} in it would be written elsewhere"
    assert [f for f in cache.iterdir() if f.suffix != ".lock"] == []
    assert list(tmp_path.rglob("outside.png")) == []


def test_a_tar_that_would_write_elsewhere_is_refused(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "images.tar"
    with tarfile.open(file, "w") as archive:
        archive.addfile(tarfile.TarInfo("../../outside.png"))
    assert refusal(file).startswith(f"benchmark.path={file}: cannot be unpacked ('../../outside.png'")
    assert [f for f in cache.iterdir() if f.suffix != ".lock"] == []


def test_a_python_without_tar_filters_unpacks_files_and_refuses_what_leads_out(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(tarfile, "data_filter", raising=False)
    for animal in ("cat", "dog"):
        numbered(root / animal, 5)
    file = packed(root, root.parent / "images.tar")
    stream = read(file)
    [folder] = cache.glob("unpacked-*/images")
    assert rows(stream.train, folder) == rows(read(root).train, root)
    for number, (name, link) in enumerate((("../../outside.png", ""), ("/outside.png", ""), ("cat/a.png", "../../b"))):
        hostile = root.parent / f"{number}.tar"
        member = tarfile.TarInfo(name)
        member.type, member.linkname = (tarfile.SYMTYPE if link else tarfile.REGTYPE), link
        with tarfile.open(hostile, "w") as archive:
            archive.addfile(member)
        assert refusal(hostile).startswith(f"benchmark.path={hostile}: cannot be unpacked ({name!r}")
    assert [f.name for f in cache.glob("unpacked-*") if f.suffix != ".lock"] == [folder.parent.name]


def test_names_in_a_zip_are_those_that_were_given(tmp_path: Path, cache: Path) -> None:
    """In UTF-8 that does not say so, with the slashes of Windows, in no UTF-8, and as the format wants it."""
    file = tmp_path / "images.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for folder in ("cafXY/", "dog\\small\\", "gZn/", "猫/"):
            for number in range(5):
                member = zipfile.ZipInfo(f"{folder}{number}.png")
                member.create_system = 0 if "dog" in folder else 3
                image = io.BytesIO()
                Image.new("RGB", (2, 2), (number, 0, 0)).save(image, "png")
                archive.writestr(member, image.getvalue())
    # zipfile itself writes no such names.
    file.write_bytes(file.read_bytes().replace(b"cafXY", b"caf\xc3\xa9").replace(b"gZn", b"g\xfcn"))
    data = read(file)
    assert data.class_names == ["café", "dog", "g\ufffdn", "猫"]
    assert len(data.train) + len(data.test) == 20


def test_an_archive_larger_than_the_disk_is_refused(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for animal in ("cat", "dog"):
        numbered(root / animal, 5)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=100))
    for name in ("images.zip", "images.tgz"):
        file = packed(root, root.parent / name)
        said = refusal(file)
        assert said.startswith(
            f"benchmark.path={file}: it holds 0.0 GiB, and 0.0 GiB are free for the cache; make room"
        )
    assert [f for f in cache.iterdir() if f.suffix != ".lock"] == []


def test_a_damaged_archive_is_refused_and_leaves_nothing(root: Path, cache: Path) -> None:
    numbered(root / "cat", 5)
    file = packed(root, root.parent / "images.zip")
    content = bytearray(file.read_bytes())
    start = content.index(b"images/cat/00.png") + len(b"images/cat/00.png")
    content[start + 10 : start + 20] = bytes(10)
    file.write_bytes(content)
    assert refusal(file).startswith(f"benchmark.path={file}: cannot be unpacked (")
    assert [f for f in cache.iterdir() if f.suffix != ".lock"] == []
    tar = packed(root, root.parent / "images.tgz")
    tar.write_bytes(tar.read_bytes()[:-40])
    assert refusal(tar).startswith(f"benchmark.path={tar}: cannot be unpacked (")


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 half a zip"])
def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "images.zip"
    file.write_bytes(content)
    expected = "neither a folder nor a whole zip or tar archive; get it again"
    assert refusal(file) == f"benchmark.path={file}: {expected}"


# --- data that cannot be used ---


def test_a_path_that_does_not_exist_says_where_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERGREEN_DATA", str(tmp_path))
    message = refusal(Path("absent"), options={"origin": "http://example.org/absent"})
    assert message.startswith(f"benchmark.path=absent: not found, nor in the data folder {tmp_path}; get it from http")


def test_an_option_it_does_not_know_is_refused(root: Path) -> None:
    numbered(root / "cat", 5)
    message = refusal(root, options={"origin": "here", "splits": 3})
    assert message == "benchmark.options.splits: image_folder has no such option; it has none"


WAY_OUT = "; add some or remove the folder, or leave it out with --skip-bad"


@pytest.mark.parametrize("content", ["nothing", "text"])
def test_a_class_folder_without_images_is_refused_or_left_out(root: Path, content: str) -> None:
    numbered(root / "cat", 5)
    (root / "dog").mkdir()
    if content == "text":
        (root / "dog" / "notes.txt").write_text("no image")
    assert refusal(root) == f"benchmark.path={root}: class 'dog' has 0 train and 0 test images{WAY_OUT}"
    data = read(root, skip_bad=True)
    assert data.class_names == ["cat"] and data.skipped == [
        f"benchmark.path={root}: class 'dog' has 0 train and 0 test images"
    ]


def test_a_class_of_one_split_only_is_refused_or_left_out(root: Path) -> None:
    for split, name in (("train", "cat"), ("test", "cat"), ("test", "bee"), ("train", "emu")):
        numbered(root / split / name, 2)
    more = " (1 more like it)"
    assert refusal(root) == f"benchmark.path={root}: class 'bee' has 0 train and 2 test images{more}{WAY_OUT}"
    data = read(root, skip_bad=True)
    assert data.class_names == ["cat"] and data.train.labels.tolist() == data.test.labels.tolist() == [0, 0]
    place = f"benchmark.path={root}: class"
    assert data.skipped == [
        f"{place} 'bee' has 0 train and 2 test images",
        f"{place} 'emu' has 2 train and 0 test images",
    ]


def test_a_class_of_one_image_is_refused(root: Path) -> None:
    numbered(root / "cat", 5)
    numbered(root / "dog", 1)
    assert refusal(root) == f"benchmark.path={root}: class 'dog' has 0 train and 1 test images{WAY_OUT}"


@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_folder_without_class_folders_is_refused(root: Path, skip_bad: bool) -> None:
    numbered(root, 5)
    expected = "no class folder with images in it; put the images of each class in one"
    assert refusal(root, skip_bad=skip_bad) == f"benchmark.path={root}: {expected}"


def test_nothing_left_after_leaving_out_is_refused(root: Path) -> None:
    (root / "cat").mkdir(parents=True)
    assert "no class folder with images in it" in refusal(root, skip_bad=True)


def test_a_domain_without_images_is_refused_or_left_out(root: Path) -> None:
    numbered(root / "photo" / "cat", 5)
    numbered(root / "sketch" / "cat", 5)
    (root / "quickdraw" / "cat").mkdir(parents=True)
    expected = f"benchmark.path={root}: domain 'quickdraw' has 0 train and 0 test images{WAY_OUT}"
    assert refusal(root, scenario="domain") == expected
    data = read(root, scenario="domain", skip_bad=True)
    assert data.group_names == ["photo", "sketch"]
    assert data.skipped == [f"benchmark.path={root}: domain 'quickdraw' has 0 train and 0 test images"]


def test_domains_are_not_taken_for_classes(root: Path) -> None:
    for domain in ("photo", "sketch"):
        numbered(root / domain / "cat", 5)
    assert refusal(root) == (
        f"benchmark.path={root}: each folder in it has a folder 'cat', as domains have their classes; "
        "say benchmark.scenario=domain, or move the images into their class folders"
    )


# --- real data ---


@pytest.mark.realdata
@pytest.mark.skipif(not TINY.is_file(), reason=f"{TINY.name} is not in the data folder")
def test_the_subset_of_tiny_imagenet_is_read_and_decoded() -> None:
    data = read(TINY)
    assert len(data.class_names) == 200 and data.class_names[0] == "goldfish, Carassius auratus"
    assert data.train.labels.bincount().tolist() == [50] * 200
    assert data.test.labels.bincount().tolist() == [20] * 200
    first = prepare_images(data.test.items, 64, skip_bad=False)
    assert first.inputs.shape == (4000, 3, 64, 64) and first.fresh == 4000 and bool(first.kept.all())
    grey = (first.inputs[:, 0] == first.inputs[:, 1]).all(2).all(1)
    assert 0 < int(grey.sum()) < 400, "some images have no colour"
    for index in (0, 1234, 3999):
        pixels = numpy.asarray(Image.open(data.test.items[index]).convert("RGB"))
        assert torch.equal(first.inputs[index].permute(1, 2, 0), torch.from_numpy(pixels.copy()))
    assert prepare_images(data.test.items, 64, skip_bad=False).fresh == 0


def test_one_name_in_both_ways_of_unicode_is_one_class(root: Path) -> None:
    numbered(root / "train" / "cafe\u0301", 3)
    numbered(root / "test" / "caf\u00e9", 2)
    numbered(root / "train" / "Dog", 3)
    numbered(root / "test" / "Dog", 2)
    (root / "classes.json").write_text(json.dumps({"cafe\u0301": "coffee"}))
    data = read(root)
    assert data.class_names == ["Dog", "coffee"]
    assert (data.train.labels.tolist(), data.test.labels.tolist()) == ([0, 0, 0, 1, 1, 1], [0, 0, 1, 1])


def test_classes_that_differ_in_case_alone_are_named(root: Path) -> None:
    for name in ("Cat", "cat"):
        numbered(root / name, 5)
    assert read(root).account.lines() == [
        "1 classes whose name differs from another in case alone (first: 'Cat' and 'cat')"
    ]


def test_a_pointer_of_git_lfs_is_called_one(root: Path) -> None:
    file = root / "a.png"
    root.mkdir()
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(BenchmarkError, match=r"a\.png: not a readable image \(only Git LFS's pointer to it is here"):
        prepare_images([file], 4, skip_bad=False)
