"""Image sets whose splits are published as lists of files: CUB-200-2011, DomainNet, Tiny-ImageNet's validation."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from benchmarks.archives import data_folder
from benchmarks.dataset import BenchmarkError, Dataset, StreamConfig, source
from benchmarks.images.class_files import ClassFiles, image_dataset
from benchmarks.sources import check_options

TINY_VALIDATION = "val/val_annotations.txt"


@source("cub200")
def cub200(config: StreamConfig) -> Dataset:
    """CUB-200-2011 as published: ``images/CLASS/*.jpg``, ``images.txt`` and ``train_test_split.txt``."""
    check_options(config)
    root, skipped = data_folder(config), list[str]()
    train = {
        number for number, flag in read_list(root / "train_test_split.txt", 2, config.skip_bad, skipped) if flag == "1"
    }
    rows = read_list(root / "images.txt", 2, config.skip_bad, skipped)
    found = [
        ClassFiles(PurePosixPath(name).parts[0], number not in train, [root / "images" / name]) for number, name in rows
    ]
    return image_dataset(found, f"benchmark.path={config.path}", config.skip_bad, skipped)


@source("domainnet")
def domainnet(config: StreamConfig) -> Dataset:
    """DomainNet as published: ``DOMAIN/CLASS/*.jpg`` and lists ``DOMAIN_train.txt`` and ``DOMAIN_test.txt``."""
    check_options(config)
    root, skipped = data_folder(config), list[str]()
    found = []
    for domain in sorted(f.name.removesuffix("_train.txt") for f in root.glob("*_train.txt")):
        for split in ("train", "test"):
            for name, _ in read_list(root / f"{domain}_{split}.txt", 2, config.skip_bad, skipped):
                label = PurePosixPath(name).parent.name
                found.append(ClassFiles(label, split == "test", [root / name], domain))
    if not found:
        raise BenchmarkError(f"benchmark.path={config.path}: no list DOMAIN_train.txt in it; put it beside the domains")
    return image_dataset(found, f"benchmark.path={config.path}", config.skip_bad, skipped)


def tiny_validation(root: Path, skip_bad: bool, skipped: list[str]) -> list[ClassFiles]:
    """Tiny-ImageNet's validation images as the test split: its own test images have no labels."""
    rows = read_list(root / TINY_VALIDATION, 6, skip_bad, skipped)
    return [ClassFiles(label, True, [root / "val" / "images" / name]) for name, label, *_ in rows]


def read_list(file: Path, fields: int, skip_bad: bool, skipped: list[str]) -> list[list[str]]:
    """The fields of every line; a line with others raises BenchmarkError, or with ``skip_bad`` joins ``skipped``."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BenchmarkError(f"{file}: the list cannot be read ({error}); get the data again") from None
    rows = []
    for number, line in enumerate(lines, 1):
        row = line.split()
        if len(row) == fields:
            rows.append(row)
        elif row and skip_bad:
            skipped.append(f"{file}:{number}: {len(row)} fields, not {fields}")
        elif row:
            raise BenchmarkError(f"{file}:{number}: {len(row)} fields, not {fields}; repair it or use --skip-bad")
    return rows
