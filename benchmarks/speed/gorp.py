"""What GORP costs and what it keeps: a step beside AdamW's, a refresh beside a full decomposition, and leaks.

The references in the same run are torch's AdamW, ``torch.linalg.svd``, and the released rule: a decomposition at each
refresh, a square projector, gradients protected before Adam and updates not.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.speed.measure import Measurement, medians
from methods.gorp import GORP
from methods.gorp.compression import Compression
from methods.gorp.rows import Rows

EVERY = 10  # steps between two refreshes
RANK = 8
RATE = 1e-5
ROWS_OF_A = 8  # LoRA's A, which the released code protects on this side
KINDS = ("i.i.d. rows", "log-normal row scales", "concentrated space")


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def orthonormal(size: int, count: int, seed: int) -> Tensor:
    return torch.linalg.qr(random(size, count, seed=seed)).Q


# --- a step ---


def step(toy: bool) -> list[Measurement]:
    """A turn of each candidate is a whole period of refreshes on the same gradients."""
    gradients, spaces = problem(toy)
    (size, known), repeats = spaces[0].shape, 2 if toy else 15
    candidates = {
        "gorp": stepping(exact(gradients, spaces)),
        "adamw": stepping(adamw(gradients, None)),
        "adamw fused": stepping(adamw(gradients, True)),
    }
    seconds = medians(candidates, repeats)
    # A decomposition takes as long as all else together, so that it takes fewer turns.
    seconds |= medians({"released": stepping(Released(gradients, spaces))}, 2 if toy else 3)
    each = {name: 1e3 * value / EVERY for name, value in seconds.items()}
    detail = {
        "quantity": "a step over whole periods by one of torch's default AdamW",
        "matrices": len(gradients),
        "size": size,
        "rank": RANK,
        "protected": known,
        "milliseconds": each,
        "released_by_adamw": each["released"] / each["adamw"],
        "repeats": repeats,
    }
    fused = detail | {"quantity": "the same by one of torch's fused AdamW"}
    return [
        Measurement("gorp-step", each["gorp"] / each["adamw"], 1.0, detail),
        Measurement("gorp-step", each["gorp"] / each["adamw fused"], 2.0, fused),
    ]


def problem(toy: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients of square matrices, and a protected space of each."""
    matrices, size, known = (2, 32, 4) if toy else (8, 1024, 20)
    gradients = [random(size, size, seed=number) for number in range(matrices)]
    return gradients, [orthonormal(size, known, seed=100 + number) for number in range(matrices)]


def stepping(optimizer: torch.optim.Optimizer | Released) -> Callable[[], None]:
    """A call that makes the steps from one refresh to the next; the first such is done already."""

    def run() -> None:
        for _ in range(EVERY):
            optimizer.step()

    run()
    return run


def weights(gradients: list[Tensor]) -> list[nn.Parameter]:
    found = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    for parameter, gradient in zip(found, gradients, strict=True):
        parameter.grad = gradient
    return found


def exact(gradients: list[Tensor], spaces: list[Tensor]) -> GORP:
    matrices = weights(gradients)
    return GORP(matrices, RATE, rank=RANK, every=EVERY, spaces=dict(zip(matrices, spaces, strict=True)))


def adamw(gradients: list[Tensor], fused: bool | None) -> torch.optim.Optimizer:
    return torch.optim.AdamW(weights(gradients), lr=RATE, weight_decay=0.0, fused=fused)


class Released:
    """The rule of the released code on matrices [m, n], m >= n: S S^T is formed, and Adam's division comes after it."""

    def __init__(self, gradients: list[Tensor], spaces: list[Tensor]) -> None:
        self.matrices = [parameter.detach() for parameter in weights(gradients)]
        self.gradients, self.count = gradients, 0
        self.squares = [space @ space.t() for space in spaces]
        self.bases = [gradient[:RANK].t() for gradient in gradients]
        self.moments = [(gradient.new_zeros(len(gradient), RANK),) * 2 for gradient in gradients]

    def step(self) -> None:
        for number, gradient in enumerate(self.gradients):
            if self.count % EVERY == 0:
                self.bases[number] = torch.linalg.svd(gradient, full_matrices=False).Vh[:RANK].t()
            values = gradient @ self.bases[number]
            values = values - self.squares[number] @ values
            first, second = self.moments[number]
            self.moments[number] = first, second = 0.9 * first + 0.1 * values, 0.999 * second + 0.001 * values**2
            self.matrices[number] -= RATE * (first / (second.sqrt() + 1e-6)) @ self.bases[number].t()
        self.count += 1


# --- a refresh ---


