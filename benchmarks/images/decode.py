"""Image files, decoded once: cut to one size and kept as a memory-mapped array in the cache."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy
import torch
from numpy.lib import format as npy
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from benchmarks.account import Account
from benchmarks.cache import cached
from benchmarks.dataset import BenchmarkError
from benchmarks.fingerprint import row_digests
from benchmarks.formats import Prepared
from benchmarks.images.pixels import upright
from benchmarks.sources import POINTER, is_pointer

Decoded = tuple[numpy.ndarray | None, str]
ARRAY, BAD, NOTES, DIGESTS = "images.npy", "bad.json", "notes.json", "digests.npy"
RULES = 2  # counts up where the same file gives other pixels than before
FILES_PER_WORKER = 256  # with fewer, starting a worker takes longer than decoding
BATCH = 32


def prepare_images(items: Sequence[Path], size: int, skip_bad: bool) -> Prepared:
    """The files ``items`` as a memory map uint8 [n, 3, size, size]: short side resized to ``size``, centre cut out.

    The cache keeps them sorted by path: rows asked for in another order are copied into memory. A file that is no
    image raises BenchmarkError, or with ``skip_bad`` is left out and named.
    """
    asked = [os.path.abspath(item) for item in items]
    files = sorted(set(asked))
    folder, made = cached(
        "images",
        {"files": [signature(f) for f in files], "size": size, "rules": RULES},
        lambda new: make(new, files, size, skip_bad),
    )
    bad: dict[str, str] = json.loads((folder / BAD).read_text())
    refuse(bad, len(files), skip_bad)
    inputs = torch.from_numpy(numpy.load(folder / ARRAY, mmap_mode="c"))
    digests = digests_of(inputs, folder.name)
    good = [file for file in files if file not in bad]
    if asked != files:
        row = {file: index for index, file in enumerate(good)}
        order = torch.tensor([row[file] for file in asked if file in row], dtype=torch.long)
        inputs, digests = inputs[order], digests[order]
    kept = torch.tensor([file not in bad for file in asked], dtype=torch.bool)
    named = [f"{file}: {reason}" for file, reason in bad.items()]
    account = Account.from_list(json.loads((folder / NOTES).read_text()))
    return Prepared(inputs, kept, digests=digests, fresh=len(good) if made else 0, bad=named, account=account)


def digests_of(inputs: Tensor, name: str) -> Tensor:
    """Those of the images in the cache's folder ``name``, hashed once: gigabytes would have to be read for each run."""

    def make(folder: Path) -> None:
        numpy.save(folder / DIGESTS, row_digests(inputs, torch.arange(len(inputs))).numpy(), allow_pickle=False)

    folder, _ = cached("digests", {"images": name}, make)
    return torch.from_numpy(numpy.load(folder / DIGESTS, allow_pickle=False))


def signature(file: str) -> tuple[str, int, int]:
    """Path, bytes and time of change; a missing file is reported by the decoding."""
    try:
        found = os.stat(file)
    except OSError:
        return file, 0, 0
    return file, found.st_size, found.st_mtime_ns


def refuse(bad: dict[str, str], count: int, skip_bad: bool) -> None:
    if bad and not skip_bad:
        file, reason = next(iter(bad.items()))
        raise BenchmarkError(
            f"{file}: not a readable image ({reason}); {len(bad)} of {count} files are bad: "
            "repair or remove them, or leave them out with --skip-bad"
        )


def make(folder: Path, files: list[str], size: int, skip_bad: bool) -> None:
    """Write the images that can be decoded, one after the other, and the reasons why others cannot.

    Plain writes raise an error on a full disk; writes to a memory map end the process with SIGBUS.
    """
    bad, account = {}, Account()
    with (folder / ARRAY).open("wb") as array:
        write_header(array, len(files), size)
        for file, (decoded, words) in zip(files, decode_all(files, size), strict=True):
            if decoded is None:
                bad[file] = words
            else:
                array.write(decoded.tobytes())
                account.note(words, file, bool(words))
        array.seek(0)
        write_header(array, len(files) - len(bad), size)  # as long as the first: numpy leaves room to grow
    refuse(bad, len(files), skip_bad)
    (folder / BAD).write_text(json.dumps(bad))
    (folder / NOTES).write_text(json.dumps(account.as_list()))


def write_header(array: BinaryIO, count: int, size: int) -> None:
    npy.write_array_header_1_0(array, {"descr": "|u1", "fortran_order": False, "shape": (count, 3, size, size)})


def decode_all(files: list[str], size: int) -> Iterator[Decoded]:
    """Each file decoded, in order."""
    loader = DataLoader(
        Decoder(files, size),
        batch_size=BATCH,
        collate_fn=list,  # as arrays, which travel by pipe: a container's shared memory is often too small
        num_workers=min(processors(), len(files) // FILES_PER_WORKER),
        generator=torch.Generator(),  # or it would draw from the run's own, and only where the cache is empty
    )
    with tqdm(total=len(files), desc="decoding images", unit="", delay=3, disable=None) as progress:
        for batch in loader:
            yield from batch
            progress.update(len(batch))


def processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Decoder(Dataset[Decoded]):
    """File number to image uint8 [3, size, size] and what was done to it, or to None and the reason why."""

    def __init__(self, files: list[str], size: int) -> None:
        self.files, self.size = files, size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Decoded:
        try:
            return decode(self.files[index], self.size)
        except Exception as error:  # what Pillow raises for a damaged file depends on its format
            return None, reason(self.files[index], error)


def reason(file: str, error: Exception) -> str:
    """Why a file could not be decoded, in one line."""
    if os.path.isfile(file) and is_pointer(Path(file)):
        return POINTER
    return " ".join(str(error).split()) or type(error).__name__


def decode(file: str, size: int) -> tuple[numpy.ndarray, str]:
    """uint8 [3, size, size], the right way up, and what was done to it, as ``pixels.upright`` says."""
    with Image.open(file) as image:
        whole, done = upright(image)
    square = ImageOps.fit(whole, (size, size), Image.Resampling.BICUBIC)
    return numpy.ascontiguousarray(numpy.asarray(square).transpose(2, 0, 1)), done
