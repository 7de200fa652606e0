"""Of what a stream's tasks consist, in a few bytes: two streams of one fingerprint teach and test the same.

A split's digest is over the digests of its rows, in order, and over its labels, class names and answers. Rows are
hashed as the backbone reads them. Those of decoded images are hashed once and kept beside them in the cache.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import Tensor

from benchmarks.dataset import Examples
from benchmarks.formats import PADDING

if TYPE_CHECKING:
    from benchmarks.stream import Task

SPLITS = ("train", "validation", "test")


def fingerprint_of(tasks: list[Task]) -> dict[str, Any]:
    """Plain values: ``sha256`` over all, and in ``tasks`` the ``name`` of each and what each of its splits is."""
    found = [{"name": task.name} | {split: about(getattr(task, split), task) for split in SPLITS} for task in tasks]
    return {"sha256": hashlib.sha256(json.dumps(found).encode()).hexdigest(), "tasks": found}


def about(examples: Examples, task: Task) -> dict[str, Any]:
    """How many ``rows`` a split has, and the ``sha256`` over all that is learned or judged from them."""
    inputs, rows = examples.inputs, examples.rows
    # The length of a row of tokens is that of the longest text of all tasks, and says nothing about this one.
    shape = [] if is_tokens(inputs) else list(inputs.shape[1:])
    digest = hashlib.sha256(json.dumps([task.options, task.score, str(inputs.dtype), shape]).encode())
    kept = row_digests(inputs, rows) if examples.digests is None else examples.digests[rows]
    for content in (kept, examples.labels[rows]):
        digest.update(content.numpy().tobytes())
    if examples.answers is not None:
        digest.update(row_digests(examples.answers, rows).numpy().tobytes())
    if examples.references:
        digest.update(json.dumps([examples.references[row] for row in rows.tolist()]).encode())
    return {"rows": len(rows), "sha256": digest.hexdigest()}


def row_digests(inputs: Tensor, rows: Tensor) -> Tensor:
    """SHA-256 uint8 [n, 32] of each of the ``rows`` [n] of ``inputs``; tokens without their padding."""
    array, unpadded = inputs.numpy(), is_tokens(inputs)
    given = (array[row] for row in rows.tolist())  # one at a time: a memory map may be larger than the memory
    found = [hashlib.sha256((row[row != PADDING] if unpadded else row).tobytes()).digest() for row in given]
    return torch.from_numpy(numpy.frombuffer(bytearray(b"".join(found)), numpy.uint8)).view(-1, 32)


def is_tokens(inputs: Tensor) -> bool:
    return inputs.dtype != torch.uint8
