"""The task tree: a binary tree over signatures (TreeLoRA, Qian et al. 2025, section 3.3).

An entry is one stored signature: a task, or several that the budget made one. Signatures are directions
(``metric``), a node's diameter bounds the distance of any two of its entries (``diameter``), and groups are split by
one of four rules (``split``, ``grow``). The tree depends on the sketches alone.

Deviations from the paper: by default the tree is rebuilt after each task and has no depth limit; the paper inserts
into it. An inserted entry goes to the child whose mean direction is nearer over all levels.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from methods.treelora.tree.diameter import diameters
from methods.treelora.tree.grow import Grower, Topology
from methods.treelora.tree.metric import Floats, Metric, chunks
from methods.treelora.tree.split import SplitName


class TreeConfig(BaseModel):
    """Settings ``method.tree.<field>``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    split: SplitName = Field("two_means", description="how a group is split in two; l1_mean is the paper's rule")
    maintain: Literal["rebuild", "insert"] = Field("rebuild", description="what a new task does to the tree")
    depth: int | None = Field(None, ge=1, description="most splits on a path; leaves may then hold several tasks")
    budget: int | None = Field(None, ge=2, description="stored signatures; beyond it the closest two become one")


@dataclass
class TaskTree(Topology):
    """Nodes as arrays, children numbered after their parents; node 0 is the root.

    Node n holds the entries ``order[start[n]:stop[n]]``; ``parent``, ``left`` and ``right`` are node numbers, -1 for
    none. A leaf holds one entry, or several where ``depth`` forbade a split. ``signatures`` [entries, levels, width]
    are directions, ``diameter`` [nodes] bounds the distances within a node.
    """

    signatures: Floats
    metric: Metric
    diameter: Floats
    depth: int | None = None

    @classmethod
    def build(
        cls,
        sketches: NDArray,
        *,
        split: SplitName = "two_means",
        metric: Metric = Metric(),  # noqa: B008 - frozen
        depth: int | None = None,
    ) -> TaskTree:
        """Build from one sketch [levels, width] an entry; ValueError for values that are not finite."""
        check(sketches)
        signatures = metric.directions(sketches)
        topology = Grower(metric.geometry(signatures), split, depth).grow()
        return cls(
            **vars(topology),
            signatures=signatures,
            metric=metric,
            diameter=diameters(signatures, topology, metric),
            depth=depth,
        )

    @property
    def entries(self) -> int:
        return len(self.signatures)

    def leaf(self, entry: int) -> int:
        """The node at the end of the path to ``entry``."""
        place, node = int(numpy.flatnonzero(self.order == entry)[0]), 0
        while self.left[node] >= 0:
            node = int(self.left[node] if place < self.stop[self.left[node]] else self.right[node])
        return node

    def path(self, node: int) -> list[int]:
        """Nodes from ``node`` up to the root."""
        found = [node]
        while self.parent[found[-1]] >= 0:
            found.append(int(self.parent[found[-1]]))
        return found

    def members(self, node: int) -> list[int]:
        """The entries below ``node``, sorted."""
        return sorted(self.held(node).tolist())

    def diameters(self, level: int) -> Floats:
        """Bounds [nodes] on the distances within a node at one level."""
        return diameters(self.signatures[:, level : level + 1], self, self.metric)

    def nodes(self) -> list[dict[str, Any]]:
        """One record a node, for reports; inner nodes do not repeat their entries."""
        return [
            {
                "id": node,
                "parent": int(self.parent[node]) if node else None,
                "entries": self.members(node) if self.left[node] < 0 else None,
                "diameter": float(self.diameter[node]),
            }
            for node in range(len(self.parent))
        ]

    def insert(self, sketch: NDArray) -> TaskTree:
        """A tree with one more entry [levels, width]; ValueError for another shape or values that are not finite.

        Only the leaf at the end of the walk is split; node numbers stay.
        """
        if not self.entries:
            return TaskTree.build(sketch[None], metric=self.metric, depth=self.depth)
        if sketch.shape != self.signatures.shape[1:]:
            sizes = f"{sketch.shape}, but the tree's have {self.signatures.shape[1:]}"
            raise ValueError(f"the sketch of task {self.entries} has levels and width {sizes}")
        check(sketch[None], self.entries)
        direction = self.metric.directions(sketch)
        path = self.path(self.nearest(direction))
        topology = self.widened(path)
        diameter = self.diameter.copy()
        distances = self.metric.distance(self.signatures, direction)
        for node in path:
            # The old bound covers the old pairs; only distances to the new entry can exceed it.
            diameter[node] = max(diameter[node], distances[self.held(node)].max())
        if len(topology.held(path[0])) == 2 and (self.depth is None or len(path) <= self.depth):
            topology = topology.extended(path[0])
            diameter = numpy.concatenate([diameter, numpy.zeros(2, dtype=numpy.float32)])
        signatures = numpy.concatenate([self.signatures, direction[None]])
        return TaskTree(
            **vars(topology), signatures=signatures, metric=self.metric, diameter=diameter, depth=self.depth
        )

    def nearest(self, direction: Floats) -> int:
        """The leaf of the nearer mean directions."""
        node = 0
        while self.left[node] >= 0:
            left, right = int(self.left[node]), int(self.right[node])
            node = left if self.gap(direction, left) <= self.gap(direction, right) else right
        return node

    def gap(self, direction: Floats, node: int) -> float:
        """The distance of ``direction`` to the mean direction of a node, in the columns that have means."""
        plain = replace(self.metric, cauchy=0)
        mean = self.metric.geometry(self.signatures[self.held(node)]).mean(axis=0)
        own = plain.directions(self.metric.geometry(direction))
        return float(plain.distance(own, plain.directions(mean)))

    def state_dict(self) -> dict[str, NDArray]:
        """Everything but the signatures and the metric."""
        names = [field.name for field in fields(Topology)] + ["diameter"]
        return {name: getattr(self, name).copy() for name in names} | {"depth": numpy.array(self.depth or 0)}

    @classmethod
    def restored(cls, sketches: NDArray, state: dict[str, NDArray], metric: Metric) -> TaskTree:
        """The tree of ``state_dict`` over the same sketches; ValueError if their number differs."""
        if len(sketches) != len(state["order"]):
            raise ValueError(
                f"the saved tree has {len(state['order'])} entries, but there are {len(sketches)} sketches"
            )
        arrays = {name: value.copy() for name, value in state.items() if name != "depth"}
        return cls(**arrays, signatures=metric.directions(sketches), metric=metric, depth=int(state["depth"]) or None)

    def __str__(self) -> str:
        """One line a node: the diameter of inner nodes, the entries of leaves."""
        # A stack and no recursion: without a depth limit a tree can be as deep as it has entries.
        lines = []
        pending = [(0, "", "", "")] if self.entries else []
        while pending:
            node, indent, branch, below = pending.pop()
            leaf = self.left[node] < 0
            label = ", ".join(map(str, self.members(node))) if leaf else f"{self.diameter[node]:.3f}"
            lines.append(indent + branch + label)
            if not leaf:
                pending.append((int(self.right[node]), indent + below, "└── ", "    "))
                pending.append((int(self.left[node]), indent + below, "├── ", "│   "))
        return "\n".join(lines)


def check(sketches: NDArray, first: int = 0) -> None:
    """ValueError for values that are not finite; ``first`` is the number of the first entry."""
    for part in chunks(len(sketches), sketches[0].size if len(sketches) else 1):
        for entry, level in numpy.argwhere(~numpy.isfinite(sketches[part]).all(axis=-1)).tolist():
            raise ValueError(f"the sketch of task {first + part.start + entry} is not finite at level {level}")
