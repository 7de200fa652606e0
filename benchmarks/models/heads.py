"""The trained head: one part for each task, of which only the current one learns.

Every kind of head trains one of these; the closed-form kinds replace it when they classify (see ``readouts``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

SCALE = 16.0


class HeadConfig(BaseModel):
    """Settings ``head.<field>``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["auto", "linear", "cosine", "prototype", "gaussian", "ranpac"] = Field(
        "auto", description="auto: gaussian; nothing on a backbone that writes its answers"
    )
    start: Literal["zero", "random"] = Field("zero", description="linear: weights before training; random: torch's own")
    shrinkage: float = Field(0.1, gt=0, le=1, description="gaussian: times the mean variance, added to all variances")
    projection: int = Field(1000, gt=0, description="ranpac: random features; the paper has 10,000")
    ridge: float | None = Field(None, gt=0, description="ranpac: penalty; null: by the error on a held-out fifth")


class CosinePart(nn.Module):
    """Cosines between features and class vectors, times a fixed scale (after Hou et al. 2019, LUCIR).

    LUCIR learns one scale for all classes. Here it is fixed: a shared scale would change the logits of old classes
    after their vectors are frozen, and a scale for each part would bring back the tasks' different magnitudes,
    which the cosine is there to remove. With 16 the least possible loss stays below 0.001 up to 1,000 classes (the
    bound of Wang et al. 2017, NormFace, proposition 2).
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, width))
        nn.init.normal_(self.weight, std=width**-0.5)  # length near 1, so that a step turns all of them alike

    def forward(self, features: Tensor) -> Tensor:
        return SCALE * functional.linear(functional.normalize(features, dim=-1), functional.normalize(self.weight))


def zero_part(width: int, classes: int) -> nn.Linear:
    """A linear layer of zeros."""
    part = nn.Linear(width, classes)
    nn.init.zeros_(part.weight)
    nn.init.zeros_(part.bias)
    return part


class GrowingHead(nn.Module):
    """Features [n, width] to logits [n, sum(parts)]; ``parts`` holds the numbers of classes in the order of labels.

    A part is a module of its own: the optimiser gets the parameters of the current one alone, so that no momentum
    and no weight decay moves the rows of old classes. All parts take part in every forward pass and all require
    gradients, as DDP and FSDP expect; where the loss uses other classes only, the gradient of a part is zero.
    """

    def __init__(self, width: int, parts: Sequence[int], cosine: bool, random: bool = False) -> None:
        super().__init__()
        self.count = len(parts)
        linear = nn.Linear if random else zero_part
        make = CosinePart if cosine else linear
        self.parts = nn.ModuleList(make(width, classes) for classes in parts)

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([part(features) for part in self.parts], dim=-1)

    def part_parameters(self, part: int) -> list[nn.Parameter]:
        """What the optimiser gets while ``part`` learns; ask after sharding, which replaces parameters."""
        return list(self.parts[part].parameters())
