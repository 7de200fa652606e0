"""Closed-form heads: the formulas, and that order, tasks and workers change nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor
from torch.nn import functional

from benchmarks.models.heads import HeadConfig
from benchmarks.models.readouts import RIDGES, RanPAC, Readout, make_readout

WIDTH, CLASSES = 8, 5
KINDS: dict[str, dict[str, object]] = {
    "prototype": {"kind": "prototype"},
    "gaussian": {"kind": "gaussian"},
    "ranpac": {"kind": "ranpac", "projection": 60},
    "ranpac with a ridge": {"kind": "ranpac", "projection": 60, "ridge": 10.0},
}
every_kind = pytest.mark.parametrize("kind", KINDS)
Rows = tuple[Tensor, Tensor]


def make(kind: str, width: int = WIDTH, classes: int = CLASSES, seed: int = 0, **settings: object) -> Readout:
    readout = make_readout(HeadConfig.model_validate(KINDS[kind] | settings), width, classes, seed)
    assert readout is not None
    return readout


def mixture(count: int, seed: int = 0, width: int = WIDTH, classes: int = CLASSES) -> Rows:
    """Correlated Gaussian classes of equal size in random order; the classes' means depend on nothing."""
    fixed, drawn = torch.Generator().manual_seed(99), torch.Generator().manual_seed(seed)
    means = 2 * torch.randn(classes, width, generator=fixed, dtype=torch.float64)
    mixing = torch.randn(width, width, generator=fixed, dtype=torch.float64)
    labels = torch.arange(count)[torch.randperm(count, generator=drawn)] % classes
    return means[labels] + torch.randn(count, width, generator=drawn, dtype=torch.float64) @ mixing, labels


def fitted(readout: Readout, *tasks: Rows, batch: int = 64) -> Readout:
    """One task after another, in batches, in one process."""
    for features, labels in tasks:
        for x, y in zip(features.split(batch), labels.split(batch), strict=True):
            readout.collect(x, y)
        readout.finish(lambda values: values)
    return readout


def scores(readout: Readout, features: Tensor) -> Tensor:
    return readout.scores(features.double())


def close(one: Readout, other: Readout, tolerance: float = 1e-10) -> bool:
    """The same sums and scores, relative to their size."""
    x = mixture(50, seed=7)[0]
    pairs = [(one.sums[name], other.sums[name]) for name in one.sums] + [(scores(one, x), scores(other, x))]
    return all(float((a - b).abs().max()) <= tolerance * float(1 + a.abs().max()) for a, b in pairs)


def accuracy(readout: Readout, rows: Rows) -> float:
    return float((readout.logits(rows[0]).argmax(1) == rows[1]).double().mean())


def finish_together(ranks: list[Readout]) -> None:
    """End a task on workers that are simulated: ``total`` adds the pending sums of all."""
    names = list(ranks[0].sums)
    sums = {n: torch.stack([r.pending.get(n, torch.zeros_like(r.sums[n])) for r in ranks]).sum(0) for n in names}
    for rank in ranks:
        asked = iter(names)
        rank.finish(lambda values, asked=asked: sums[next(asked)].clone())


# The formulas


