"""The data are part of what a run is: they stay the same while it is stopped, and on all of its workers."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.fingerprint import SPLITS
from orchestrator.run.sharding import Place
from orchestrator.settings.errors import UserError


def check_data(begun: dict[str, Any] | None, found: dict[str, Any], place: Place) -> None:
    """UserError on every worker where one ``found`` other data than those that the run has ``begun`` with.

    Both are fingerprints of the stream. A run that begins, or whose checkpoint is of an earlier version and has none,
    takes those of the first worker.
    """
    mine = list(bytes.fromhex(found["sha256"]))
    first = place.from_first([float(byte) for byte in mine])
    changed = begun is not None and begun["sha256"] != found["sha256"]
    # Asked together: a worker that ended alone would leave the others waiting without end.
    differing = place.total(torch.tensor([float(changed), float(mine != first)], device=place.device))
    if changed and begun:
        raise UserError(
            f"{change(begun, found)} since this run began; put the old data back, or begin another with name=…"
        )
    if differing.any():
        raise UserError("the workers read different data; give every node the same, or read them from a shared disk")


def change(begun: dict[str, Any], found: dict[str, Any]) -> str:
    """The first split that is another one, and of how many."""
    pairs = list(zip(begun["tasks"], found["tasks"], strict=False))
    splits = [(number, old, new, s) for number, (old, new) in enumerate(pairs) for s in SPLITS if old[s] != new[s]]
    if not splits:
        return f"the data's tasks changed from {names(begun)} to {names(found)}"
    number, old, new, split = splits[0]
    rows = (
        f" from {old[split]['rows']} rows to {new[split]['rows']}" if old[split]["rows"] != new[split]["rows"] else ""
    )
    more = f" (and {len(splits) - 1} more)" if splits[1:] else ""
    return f"the {split} split of task {number} ({old['name']}){more} changed{rows}"


def names(data: dict[str, Any]) -> str:
    return "; ".join(task["name"] for task in data["tasks"])
