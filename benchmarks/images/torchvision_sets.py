"""Image sets that torchvision downloads into the data folder, checked by their MD5 sums."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from filelock import FileLock
from torchvision.datasets import CIFAR100

from benchmarks.cache import cache_root
from benchmarks.dataset import BenchmarkError, Dataset, Records, StreamConfig, source
from benchmarks.sources import check_options, data_root, refuse_path

Opened = TypeVar("Opened")


@source("cifar100")
def cifar100(config: StreamConfig) -> Dataset:
    """All of CIFAR-100: 500 train and 100 test images of 100 classes, 32 px."""
    check_options(config)
    refuse_path(config)
    train, test = obtained(
        CIFAR100.filename, lambda root: [CIFAR100(root, train=split, download=True) for split in (True, False)]
    )
    return Dataset(cifar_records(train), cifar_records(test), list(train.classes))


def cifar_records(split: CIFAR100) -> Records:
    return Records(torch.from_numpy(split.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(split.targets))


def obtained(file: str, opened: Callable[[Path], Opened]) -> Opened:
    """What ``opened`` reads from the data folder, downloaded by one process at a time where it is not there yet.

    BenchmarkError says to put ``file`` there by hand.
    """
    root = data_root()
    cache_root().mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(cache_root() / "download.lock"):
            return opened(root)
    except (OSError, RuntimeError, EOFError) as error:
        raise BenchmarkError(
            f"{root / file}: absent or damaged, and it cannot be downloaded or unpacked there ({error}); "
            "put it there by hand, or set EVERGREEN_DATA to another folder"
        ) from None
