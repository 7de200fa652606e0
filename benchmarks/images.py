"""Sources of images: scikit-learn's digits, and arrays in an npz file."""

from __future__ import annotations

import zlib
from pathlib import Path
from zipfile import BadZipFile

import numpy
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional

from benchmarks.dataset import BenchmarkError, Dataset, Examples, StreamConfig, source
from benchmarks.sources import data_root

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
    """An npz file: ``x_train``, ``y_train``, ``x_test``, ``y_test`` (uint8 [n, h, w(, 3)]), optionally ``classes``."""
    file = array_file(config)
    arrays = read_npz(file)
    missing = {"x_train", "y_train", "x_test", "y_test"} - set(arrays)
    if missing:
        raise BenchmarkError(f"benchmark.path={file}: the array {min(missing)!r} is missing in it")
    train, test = (
        Examples(as_images(arrays, f"x_{split}", file), as_labels(arrays, f"y_{split}", file))
        for split in ("train", "test")
    )
    names = [str(c) for c in arrays.get("classes", range(int(train.labels.max()) + 1))]
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


def read_npz(file: Path) -> dict[str, numpy.ndarray]:
    """The arrays of an npz file; what would have to be unpickled is refused."""
    try:
        with numpy.load(file, allow_pickle=False) as opened:
            return {name: opened[name] for name in opened.files}
    except (BadZipFile, EOFError, OSError, TypeError, ValueError, zlib.error) as error:
        raise BenchmarkError(f"benchmark.path={file}: not an npz file of plain arrays ({error})") from None


def as_images(arrays: dict[str, numpy.ndarray], name: str, file: Path) -> Tensor:
    """uint8 [n, h, w(, 3)] to [n, 3, h, w]; grey images get three equal channels."""
    values = arrays[name]
    if values.dtype != numpy.uint8 or (values.ndim != 3 and values.shape[3:] != (3,)):
        shape = list(values.shape)
        raise BenchmarkError(f"benchmark.path={file}: {name} is {values.dtype} {shape}, not uint8 [n, h, w, 3]")
    images = torch.from_numpy(values)
    images = images[..., None].expand(-1, -1, -1, 3) if values.ndim == 3 else images
    return images.permute(0, 3, 1, 2).contiguous()


def as_labels(arrays: dict[str, numpy.ndarray], name: str, file: Path) -> Tensor:
    """Integers [n], at least one."""
    values = arrays[name]
    if values.dtype.kind not in "iu" or values.ndim != 1 or len(values) == 0:
        shape = list(values.shape)
        raise BenchmarkError(f"benchmark.path={file}: {name} is {values.dtype} {shape}, not integers [n]")
    return torch.from_numpy(values.astype(numpy.int64))


def check_labels(train: Examples, test: Examples, count: int, file: Path) -> None:
    for split, examples in (("train", train), ("test", test)):
        if len(examples.inputs) != len(examples.labels):
            raise BenchmarkError(f"benchmark.path={file}: x_{split} and y_{split} differ in length")
        if int(examples.labels.min()) < 0 or int(examples.labels.max()) >= count:
            raise BenchmarkError(f"benchmark.path={file}: y_{split} has a label outside 0 to {count - 1}")
