"""Sources of images: scikit-learn's digits, and arrays in an npz file."""

from __future__ import annotations

from pathlib import Path

import numpy
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional

from benchmarks.sources import data_root
from benchmarks.stream import BenchmarkError, Dataset, Examples, StreamConfig, source

DIGITS_PIXELS = 32


@source("digits")
def digits(config: StreamConfig) -> Dataset:
    """scikit-learn's 1,797 real 8x8 images, enlarged to 32x32; a fixed stratified quarter is the test split."""
    data = load_digits()
    grey = torch.from_numpy(data.images / 16 * 255).float()[:, None]
    large = functional.interpolate(grey, size=DIGITS_PIXELS, mode="bilinear").round().to(torch.uint8)
    images, labels = large.expand(-1, 3, -1, -1).contiguous(), torch.from_numpy(data.target).long()
    train, test = train_test_split(numpy.arange(len(labels)), test_size=0.25, stratify=labels, random_state=0)
    both = Examples(images, labels)
    return Dataset(both.take(torch.from_numpy(train)), both.take(torch.from_numpy(test)), [str(d) for d in range(10)])


@source("array")
def array(config: StreamConfig) -> Dataset:
    """An npz file with ``x_train``, ``y_train``, ``x_test``, ``y_test`` (uint8 [n, h, w, 3] or [n, h, w]) and ``classes``."""
    file = array_file(config)
    with numpy.load(file, allow_pickle=False) as opened:
        missing = {"x_train", "y_train", "x_test", "y_test"} - set(opened.files)
        if missing:
            raise BenchmarkError(f"benchmark.path={file}: the array {min(missing)!r} is missing in it")
        train = Examples(as_images(opened["x_train"], file), torch.from_numpy(opened["y_train"]).long())
        test = Examples(as_images(opened["x_test"], file), torch.from_numpy(opened["y_test"]).long())
        count = int(train.labels.max()) + 1
        names = [str(c) for c in opened["classes"]] if "classes" in opened.files else [str(c) for c in range(count)]
    check_labels(train, test, len(names), file)
    return Dataset(train, test, names)


def array_file(config: StreamConfig) -> Path:
    """``benchmark.path``; a bare file name is looked for in the data folder too."""
    if config.path is None:
        raise BenchmarkError("benchmark.path: name the npz file to read, as in benchmark.path=images.npz")
    for file in (config.path, data_root() / config.path.name):
        if file.is_file():
            return file
    raise BenchmarkError(
        f"benchmark.path={config.path}: no such file, nor {config.path.name} in the data folder {data_root()} "
        "(set EVERGREEN_DATA to name another)"
    )


def as_images(values: numpy.ndarray, file: Path) -> Tensor:
    """uint8 [n, h, w(, 3)] to [n, 3, h, w]; grey images get three equal channels."""
    if values.dtype != numpy.uint8 or values.ndim not in (3, 4):
        raise BenchmarkError(f"benchmark.path={file}: images are {values.dtype} {values.shape}, not uint8 [n, h, w, 3]")
    images = torch.from_numpy(values)
    images = images[..., None].expand(-1, -1, -1, 3) if values.ndim == 3 else images
    return images.permute(0, 3, 1, 2).contiguous()


def check_labels(train: Examples, test: Examples, count: int, file: Path) -> None:
    for split, examples in (("train", train), ("test", test)):
        if len(examples.inputs) != len(examples.labels):
            raise BenchmarkError(f"benchmark.path={file}: x_{split} and y_{split} differ in length")
        if int(examples.labels.min()) < 0 or int(examples.labels.max()) >= count:
            raise BenchmarkError(f"benchmark.path={file}: y_{split} has a label outside 0 to {count - 1}")