def test_a_prototype_scores_by_the_squared_distance_to_class_means() -> None:
    x, y = mixture(200)
    means = torch.stack([x[y == c].mean(0) for c in range(CLASSES)])
    expected = -((x[:, None] - means[None]) ** 2).sum(-1)
    assert torch.allclose(scores(fitted(make("prototype"), (x, y)), x), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_the_gaussian_is_what_numpy_computes_from_centred_rows(shift: float) -> None:
    """A shift by a thousand costs about six digits of sixteen."""
    x, y = mixture(203)
    x = x + shift
    rows, labels = x.numpy(), y.numpy()
    means = numpy.stack([rows[labels == c].mean(0) for c in range(CLASSES)])
    centred = rows - means[labels]
    covariance = centred.T @ centred / len(rows)
    inverse = numpy.linalg.inv(covariance + 0.1 * (centred**2).mean() * numpy.eye(WIDTH))
    expected = rows @ inverse @ means.T - 0.5 * numpy.einsum("ci,ij,cj->c", means, inverse, means)
    expected -= expected[:, :1]
    found = scores(fitted(make("gaussian"), (x, y)), x)
    assert numpy.allclose((found - found[:, :1]).numpy(), expected, rtol=0, atol=1e-8 if shift == 0 else 1e-3)


def test_the_gaussian_agrees_with_scikit_learn() -> None:
    """scikit-learn's shrinkage s weighs (1 - s) C + s (tr C / d) I, which is ours for s / (1 - s), times 1 - s."""
    x, y = mixture(200)
    s = 0.1 / 1.1
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=s, priors=[1 / CLASSES] * CLASSES).fit(x, y)
    expected = (theirs.decision_function(x) + numpy.log(CLASSES)) * (1 - s)
    assert numpy.allclose(scores(fitted(make("gaussian"), (x, y)), x).numpy(), expected, rtol=0, atol=1e-8)


def test_shrinkage_is_a_setting() -> None:
    x, y = mixture(200)
    one, other = (scores(fitted(make("gaussian", shrinkage=s), (x, y)), x) for s in (0.1, 1.0))
    assert not torch.allclose(one, other, rtol=0.01)


def test_class_sizes_do_not_enter_the_gaussian() -> None:
    x = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]]).repeat_interleave(torch.tensor([9, 9, 1, 1]), dim=0)
    readout = fitted(make("gaussian", width=1, classes=2), (x, (x[:, 0] > 0).long()))
    assert float(readout.logits(torch.zeros(1, 1)).diff()) == pytest.approx(0, abs=1e-6)


def test_ranpac_is_ridge_regression_of_one_hot_labels_on_random_features() -> None:
    x, y = mixture(200)
    readout = make("ranpac with a ridge", seed=3)
    draw = torch.randn(WIDTH, 60, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    h, targets = (x @ draw).relu(), functional.one_hot(y, CLASSES).double()
    stacked = torch.cat([h, 10**0.5 * torch.eye(60, dtype=torch.float64)])
    weights = torch.linalg.lstsq(stacked, torch.cat([targets, torch.zeros(60, CLASSES)])).solution
    assert torch.allclose(scores(fitted(readout, (x, y)), x), h @ weights, rtol=0, atol=1e-8)


def shares(readout: RanPAC, rows: Rows) -> tuple[Rows, Rows]:
    """Rows that ``readout`` fits to, and holds out."""
    held = (readout.hidden(rows[0].double()) > 0).sum(1) % 5 == 0
    return (rows[0][~held], rows[1][~held]), (rows[0][held], rows[1][held])


def test_ranpac_chooses_the_ridge_with_the_least_error_on_held_out_rows() -> None:
    rows = mixture(400)
    readout = fitted(make("ranpac"), rows)
    assert isinstance(readout, RanPAC)
    fit, held = shares(readout, rows)
    assert 0.15 < len(held[1]) / 400 < 0.25, "about a fifth"
    targets = functional.one_hot(held[1], CLASSES)
    errors = {}
    for ridge in RIDGES:
        direct = scores(fitted(make("ranpac with a ridge", ridge=ridge), fit), held[0])
        errors[ridge] = float(((direct - targets) ** 2).sum())
        assert readout.held_out_error(ridge) + len(held[1]) == pytest.approx(errors[ridge], rel=1e-6)
    best = min(errors, key=errors.__getitem__)
    assert readout.best_ridge() == best and 1e-8 < best < 1e8
    x = mixture(50, seed=7)[0]
    all_rows = fitted(make("ranpac with a ridge", ridge=best), rows)
    assert torch.allclose(scores(readout, x), scores(all_rows, x), rtol=0, atol=1e-8), "then it learns from all rows"


def test_the_projection_depends_on_the_seed_alone() -> None:
    rows = mixture(200)
    torch.manual_seed(1)
    one = fitted(make("ranpac", seed=5), rows)
    torch.manual_seed(2)
    same, other = fitted(make("ranpac", seed=5), rows), fitted(make("ranpac", seed=6), rows)
    assert torch.equal(one.logits(rows[0]), same.logits(rows[0]))
    assert not torch.allclose(one.logits(rows[0]), other.logits(rows[0]))


# What they are good for


def test_the_gaussian_recovers_a_planted_mixture_and_the_prototype_does_not() -> None:
    """The Bayes classifier of the mixture knows means and covariance."""
    test = mixture(4000, seed=1)
    fixed = torch.Generator().manual_seed(99)
    means = 2 * torch.randn(CLASSES, WIDTH, generator=fixed, dtype=torch.float64)
    mixing = torch.randn(WIDTH, WIDTH, generator=fixed, dtype=torch.float64)
    white = torch.linalg.inv(mixing)
    bayes = float((torch.cdist(test[0] @ white, means @ white).argmin(1) == test[1]).double().mean())
    gaussian = accuracy(fitted(make("gaussian", shrinkage=1e-6), mixture(2000)), test)
    assert gaussian > bayes - 0.01
    assert accuracy(fitted(make("prototype"), mixture(2000)), test) < bayes - 0.1


@pytest.mark.parametrize("kind", ["ranpac", "ranpac with a ridge"])
def test_ranpac_solves_what_is_not_linearly_separable(kind: str) -> None:
    """The sign of a product: both classes have the same mean."""
    x = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] * x[:, 1] > 0).long()
    train, test = (x[:1500], y[:1500]), (x[1500:], y[1500:])
    assert accuracy(fitted(make(kind, 2, 2, projection=200), train), test) > 0.9
    assert all(accuracy(fitted(make(k, 2, 2), train), test) < 0.7 for k in ("prototype", "gaussian"))