def refresh(toy: bool) -> list[Measurement]:
    """Seconds of a refresh by those of a decomposition, and how far apart the subspaces are that they find."""
    size, repeats = (48, 2) if toy else (1024, 7)
    falling = decomposed(0.5 ** torch.arange(size))
    flat = decomposed(torch.cat([0.5 ** torch.arange(RANK), 0.5**RANK * 0.99 ** torch.arange(size - RANK)]))
    candidates = {
        "refresh": lambda: refreshed(falling[0]),
        "svd": lambda: torch.linalg.svd(falling[0], full_matrices=False),
    }
    seconds = medians(candidates, repeats)
    detail = {"size": size, "rank": RANK, "repeats": repeats}
    timed = {"quantity": "seconds of a refresh by those of a decomposition", "seconds": seconds}
    near = {
        "quantity": "sine of the largest angle to the leading singular vectors, each value half of the one before",
        "flat_tail": sine(refreshed(flat[0]), flat[1]),
        "flat_tail_fifth_refresh": sine(refreshed(flat[0], 5), flat[1]),
    }
    return [
        Measurement("gorp-refresh", seconds["refresh"] / seconds["svd"], 1 / 50, detail | timed),
        Measurement("gorp-refresh", sine(refreshed(falling[0]), falling[1]), 1e-2, detail | near),
    ]


def decomposed(values: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix of these singular values, and its first right singular vectors."""
    left, right = (orthonormal(len(values), len(values), seed=seed) for seed in range(2))
    return (left * values) @ right.t(), right[:, :RANK]


def refreshed(gradient: Tensor, times: int = 1) -> Tensor:
    """The basis after so many refreshes on the same gradient, each of which begins with the one before."""
    size = len(gradient)
    own = Compression(Rows((size, size), 0, size), 0, RANK, "rows")
    basis = gradient.new_zeros(size, RANK)
    for number in range(times):
        basis = own.refreshed(gradient, own.sketch(gradient, basis, number), RANK)[0]
    return basis


def sine(found: Tensor, wanted: Tensor) -> float:
    """Of the largest angle between the spans of two orthonormal bases."""
    found, wanted = found.double(), wanted.double()
    return float(torch.linalg.matrix_norm(found - wanted @ (wanted.t() @ found), 2))


# --- leaks ---


def leak(toy: bool) -> list[Measurement]:
    """The largest share of any step that is in the protected space, under the exact rule and under the released one."""
    size, known, steps = (64, 4, 12) if toy else (1024, 20, 200)
    found = {
        protect: {kind: leaks(kind, size, known, steps, protect) for kind in KINDS}
        for protect in ("update", "gradient")
    }
    downs = {f"LoRA-A, {k} of {ROWS_OF_A}": down_leaks(size, k, steps) for k in (2, 4, 6, 7)}
    detail = {
        "quantity": "share of a step that is in the protected space, the largest of all",
        "size": size,
        "protected": known,
        "steps": steps,
        "exact": {name: worst for name, (worst, _) in found["update"].items()},
        "released_at_the_last_step": {name: last for name, (_, last) in (found["gradient"] | downs).items()},
    }
    return [Measurement("gorp-leak", max(worst for worst, _ in found["update"].values()), 1e-6, detail)]


def leaks(kind: str, size: int, known: int, steps: int, protect: str) -> tuple[float, float]:
    """Of a square matrix whose rows are alike, or of very different sizes, or whose space is on few of them."""
    scales, space = torch.ones(size, 1), random(size, known, seed=1)
    if kind == "log-normal row scales":
        scales = random(size, 1, seed=2).exp()
    if kind == "concentrated space":
        space = space * random(size, 1, seed=3).mul(2).exp()
    space = torch.linalg.qr(space).Q
    return measured((size, size), scales, space, steps, protect, rank=RANK)


def down_leaks(size: int, known: int, steps: int) -> tuple[float, float]:
    """Of LoRA's A [8, size], protected on its rows as the released code does it."""
    space = orthonormal(ROWS_OF_A, known, seed=1)
    return measured((ROWS_OF_A, size), torch.ones(ROWS_OF_A, 1), space, steps, "gradient", rank=None)


def measured(
    shape: tuple[int, int], scales: Tensor, space: Tensor, steps: int, protect: str, rank: int | None
) -> tuple[float, float]:
    """The largest leak of a step and that of the last one; each starts at zero, so that no rounding is added."""
    weight = nn.Parameter(torch.zeros(shape))
    optimizer = GORP([weight], 1.0, rank=rank, side="rows", every=EVERY, protect=protect, spaces={weight: space})  # type: ignore[arg-type]
    found = []
    for number in range(steps):
        weight.data.zero_()
        weight.grad = random(*shape, seed=1000 + number) * scales
        optimizer.step()
        moved = weight.detach().double()
        found.append(float((space.double().t() @ moved).norm() / moved.norm()))
    return max(found), found[-1]
