"""Scores of many tasks at once: their rows share batches, and what an unchanged backbone made of them is kept.

Each worker takes every world-th row of each task, and all workers compute equally many batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.dataset import Examples
from benchmarks.models.model import Model
from benchmarks.stream import Task, TaskStream
from orchestrator.run.sharding import Place


@dataclass(frozen=True)
class Rows:
    """This worker's rows [n] of some tasks, those of one task after another."""

    tasks: Sequence[Task]
    examples: Examples
    owners: Tensor  # the place in ``tasks``
    valid: Tensor  # False for rows that only fill up

    def batches(self, size: int) -> Iterator[Tensor]:
        """Places of rows that are computed together: texts of about one length, so that little of them is padding."""
        lengths = self.examples.lengths()
        order = torch.arange(len(self.owners)) if lengths is None else lengths.argsort(descending=True, stable=True)
        yield from order.split(size)

    def by_task(self, values: Tensor) -> list[Tensor]:
        """``values`` [n, …] of each task."""
        return list(values.split(self.owners.bincount(minlength=len(self.tasks)).tolist()))


class Evaluation:
    """Mean scores on the tasks of a stream, in batches of ``size`` rows a worker."""

    def __init__(self, model: Model, stream: TaskStream, place: Place, size: int) -> None:
        self.model, self.stream, self.place, self.size = model, stream, place, size
        self.encoded: dict[tuple[str, int], Tensor] = {}  # by split and task

    def forget(self) -> None:
        """The adapters have changed: what was kept is of no use any more."""
        self.encoded.clear()

    @torch.no_grad()
    def scores(self, tasks: Sequence[Task], split: str, learned: int, keep: bool) -> list[list[float]]:
        """Of each task, for each set of labels that may compete after ``learned`` tasks: [task][set].

        ``keep`` what the backbone makes of the rows, for later calls until ``forget``.
        """
        self.model.eval()
        found: dict[int, list[float]] = {}
        for group in self.groups(tasks, split):
            rows = self.rows(group, split)
            totals = self.place.total(self.sums(rows, split, learned, keep).to(self.place.device)).tolist()
            for task, total in zip(group, totals, strict=True):
                found[task.index] = [value / len(getattr(task, split)) for value in total]
        return [found[task.index] for task in tasks]

    def groups(self, tasks: Sequence[Task], split: str) -> list[list[Task]]:
        """Tasks that share batches: workers have to go through the same code, which differs by what is asked for."""
        groups: dict[tuple[bool, bool], list[Task]] = {}
        for task in tasks:
            groups.setdefault((bool(task.options), (split, task.index) in self.encoded), []).append(task)
        return list(groups.values())

    def sums(self, rows: Rows, split: str, learned: int, keep: bool) -> Tensor:
        """Scores of this worker's rows, added by task: float64 [tasks, sets] on the CPU."""
        candidates = [self.stream.candidates(learned, task.index) for task in rows.tasks]
        added = []
        for places, encoded in self.encode(rows, split, keep):
            owners, labels = rows.owners[places], rows.examples.take(places).own_labels().to(self.place.device)
            judged = self.model.judge(encoded, labels, [candidates[owner] for owner in owners.tolist()]).cpu().double()
            sums = torch.zeros(len(rows.tasks), judged.shape[1], dtype=torch.float64)
            added.append(sums.index_add(0, owners, judged * rows.valid[places, None]))
        return torch.stack(added).sum(0)

    def encode(self, rows: Rows, split: str, keep: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of ``rows``, their places and what the backbone makes of them, or has made where that was kept."""
        names = [(split, task.index) for task in rows.tasks]
        if names[0] in self.encoded:
            kept = torch.cat([self.encoded[name] for name in names])
            for places in torch.arange(len(kept)).split(self.size):
                yield places, kept[places].to(self.place.device)
            return
        batches, parts = list(rows.batches(self.size)), []
        for places in batches:
            batch = rows.examples.take(places).batch().to(self.place.device)
            encoded = self.model.encode(batch, [rows.tasks[owner] for owner in rows.owners[places].tolist()])
            yield places, encoded
            parts += [encoded.cpu()] if keep else []
        if parts:
            whole = torch.cat(parts)[torch.cat(batches).argsort()]
            self.encoded |= dict(zip(names, rows.by_task(whole), strict=True))

    def rows(self, tasks: Sequence[Task], split: str) -> Rows:
        """This worker's rows of ``tasks``."""
        parts: list[Examples] = [getattr(task, split) for task in tasks]
        shares = [share(len(part), self.place) for part in parts]
        examples = Examples.joined([part.take(rows) for part, (rows, _) in zip(parts, shares, strict=True)])
        owners = torch.arange(len(tasks)).repeat_interleave(torch.tensor([len(rows) for rows, _ in shares]))
        return Rows(tasks, examples, owners, torch.cat([valid for _, valid in shares]))


def share(count: int, place: Place) -> tuple[Tensor, Tensor]:
    """This worker's of ``count`` rows, and which of them count; all workers get equally many.

    Each pass gathers FSDP2's shards: a worker with a batch fewer would leave the others waiting without end.
    """
    padded = torch.arange(-(-count // place.world) * place.world)
    mine = padded[place.rank :: place.world]
    return mine.clamp(max=count - 1), mine < count