# Sums


def by_class(rows: Rows, *groups: Iterable[int]) -> list[Rows]:
    """Rows as tasks of some classes each."""
    chosen = [torch.isin(rows[1], torch.tensor(list(group))) for group in groups]
    return [(rows[0][c], rows[1][c]) for c in chosen]


@every_kind
def test_three_workers_learn_what_one_learns(kind: str) -> None:
    """The third has no row of the second task; it calls ``finish`` all the same."""
    ranks, alone = [make(kind) for _ in range(3)], make(kind)
    for number, (x, y) in enumerate(by_class(mixture(300), (0, 1), (2, 3, 4))):
        fitted(alone, (x, y))
        for index, rank in enumerate(ranks[: 3 - number]):
            rank.collect(x[index :: 3 - number], y[index :: 3 - number])
        finish_together(ranks)
    assert all(close(alone, rank) for rank in ranks)
    assert all(torch.equal(r.logits(x), ranks[0].logits(x)) for r in ranks)


@every_kind
def test_a_batch_without_rows_adds_nothing(kind: str) -> None:
    rows = mixture(100)
    readout = fitted(make(kind), rows)
    before = readout.state_dict()
    fitted(readout, (torch.empty(0, WIDTH), torch.empty(0, dtype=torch.long)))
    assert all(torch.equal(before[name], values) for name, values in readout.state_dict().items())


@every_kind
@pytest.mark.parametrize("change", ["tasks", "rows", "batches", "at once", "domains"])
def test_neither_order_nor_division_of_rows_matters(kind: str, change: str) -> None:
    x, y = mixture(300)
    first, second = by_class((x, y), (0, 1), (2, 3, 4))
    changes: dict[str, Callable[[Readout], Readout]] = {
        "tasks": lambda new: fitted(new, second, first),
        "rows": lambda new: fitted(new, (first[0].flip(0), first[1].flip(0)), second),
        "batches": lambda new: fitted(new, first, second, batch=7),
        "at once": lambda new: fitted(new, (x, y)),
        "domains": lambda new: fitted(new, (x[:90], y[:90]), (x[90:], y[90:])),
    }
    assert close(fitted(make(kind), first, second), changes[change](make(kind)))


@every_kind
def test_a_class_that_comes_back_is_updated(kind: str) -> None:
    x, y = mixture(300)
    readout = fitted(make(kind), (x[:150], y[:150]))
    before = scores(readout, x)
    assert not torch.allclose(before, scores(fitted(readout, (x[150:], y[150:])), x))


