"""Sources of images: scikit-learn's digits, and arrays in an npz file."""

from __future__ import annotations

import zlib
from importlib.metadata import version
from pathlib import Path
from zipfile import BadZipFile

import numpy
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from benchmarks.cache import cached
from benchmarks.dataset import BenchmarkError, Dataset, Records, StreamConfig, source
from benchmarks.sources import check_options, located

DIGITS_PIXELS = 32
DIGITS = "digits.safetensors"


@source("digits")
def digits(config: StreamConfig) -> Dataset:
    """scikit-learn's 1,797 real 8x8 images, enlarged to 32x32; a fixed stratified quarter is the test split."""
    check_options(config)
    folder, _ = cached("digits", {"pixels": DIGITS_PIXELS, "scikit-learn": version("scikit-learn")}, write_digits)
    arrays = load_file(folder / DIGITS)
    train, test = (Records(arrays[f"{split}_images"], arrays[f"{split}_labels"]) for split in ("train", "test"))
    return Dataset(train, test, [str(d) for d in range(10)])


def write_digits(folder: Path) -> None:
    """Both splits as safetensors; scikit-learn takes a second to import, in every process that reads them."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    grey = torch.from_numpy(data.images / 16 * 255).float()[:, None]
    large = functional.interpolate(grey, size=DIGITS_PIXELS, mode="bilinear").round().to(torch.uint8)
    images, labels = large.expand(-1, 3, -1, -1).contiguous(), torch.from_numpy(data.target).long()
    split = train_test_split(numpy.arange(len(labels)), test_size=0.25, stratify=labels, random_state=0)
    arrays: dict[str, Tensor] = {}
    for name, rows in zip(("train", "test"), split, strict=True):
        arrays |= {f"{name}_images": images[rows], f"{name}_labels": labels[rows]}
    save_file(arrays, folder / DIGITS)


@source("array")
def array(config: StreamConfig) -> Dataset:
    """An npz file: ``x_train``, ``y_train``, ``x_test``, ``y_test`` (uint8 [n, h, w(, 3)]), optionally ``classes``."""
    check_options(config)
    file = located(config)
    arrays = read_npz(file, "x_train", "y_train", "x_test", "y_test")
    train, test = (
        Records(as_images(arrays, f"x_{split}", file), as_labels(arrays, f"y_{split}", file))
        for split in ("train", "test")
    )
    names = [str(c) for c in arrays.get("classes", range(int(train.labels.max()) + 1))]
    check_labels(train, test, len(names), file)
    return Dataset(train, test, names)


def read_npz(file: Path, *needed: str) -> dict[str, numpy.ndarray]:
    """The arrays of an npz file, all that are ``needed`` among them; what would have to be unpickled is refused."""
    try:
        with numpy.load(file, allow_pickle=False) as opened:
            arrays = {name: opened[name] for name in opened.files}
    except (BadZipFile, EOFError, OSError, TypeError, ValueError, zlib.error) as error:
        raise BenchmarkError(f"benchmark.path={file}: not an npz file of plain arrays ({error})") from None
    if missing := set(needed) - set(arrays):
        raise BenchmarkError(f"benchmark.path={file}: the array {min(missing)!r} is missing in it")
    return arrays


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


def check_labels(train: Records, test: Records, count: int, file: Path) -> None:
    for split, rows in (("train", train), ("test", test)):
        if len(rows.items) != len(rows.labels):
            raise BenchmarkError(f"benchmark.path={file}: x_{split} and y_{split} differ in length")
        if int(rows.labels.min()) < 0 or int(rows.labels.max()) >= count:
            raise BenchmarkError(f"benchmark.path={file}: y_{split} has a label outside 0 to {count - 1}")
