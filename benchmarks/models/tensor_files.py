"""Tensors in safetensors files, read by rows: nobody needs more memory than for the part that it keeps.

Nothing is mapped into memory, whose pages would count beside the copy that is made of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
BLOCK = 16 * 2**20  # bytes that are read at a time


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a file, ``start`` bytes behind its beginning."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    def rows(self, first: int = 0, stop: int | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """Rows ``first`` to ``stop`` along the first dimension, all by default; floats in ``dtype``."""
        if not self.shape:
            return self.elements(0, 1, dtype).reshape(())
        stop = self.shape[0] if stop is None else stop
        width = math.prod(self.shape[1:])
        return self.elements(first * width, stop * width, dtype).reshape(stop - first, *self.shape[1:])

    def elements(self, first: int, stop: int, dtype: torch.dtype) -> Tensor:
        found = torch.empty(stop - first, dtype=dtype if self.dtype.is_floating_point else self.dtype)
        step = max(1, BLOCK // self.dtype.itemsize)
        with self.file.open("rb") as opened:
            opened.seek(self.start + first * self.dtype.itemsize)
            for part in found.split(step) if len(found) else ():
                part.copy_(torch.frombuffer(bytearray(opened.read(len(part) * self.dtype.itemsize)), dtype=self.dtype))
        return found


def stored_tensors(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """All tensors of the files by name; SafetensorError where one is damaged or of a type that torch lacks."""
    found: dict[str, StoredTensor] = {}
    for file in files:
        # Checks that all that the header says is in the file; for torch it would ask for memory for all of it.
        with safe_open(file, "np"):
            found |= header(file)
    return found


def header(file: Path) -> dict[str, StoredTensor]:
    """As the format has it: the length of the header in 8 bytes, the header in JSON, then all tensors."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        described = json.loads(opened.read(length))
    described.pop("__metadata__", None)
    found = {}
    for name, about in described.items():
        if about["dtype"] not in TYPES:
            raise SafetensorError(f"{name} is of type {about['dtype']}, which is not read here")
        start = 8 + length + about["data_offsets"][0]
        found[name] = StoredTensor(file, TYPES[about["dtype"]], tuple(about["shape"]), start)
    return found
