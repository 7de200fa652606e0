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

from benchmarks.account import Account
from benchmarks.cache import cached
from benchmarks.dataset import BenchmarkError, Dataset, Records, StreamConfig, source
from benchmarks.images.array_values import as_text, images, labels, numbered
from benchmarks.sources import check_options, located, refuse_path

DIGITS_PIXELS = 32
DIGITS = "digits.safetensors"
UNREADABLE = (BadZipFile, EOFError, OSError, TypeError, ValueError, zlib.error)
NEEDED = ("x_train", "y_train", "x_test", "y_test")


@source("digits")
def digits(config: StreamConfig) -> Dataset:
    """scikit-learn's 1,797 real 8x8 images, enlarged to 32x32; a fixed stratified quarter is the test split."""
    check_options(config)
    refuse_path(config)
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
    pixels, targets = large.expand(-1, 3, -1, -1).contiguous(), torch.from_numpy(data.target).long()
    split = train_test_split(numpy.arange(len(targets)), test_size=0.25, stratify=targets, random_state=0)
    arrays: dict[str, Tensor] = {}
    for name, rows in zip(("train", "test"), split, strict=True):
        arrays |= {f"{name}_images": pixels[rows], f"{name}_labels": targets[rows]}
    save_file(arrays, folder / DIGITS)


@source("array")
def array(config: StreamConfig) -> Dataset:
    """An npz file, or a folder of npy files: ``x_train``, ``y_train``, ``x_test``, ``y_test``, optionally ``classes``.

    ``x`` [n, h, w(, 3)] and ``y`` [n] in the forms that ``array_values.py`` reads.
    """
    check_options(config)
    file, account = located(config), Account()
    arrays = read_npy(file, *NEEDED) if file.is_dir() else read_npz(file, *NEEDED)
    read = {name: images(arrays[name], f"benchmark.path={file}: {name}", account) for name in ("x_train", "x_test")}
    y_train, y_test = (labels(arrays[name], f"benchmark.path={file}: {name}") for name in ("y_train", "y_test"))
    for split, found in (("train", y_train), ("test", y_test)):
        if len(read[f"x_{split}"]) != len(found):
            raise BenchmarkError(f"benchmark.path={file}: x_{split} and y_{split} differ in length")
    given = arrays.get("classes", numpy.array([], dtype=str))
    given = as_text(given) if given.dtype.kind == "S" else given
    train, test, names = numbered(y_train, y_test, [str(name) for name in given], file, account)
    return Dataset(Records(read["x_train"], train), Records(read["x_test"], test), names, account=account)


def read_npy(folder: Path, *needed: str) -> dict[str, numpy.ndarray]:
    """The npy files of a folder by their names, each over a memory map."""
    try:
        arrays = {f.stem: numpy.load(f, mmap_mode="c", allow_pickle=False) for f in sorted(folder.glob("*.npy"))}
    except UNREADABLE as error:
        raise BenchmarkError(f"benchmark.path={folder}: a file in it is no plain array ({error})") from None
    for name, array in arrays.items():
        if not isinstance(array, numpy.ndarray):
            raise BenchmarkError(f"benchmark.path={folder}: {name}.npy holds several arrays; call it {name}.npz")
    return complete(arrays, folder, needed)


def read_npz(file: Path, *needed: str) -> dict[str, numpy.ndarray]:
    """The arrays of an npz file, all that are ``needed`` among them; what would have to be unpickled is refused."""
    try:
        with numpy.load(file, allow_pickle=False) as opened:
            arrays = {name: opened[name] for name in opened.files}
    except UNREADABLE as error:
        raise BenchmarkError(f"benchmark.path={file}: not an npz file of plain arrays ({error})") from None
    return complete(arrays, file, needed)


def complete(arrays: dict[str, numpy.ndarray], file: Path, needed: tuple[str, ...]) -> dict[str, numpy.ndarray]:
    if missing := set(needed) - set(arrays):
        raise BenchmarkError(f"benchmark.path={file}: the array {min(missing)!r} is missing in it")
    return arrays
