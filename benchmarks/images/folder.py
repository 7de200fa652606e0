"""Images in folders, one for each class, in the layouts that image sets are published in."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from benchmarks.account import Account
from benchmarks.archives import data_folder, folders, top_folder, walked
from benchmarks.dataset import BenchmarkError, Dataset, StreamConfig, source
from benchmarks.images.class_files import ClassFiles, image_dataset, own_split
from benchmarks.images.lists import TINY_VALIDATION, tiny_validation
from benchmarks.sources import check_options

# What the folders of splits are called, in any case; the first that is there counts.
TRAINS, TESTS, VALIDATIONS = ("train", "training"), ("test", "testing"), ("val", "valid", "validation", "dev")


@dataclass
class Found:
    """What is seen on the way besides the files of the classes."""

    skip_bad: bool
    skipped: list[str] = field(default_factory=list)
    account: Account = field(default_factory=Account)
    folders: set[Path] = field(default_factory=set)  # all of their files are spoken for


@source("image_folder")
def image_folder(config: StreamConfig) -> Dataset:
    """``DIR/CLASS/**``, ``DIR/{train,valid,test}/CLASS/**`` or Tiny-ImageNet's own layout.

    Without a test folder the validation folder is the test split, and without both a fixed fifth of each class. With
    scenario domain, each folder ``DIR/DOMAIN`` is laid out like this, and need not have every class. ``classes.json``
    may give readable names.
    """
    check_options(config)
    root, seen = data_folder(config), Found(config.skip_bad)
    domains = [(f, f.name) for f in folders(root)] if config.scenario == "domain" else [(root, "")]
    found = [files for folder, name in domains for files in class_files(folder, name, seen)]
    if config.scenario != "domain":
        refuse_domains(root, config)
    note_outside(top_folder(config), found, seen)
    place = f"benchmark.path={config.path}"
    return image_dataset(found, place, config.skip_bad, seen.skipped, readable_names(root), seen.account)


def class_files(folder: Path, domain: str, seen: Found) -> list[ClassFiles]:
    """Every class folder below ``folder``, with its split."""
    train, validation, test = (split_folder(folder, names) for names in (TRAINS, VALIDATIONS, TESTS))
    # A class may be called train or test: as splits they hold the class folders.
    if not train or not (validation or test) or not folders(train):
        return [files for f in folders(folder) for files in own_split(f.name, images_of(f, seen), domain)]
    found = [ClassFiles(f.name, False, images_of(f, seen), domain) for f in folders(train)]
    if (folder / TINY_VALIDATION).is_file():
        return found + tiny_validation(folder, seen.skip_bad, seen.skipped)
    with_classes = [split for split in (test, validation) if split and folders(split)]
    if test and test not in with_classes:
        unlabelled = sum(file.suffix.lower() in image_extensions() for file in walked(test))
        seen.account.note("files of a test split without class folders, which have no labels", str(test), unlabelled)
        seen.folders.add(test)
    if not with_classes:
        # As competitions publish it: the labels of the test images are kept back.
        return [files for f in found for files in own_split(f.name, list(f.files), domain)]
    found += [ClassFiles(f.name, True, images_of(f, seen), domain) for f in folders(with_classes[0])]
    if len(with_classes) > 1:
        found += [ClassFiles(f.name, False, images_of(f, seen), domain, True) for f in folders(with_classes[1])]
    return found


def split_folder(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The folder of a split by its usual names, in any case."""
    inside = {f.name.lower(): f for f in folders(folder)}
    return next((inside[name] for name in names if name in inside), None)


def note_outside(root: Path, found: list[ClassFiles], seen: Found) -> None:
    """Note the images that are neither ``found`` nor in a folder that was looked through."""
    used = {file for files in found for file in files.files}
    others = [f for f in walked(root) if f.suffix.lower() in image_extensions() and f not in used]
    outside = [str(file) for file in others if seen.folders.isdisjoint(file.parents)]
    what = "images outside the class folders of the splits, which belong to no class"
    seen.account.note(what, min(outside, default=""), len(outside))


def refuse_domains(root: Path, config: StreamConfig) -> None:
    """``DIR/DOMAIN/CLASS`` would be read as classes, each named after a domain."""
    tops = folders(root)
    loose = any(f.suffix.lower() in image_extensions() for top in tops for f in top.iterdir())
    if loose or len(tops) < 2 or split_folder(root, TRAINS):
        return
    shared = set.intersection(*({f.name for f in folders(top)} for top in tops)) - {"images"}
    if shared:
        raise BenchmarkError(
            f"benchmark.path={config.path}: each folder in it has a folder {min(shared)!r}, as domains have their "
            "classes; say benchmark.scenario=domain, or move the images into their class folders"
        )


def images_of(folder: Path, seen: Found) -> list[Path]:
    """The image files below a class folder, sorted; those in folders inside it belong to the class too."""
    seen.folders.add(folder)
    files, broken, others = list[Path](), list[Path](), list[Path]()
    for file in walked(folder):
        known = file.suffix.lower() in image_extensions()
        (others if not known else files if file.is_file() else broken).append(file)
    seen.account.note("files left out whose ending is not that of an image", str(min(others, default="")), len(others))
    if broken:
        problem = f"{len(broken)} of {len(broken) + len(files)} files of {folder.name!r} are links to nothing"
        problem += f" (first: {min(broken)})"
        if not seen.skip_bad:
            raise BenchmarkError(f"{folder}: {problem}; mend or remove them, or leave them out with --skip-bad")
        seen.skipped.append(f"{folder}: {problem}")
    return sorted(files)


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
