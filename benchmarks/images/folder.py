"""Images in folders, one for each class, in the layouts that image sets are published in."""

from __future__ import annotations

import functools
import json
from pathlib import Path

from PIL import Image

from benchmarks.archives import data_folder, folders
from benchmarks.dataset import BenchmarkError, Dataset, StreamConfig, source
from benchmarks.images.class_files import ClassFiles, image_dataset, own_split
from benchmarks.images.lists import TINY_VALIDATION, tiny_validation
from benchmarks.sources import check_options

TESTS = ("test", "val", "validation")


@source("image_folder")
def image_folder(config: StreamConfig) -> Dataset:
    """``DIR/CLASS/*``, ``DIR/{train,test}/CLASS/*`` (or val, or validation) or Tiny-ImageNet's own layout.

    Without a test folder a fixed fifth of each class is the test split. With scenario domain, each folder
    ``DIR/DOMAIN`` is laid out like this, and need not have every class. ``classes.json`` may give readable names.
    """
    check_options(config)
    root = data_folder(config)
    skipped: list[str] = []
    domains = [(f, f.name) for f in folders(root)] if config.scenario == "domain" else [(root, "")]
    found = [files for folder, name in domains for files in class_files(folder, name, config.skip_bad, skipped)]
    return image_dataset(found, f"benchmark.path={config.path}", config.skip_bad, skipped, readable_names(root))


def class_files(folder: Path, domain: str, skip_bad: bool, skipped: list[str]) -> list[ClassFiles]:
    """Every class folder below ``folder``, with its split."""
    inside = {f.name: f for f in folders(folder)}
    tests = [inside[name] for name in TESTS if name in inside and folders(inside[name])]  # a class may be called test
    if not tests or "train" not in inside:
        return [files for f in inside.values() for files in own_split(f.name, images_of(f), domain)]
    train = [ClassFiles(f.name, False, images_of(f), domain) for f in folders(inside["train"])]
    if (folder / TINY_VALIDATION).is_file():
        return train + tiny_validation(folder, skip_bad, skipped)
    return train + [ClassFiles(f.name, True, images_of(f), domain) for f in folders(tests[0])]


def images_of(folder: Path) -> list[Path]:
    """The image files of a class folder, sorted; Tiny-ImageNet has them in a folder ``images`` inside."""
    inner = folder / "images"
    place = inner if inner.is_dir() else folder
    known = image_extensions()
    return sorted(
        f for f in place.iterdir() if f.suffix.lower() in known and not f.name.startswith(".") and f.is_file()
    )


@functools.cache
def image_extensions() -> frozenset[str]:
    """Those of the formats that Pillow reads."""
    return frozenset(extension for extension, name in Image.registered_extensions().items() if name in Image.OPEN)


def readable_names(root: Path) -> dict[str, str]:
    """``classes.json``, where it maps folder names to other names; empty where it does not."""
    file = root / "classes.json"
    if not file.is_file():
        return {}
    try:
        names = json.loads(file.read_text())
    except ValueError as error:
        raise BenchmarkError(f"{file}: not JSON ({error}); repair or remove it") from None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        return {}
    if len(set(names.values())) < len(names):
        raise BenchmarkError(f"{file}: it gives two folders the same name; tell them apart or remove the file")
    return names
