"""Omniglot: handwritten characters, of which each alphabet is a task.

Twenty people drew each character once. The first fifteen are the train split, the last five the test split.
"""

from __future__ import annotations

from pathlib import Path

import numpy
import torch
from torch import Tensor
from torchvision.datasets import Omniglot

from benchmarks.account import Account
from benchmarks.archives import folders
from benchmarks.dataset import BenchmarkError, Dataset, Records, StreamConfig, source
from benchmarks.images.array_values import images, labels
from benchmarks.images.arrays import read_npz
from benchmarks.images.class_files import ClassFiles, image_dataset
from benchmarks.images.torchvision_sets import obtained
from benchmarks.sources import check_options, located, refuse_path

TRAIN_DRAWERS = 15


@source("omniglot")
def omniglot(config: StreamConfig) -> Dataset:
    """An npz file: ``x`` uint8 [n, h, w], ``y``, ``alphabet`` [n], ``classes``; drawers in order within a class."""
    check_options(config)
    file = located(config)
    arrays = read_npz(file, "x", "y", "classes", "alphabet")
    account, place = Account(), f"benchmark.path={file}"
    pixels = images(arrays["x"], f"{place}: x", account)
    found = torch.from_numpy(labels(arrays["y"], f"{place}: y").astype(numpy.int64))
    class_names = [str(name) for name in arrays["classes"]]
    group_names, groups = numpy.unique(arrays["alphabet"], return_inverse=True)
    if not len(pixels) == len(found) == len(groups) or int(found.min()) < 0 or int(found.max()) >= len(class_names):
        raise BenchmarkError(f"benchmark.path={file}: x, y, alphabet and classes do not fit together")
    learned = drawer(found) < TRAIN_DRAWERS
    train, test = (Records(pixels[rows], found[rows], torch.from_numpy(groups)[rows]) for rows in (learned, ~learned))
    return Dataset(train, test, class_names, [str(name) for name in group_names], account=account)


def drawer(labels: Tensor) -> Tensor:
    """Place of each row among those of its class, from 0."""
    place = torch.empty_like(labels)
    for label in labels.unique():
        rows = (labels == label).nonzero().flatten()
        place[rows] = torch.arange(len(rows))
    return place


@source("omniglot_background")
def omniglot_background(config: StreamConfig) -> Dataset:
    """The 30 background alphabets as torchvision downloads them: 964 characters, files of 105 px."""
    check_options(config)
    refuse_path(config)
    published = obtained("omniglot-py/images_background.zip", lambda root: Omniglot(root, download=True))
    found = []
    for alphabet in folders(Path(published.target_folder)):
        for character in folders(alphabet):
            files, name = sorted(character.glob("*.png")), f"{alphabet.name}/{character.name}"
            found.append(ClassFiles(name, False, files[:TRAIN_DRAWERS], alphabet.name))
            found.append(ClassFiles(name, True, files[TRAIN_DRAWERS:], alphabet.name))
    return image_dataset(found, "benchmark.source=omniglot_background", config.skip_bad)