@every_kind
def test_the_state_round_trips_through_safetensors_to_the_bit(kind: str, tmp_path: Path) -> None:
    x, y = mixture(200)
    readout = fitted(make(kind), (x, y))
    save_file(readout.state_dict(), tmp_path / "head.safetensors")
    loaded = fitted(make(kind), mixture(100, seed=4))
    loaded.load_state_dict(load_file(tmp_path / "head.safetensors"))
    assert torch.equal(loaded.logits(x), readout.logits(x))
    more = mixture(100, seed=5)
    assert torch.equal(fitted(loaded, more).logits(x), fitted(readout, more).logits(x))


def test_the_state_of_another_head_is_refused() -> None:
    state = make("gaussian").state_dict()
    for other in (make("prototype"), make("gaussian", classes=4), make("ranpac")):
        with pytest.raises(ValueError, match="the checkpoint has another head's sums"):
            other.load_state_dict(state)


@every_kind
def test_a_state_is_not_changed_by_what_is_learned_later(kind: str) -> None:
    readout = fitted(make(kind), mixture(100))
    state = readout.state_dict()
    kept = {name: values.clone() for name, values in state.items()}
    fitted(readout, mixture(100, seed=1))
    assert all(torch.equal(state[name], kept[name]) for name in kept)


# Answers


@every_kind
def test_classes_never_seen_never_win(kind: str) -> None:
    x, y = mixture(200)
    readout = fitted(make(kind), *by_class((x, y), (1, 3)))
    logits = readout.logits(1000 * torch.randn(500, WIDTH))
    assert logits[:, [0, 2, 4]].eq(-torch.inf).all() and logits[:, [1, 3]].isfinite().all()
    assert set(logits.argmax(1).tolist()) == {1, 3}
    assert make(kind).logits(x).eq(-torch.inf).all(), "before the first task there is no class"


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_features_may_have_any_precision_and_need_gradients(kind: str, dtype: torch.dtype) -> None:
    x, y = mixture(200)
    features = x.to(dtype).requires_grad_()
    logits = fitted(make(kind), (features, y)).logits(features)
    assert logits.dtype == torch.float32 and not logits.requires_grad
    with torch.inference_mode():
        same = fitted(make(kind), (x.to(dtype), y))
    assert torch.equal(same.logits(x.to(dtype)), logits)


@every_kind
def test_fewer_rows_than_dimensions_are_enough(kind: str) -> None:
    x, y = mixture(10, width=40)
    readout = fitted(make(kind, 40, ridge=1e-8) if kind == "ranpac with a ridge" else make(kind, 40), (x, y))
    assert readout.logits(x).isfinite().all() and accuracy(readout, (x, y)) == 1


@every_kind
def test_a_class_may_have_a_single_row(kind: str) -> None:
    """Regression gives a rare class low scores, the others find it."""
    x, y = mixture(200)
    keep = (y != 2) | ((y == 2).cumsum(0) == 1)
    readout = fitted(make(kind), (x[keep], y[keep]))
    assert readout.logits(x).isfinite().all()
    if kind in ("prototype", "gaussian"):
        assert int(readout.logits(x[keep & (y == 2)]).argmax()) == 2


@pytest.mark.parametrize("kind", ["gaussian", "prototype"])
def test_one_row_a_class_gives_the_nearest_row(kind: str) -> None:
    x, y = mixture(CLASSES)
    near = x + 0.01 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    assert accuracy(fitted(make(kind), (x, y)), (near, y)) == 1


@every_kind
def test_rows_of_zeros_do_no_harm(kind: str) -> None:
    readout = fitted(make(kind), (torch.zeros(10, WIDTH), torch.arange(10) % CLASSES))
    assert readout.logits(torch.ones(3, WIDTH)).isfinite().all()


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_the_trained_heads_have_no_closed_form(kind: str) -> None:
    assert make_readout(HeadConfig.model_validate({"kind": kind}), WIDTH, CLASSES, 0) is None
