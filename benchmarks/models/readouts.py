"""Closed-form classifiers on features: class means, a shared covariance, or ridge regression on random features.

All of them are functions of sums over rows, so no row is kept. Sums of many tasks, batches or workers add up to the
sums of all rows at once: what is learned depends neither on their order nor on how rows are spread over workers, and
a class that comes back is updated exactly. Sums are fp64: they are not centred, which costs as many digits as the
squared ratio of mean to spread has, of sixteen.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.models.heads import HeadConfig

Products = dict[str, tuple[Tensor, Tensor]]
FOLDS = 5
RIDGES = [10.0**exponent for exponent in range(-8, 9)]  # those of McDonnell et al. 2023


class Readout(ABC):
    """Sums over the rows of finished tasks, and the classifier that follows from them.

    ``shapes`` are those of the sums beside the counts [classes, 1]. Every worker ends up with the same sums, in fp64
    on the CPU; the classifier is computed when it is first asked for.
    """

    def __init__(self, classes: int, shapes: dict[str, tuple[int, int]]) -> None:
        self.classes = classes
        shapes = {"counts": (classes, 1)} | shapes
        self.sums = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
        self.pending: dict[str, Tensor] = {}
        self.solved: tuple[Tensor, ...] | None = None

    @torch.no_grad()
    def collect(self, features: Tensor, labels: Tensor) -> None:
        """Add this worker's rows of the current task, features [n, width] and labels [n], on their device."""
        targets = functional.one_hot(labels, self.classes).double()
        products = {"counts": (targets, torch.ones_like(targets[:, :1]))} | self.products(features.double(), targets)
        for name, (left, right) in products.items():
            if name not in self.pending:
                self.pending[name] = left.new_zeros(self.sums[name].shape)
            self.pending[name].addmm_(left.T, right)

    @torch.no_grad()
    def finish(self, total: Callable[[Tensor], Tensor]) -> None:
        """End a task: ``total`` is a sum over all workers, all of which have to call this, with or without rows.

        A worker that collected nothing, not even zero rows, passes zeros on the CPU to ``total``.
        """
        for name, known in self.sums.items():
            pending = self.pending.get(name, torch.zeros_like(known))
            self.sums[name] = known + total(pending).to(known.device)
        self.pending, self.solved = {}, None

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        """Scores [n, classes] of features [n, width], float32 on their device; classes never seen get -inf."""
        unseen = (self.sums["counts"][:, 0] == 0).to(features.device)
        return self.scores(features.double()).masked_fill(unseen, -torch.inf).float()

    def classifier(self, device: torch.device) -> tuple[Tensor, ...]:
        """What ``solve`` gave, computed once after each task."""
        if self.solved is None:
            self.solved = self.solve()
        # Kept where it was needed last, so that it is moved once and not for each batch.
        self.solved = tuple(tensor.to(device) for tensor in self.solved)
        return self.solved

    def means(self) -> Tensor:
        """Class means [classes, width] from the sums over each class; zero for classes never seen."""
        return self.sums["features"] / self.sums["counts"].clamp(min=1)

    def state_dict(self) -> dict[str, Tensor]:
        """The sums of finished tasks."""
        return dict(self.sums)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse; ValueError if a name or shape does not fit."""
        given, known = ({name: v.shape for name, v in tensors.items()} for tensors in (state, self.sums))
        if given != known:
            raise ValueError(f"the checkpoint has another head's sums: {given}, not {known}")
        self.sums = {name: state[name].to("cpu", torch.float64) for name in self.sums}
        self.pending, self.solved = {}, None

    @abstractmethod
    def products(self, features: Tensor, targets: Tensor) -> Products:
        """Pairs (a [n, i], b [n, j]) by sum; each sum grows by a^T b. ``targets`` are one-hot labels [n, classes]."""

    @abstractmethod
    def solve(self) -> tuple[Tensor, ...]:
        """The classifier from the sums."""

    @abstractmethod
    def scores(self, features: Tensor) -> Tensor:
        """fp64 scores [n, classes] of fp64 features [n, width], those of unseen classes arbitrary."""


class Prototype(Readout):
    """Nearest class mean: the score is -|x - mu_c|^2 (as in Rebuffi et al. 2017, iCaRL, without its exemplars)."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__(classes, {"features": (classes, width)})

    def products(self, features: Tensor, targets: Tensor) -> Products:
        return {"features": (targets, features)}

    def solve(self) -> tuple[Tensor, ...]:
        return (self.means(),)

    def scores(self, features: Tensor) -> Tensor:
        (means,) = self.classifier(features.device)
        return -torch.cdist(features, means).square()


