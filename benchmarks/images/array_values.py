"""Arrays of images and labels, in the forms that people store them, as images of 8 bits and numbered classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy
import torch
from torch import Tensor

from benchmarks.account import Account
from benchmarks.dataset import BenchmarkError

CHANNELS = (1, 3, 4)  # grey, colour, colour with alpha
CHUNK = 1000  # images scaled at a time, to bound the memory of floats
FORMS = "[n, h, w] or [n, h, w, 3]"


def images(values: numpy.ndarray, place: str, account: Account) -> Tensor:
    """uint8 [n, 3, h, w]; what was done besides copying a grey channel is noted.

    16 bits and floats are scaled by the range of their type, never by their own values.
    """
    if values.ndim == 4 and values.shape[1] in CHANNELS and values.shape[3] not in CHANNELS:
        values = values.transpose(0, 2, 3, 1)
        account.note("images whose channels come first", place, len(values))
    if values.ndim == 3:
        values = values[..., None]
    if values.ndim != 4 or values.shape[3] not in CHANNELS or 0 in values.shape:
        raise BenchmarkError(f"{place} is {described(values)}, not {FORMS}")
    if values.dtype != numpy.uint8:
        values = scaled(values, place, account)
    if values.shape[3] == 4:
        values = over_white(values, place, account)
    return torch.from_numpy(values).expand(-1, -1, -1, 3).permute(0, 3, 1, 2).contiguous()


def scaled(values: numpy.ndarray, place: str, account: Account) -> numpy.ndarray:
    """The same in 8 bits, rounded."""
    kind = values.dtype.kind
    if values.dtype == numpy.uint16:
        white, done = 65535.0, "images of 16 bits scaled to 8"
    elif kind == "b":
        white, done = 1.0, "images of black and white scaled to 8 bits"
    elif kind == "f" and values.min() >= 0 and values.max() <= 1:
        white, done = 1.0, "images of floats from 0 to 1 scaled to 8 bits"
    else:
        span = f", from {values.min():g} to {values.max():g}" if kind in "fiu" else ""
        raise BenchmarkError(
            f"{place} is {described(values)}{span}: which value is white is unknown; store uint8, or floats in 0 to 1"
        )
    account.note(done, place, len(values))
    chunks = (values[start : start + CHUNK] for start in range(0, len(values), CHUNK))
    return numpy.concatenate([(chunk * (255 / white)).round().astype(numpy.uint8) for chunk in chunks])


def over_white(values: numpy.ndarray, place: str, account: Account) -> numpy.ndarray:
    """[n, h, w, 4] to [n, h, w, 3]."""
    account.note("images with alpha laid over white", place, len(values))
    found = []
    for start in range(0, len(values), CHUNK):
        colour, alpha = values[start : start + CHUNK, ..., :3], values[start : start + CHUNK, ..., 3:] / 255
        found.append((colour * alpha + 255 * (1 - alpha)).round().astype(numpy.uint8))
    return numpy.concatenate(found)


def labels(values: numpy.ndarray, place: str) -> numpy.ndarray:
    """Whole numbers or text [n], at least one; [n, 1] is taken as [n]."""
    values = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
    kind = values.dtype.kind
    if kind == "f" and numpy.array_equal(values, values.round()):
        values = values.astype(numpy.int64)
    if kind == "S":
        values = as_text(values)
    if kind == "b":
        values = values.astype(numpy.int64)
    if values.ndim != 1 or len(values) == 0 or values.dtype.kind not in "iuU":
        raise BenchmarkError(f"{place} is {described(values)}, not whole numbers or texts [n]")
    return values


def numbered(
    train: numpy.ndarray, test: numpy.ndarray, given: Sequence[str], file: Path, account: Account
) -> tuple[Tensor, Tensor, list[str]]:
    """Both splits' labels [n] as classes from 0, and the names of these.

    The distinct values are the classes, in order, whichever numbers they are. ``given`` names are by number, where all
    numbers are places in it, else by order.
    """
    if (train.dtype.kind == "U") != (test.dtype.kind == "U"):
        raise BenchmarkError(f"benchmark.path={file}: the labels are texts in one split and numbers in the other")
    values = numpy.unique(numpy.concatenate([train, test]))
    places = [torch.from_numpy(numpy.searchsorted(values, split)) for split in (train, test)]
    return places[0], places[1], names_of(values, list(given), file, account)


def names_of(values: numpy.ndarray, given: list[str], file: Path, account: Account) -> list[str]:
    if not given:
        return [str(value) for value in values]
    if values.dtype.kind != "U" and values.min() >= 0 and values.max() < len(given):
        unused = sorted(set(range(len(given))) - set(values.tolist()))
        account.note("names of classes without any image", given[unused[0]] if unused else "", len(unused))
        return [given[value] for value in values]
    if len(given) != len(values):
        raise BenchmarkError(
            f"benchmark.path={file}: {len(given)} names in 'classes' and {len(values)} different labels "
            f"({', '.join(map(str, values[:3]))} …); give one for each"
        )
    return given


def as_text(values: numpy.ndarray) -> numpy.ndarray:
    return numpy.char.decode(values, "utf-8", "replace")


def described(values: numpy.ndarray) -> str:
    return f"{values.dtype} {list(values.shape)}"