class Gaussian(Readout):
    """Class means and one shared covariance: linear discriminant analysis (Hastie et al. 2009, section 4.3).

    The score is mu_c^T S^-1 x - mu_c^T S^-1 mu_c / 2, the log density of class c up to a term without c. Class sizes
    do not enter: all classes are held equally likely. S = C + shrinkage (tr C / width) I, where the covariance within
    classes is C = (sum_i x_i x_i^T - sum_c n_c mu_c mu_c^T) / n.
    """

    def __init__(self, width: int, classes: int, shrinkage: float) -> None:
        super().__init__(classes, {"features": (classes, width), "squares": (width, width)})
        self.shrinkage = shrinkage

    def products(self, features: Tensor, targets: Tensor) -> Products:
        return {"features": (targets, features), "squares": (features, features)}

    def solve(self) -> tuple[Tensor, ...]:
        """Weights [width, classes] and biases [classes]."""
        means, count = self.means(), self.sums["counts"].sum().clamp(min=1)
        covariance = (self.sums["squares"] - self.sums["features"].T @ means) / count
        least = rounding(self.sums["squares"]) / float(count)
        ridge = max(self.shrinkage * float(covariance.trace()) / len(covariance), least)
        weights = ridge_solution(covariance, ridge, means.T)
        return weights, -(means.T * weights).sum(dim=0) / 2

    def scores(self, features: Tensor) -> Tensor:
        weights, biases = self.classifier(features.device)
        return features @ weights + biases


class RanPAC(Readout):
    """Ridge regression of one-hot labels on random features (McDonnell et al. 2023, RanPAC, algorithm 1).

    h = relu(x W) with W [width, projection] standard normal, drawn from ``seed`` and never stored. With G = sum h h^T
    and Q = sum h y^T over all rows, the score is h^T (G + ridge I)^-1 Q.

    Without a ``ridge`` it is chosen after each task, from 10^-8 to 10^8: the fit to four fifths of the rows (G_f, Q_f)
    with the least squared error on the held-out fifth (G_h, Q_h), which is tr(B^T G_h B) - 2 tr(B^T Q_h) plus a
    constant for weights B. The paper takes the current task's rows alone; here both shares are summed over all tasks,
    so that the order of tasks does not matter. A row is held out when the number of its active random features is
    divisible by five: its own content decides, so that workers need not agree on positions, and a last bit that
    differs between batch sizes hardly ever changes the share.
    """

    def __init__(self, width: int, classes: int, projection: int, ridge: float | None, seed: int) -> None:
        self.ridge = ridge
        self.shares = ("fit", "held") if ridge is None else ("fit",)
        grams = {f"{share}.gram": (projection, projection) for share in self.shares}
        super().__init__(classes, grams | {f"{share}.targets": (projection, classes) for share in self.shares})
        generator = torch.Generator().manual_seed(seed)
        self.projection = torch.randn(width, projection, generator=generator, dtype=torch.float64)

    def hidden(self, features: Tensor) -> Tensor:
        """Random features [n, projection]."""
        self.projection = self.projection.to(features.device)
        return (features @ self.projection).relu()

    def products(self, features: Tensor, targets: Tensor) -> Products:
        hidden = self.hidden(features)
        held = ((hidden > 0).sum(dim=1) % FOLDS == 0) & (self.ridge is None)
        found = {}
        for share, rows in zip(self.shares, (~held, held), strict=False):
            found[f"{share}.gram"] = hidden[rows], hidden[rows]
            found[f"{share}.targets"] = hidden[rows], targets[rows]
        return found

    def solve(self) -> tuple[Tensor, ...]:
        """Weights [projection, classes] from all rows."""
        ridge = self.best_ridge() if self.ridge is None else self.ridge
        return (ridge_solution(self.over_shares("gram"), ridge, self.over_shares("targets")),)

    def over_shares(self, kind: str) -> Tensor:
        return torch.stack([self.sums[f"{share}.{kind}"] for share in self.shares]).sum(dim=0)

    def best_ridge(self) -> float:
        """The ridge with the least held-out error; the largest of equal ones, as where no row is held out."""
        least = rounding(self.sums["fit.gram"])
        return min(sorted({max(ridge, least) for ridge in RIDGES}, reverse=True), key=self.held_out_error)

    def held_out_error(self, ridge: float) -> float:
        weights = ridge_solution(self.sums["fit.gram"], ridge, self.sums["fit.targets"])
        return float((weights * (self.sums["held.gram"] @ weights - 2 * self.sums["held.targets"])).sum())

    def scores(self, features: Tensor) -> Tensor:
        (weights,) = self.classifier(features.device)
        return self.hidden(features) @ weights


def rounding(squares: Tensor) -> float:
    """About the rounding error of a sum of squares [d, d], in any direction."""
    return len(squares) * torch.finfo(squares.dtype).eps * float(squares.trace())


def ridge_solution(matrix: Tensor, ridge: float, right: Tensor) -> Tensor:
    """(matrix + ridge I)^-1 right for a positive semidefinite matrix.

    A ridge below the rounding error is raised to it, so that fewer rows than dimensions do no harm; where all is
    zero, it is 1.
    """
    ridge = max(ridge, rounding(matrix)) or 1.0
    factor = torch.linalg.cholesky(matrix + ridge * torch.eye(len(matrix), dtype=matrix.dtype))
    return torch.cholesky_solve(right, factor)


def make_readout(config: HeadConfig, width: int, classes: int, seed: int) -> Readout | None:
    """The closed-form classifier of ``config``; None where the trained head classifies."""
    if config.kind == "prototype":
        return Prototype(width, classes)
    if config.kind in ("auto", "gaussian"):  # auto: the one that docs/default_heads.md found best
        return Gaussian(width, classes, config.shrinkage)
    if config.kind == "ranpac":
        return RanPAC(width, classes, config.projection, config.ridge, seed)
    return None
