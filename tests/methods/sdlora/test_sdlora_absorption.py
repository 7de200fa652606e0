"""SD-LoRA-KD: a direction that the old ones span is given to them, on planted directions of known residual."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from methods.stacked.method import Pairs
from tests.support.sdlora_model import BLOCKS, PROJECTIONS, RANK, TASKS, WIDTH, Run, distance

SHARED = RANK - 1  # rows of A that directions share; the last one is left for noise
COMBINATION = (0.7, -1.6)
MAGNITUDES = (1.3, 0.6, 1.7)
every_scope = pytest.mark.parametrize("scope", ["joint", "per_projection"])


def factors(seed: int) -> Tensor:
    return torch.randn(BLOCKS, 2, WIDTH, SHARED, generator=torch.Generator().manual_seed(seed))


def orthonormal() -> Tensor:
    """A of every layer: rows that are orthonormal, [P, RANK, in]."""
    return torch.linalg.qr(torch.randn(WIDTH, RANK, generator=torch.Generator().manual_seed(0)))[0].T.expand(2, -1, -1)


def directions(b: Tensor, noise: Tensor | float = 0.0) -> Pairs:
    """Pairs with the shared rows, of ``b`` [blocks, P, width, shared], and noise of these lengths on the last row."""
    ends = torch.randn(BLOCKS, 2, WIDTH, 1, generator=torch.Generator().manual_seed(8))
    ends = noise * ends / ends.norm(dim=2, keepdim=True)
    return [(orthonormal(), torch.cat([own, end], 2)) for own, end in zip(b, ends, strict=True)]


OLD = [factors(1), factors(2)]
COMBINED = COMBINATION[0] * OLD[0] + COMBINATION[1] * OLD[1]


def planted(noise: Tensor | float = 0.0, norm: str = "joint", **absorption: Any) -> Run:
    """Two old directions and a third one that is ready to be ended: their combination and noise."""
    run = Run(variant="kd", norm=norm, absorption={"threshold": 0.0} | absorption)
    for task, b in enumerate(OLD):
        run.plant(task, directions(b), MAGNITUDES[task])
        run.method.end_task()
    assert len(run.method.directions) == 2, "neither the first nor an independent one is absorbed"
    run.plant(2, directions(COMBINED, noise), MAGNITUDES[2])
    return run


def share(noise: float, b: Tensor) -> float:
    """Squared length of noise in every projection over that of the whole direction."""
    return PROJECTIONS * noise**2 / (PROJECTIONS * noise**2 + float(b.square().sum()))


# --- the threshold ---


@pytest.mark.parametrize("residual", ["relative", "fro", "fro_sq"])
@pytest.mark.parametrize("norm", ["joint", "product_fro", "factor_fro"])
@every_scope
def test_a_direction_is_absorbed_up_to_the_threshold(residual: str, norm: str, scope: str) -> None:
    """The threshold a little above and below a residual that is computed from dense matrices."""
    noise = 0.8
    settings: dict[str, Any] = {"residual": residual, "scope": scope}
    expected = dense_residual(planted(noise, norm, **settings), norm, residual, scope)
    for factor, absorbed in ((1.001, True), (0.999, False)):
        run = planted(noise, norm, threshold=factor * expected, **settings)
        run.method.end_task()
        assert run.method.residuals[-1] == pytest.approx(expected, rel=1e-4)
        some = len(run.method.directions) == 2
        assert some == absorbed and run.method.absorbed == ([2] if absorbed else [])
        assert run.method.report()["residuals"] == run.method.residuals


def dense_residual(run: Run, norm: str, residual: str, scope: str) -> float:
    """The largest residual over the fits, by least squares on dense normalised matrices."""
    rows = [normalised(directions(b), norm) for b in OLD]
    new = normalised(run.pairs(), norm)
    joint = scope == "joint"
    old = torch.stack(rows, 1).transpose(0, 1).flatten(1)[None] if joint else torch.stack(rows, 1)
    new = new.flatten()[None] if joint else new
    solved = torch.linalg.lstsq(old.mT, new[..., None]).solution
    left = (new - (old.mT @ solved)[..., 0]).norm(dim=1)
    measures = {"relative": (left / new.norm(dim=1)) ** 2, "fro": left, "fro_sq": left**2}
    return float(measures[residual].max())


def normalised(pairs: Pairs, norm: str) -> Tensor:
    """Flat directions [Q, numbers] in float64."""
    a, b = (torch.cat([pair[place] for pair in pairs]).double() for place in (0, 1))
    flat = (b @ a).flatten(1)
    if norm == "joint":
        return flat / flat.norm()
    lengths = flat.norm(dim=1) if norm == "product_fro" else a.flatten(1).norm(dim=1) * b.flatten(1).norm(dim=1)
    return flat / lengths[:, None]


def test_the_relative_residual_is_the_share_that_is_noise() -> None:
    run = planted(0.5)
    run.method.end_task()
    assert run.method.residuals[-1] == pytest.approx(share(0.5, COMBINED), rel=1e-5)


@every_scope
def test_whatever_comes_after_the_first_is_absorbed_where_all_may_be_left(scope: str) -> None:
    run = Run(variant="kd", absorption={"threshold": 1.0, "scope": scope}).learn(range(TASKS))
    assert run.method.report()["ranks"] == [RANK]
    assert run.method.absorbed == list(range(1, TASKS)) and len(run.method.residuals) == TASKS - 1
    assert run.method.pair_parameters() == PROJECTIONS * 2 * WIDTH * RANK
    own = PROJECTIONS if scope == "per_projection" else 0
    assert run.method.stored_parameters() == run.method.pair_parameters() + 1 + own


# --- what is given ---


@every_scope
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_a_merge_loses_no_more_than_the_residual(scope: str, noise: float) -> None:
    """The update moves by the magnitude times what is left of the direction."""
    run = planted(noise, scope=scope, threshold=1e-2)
    before = run.updates()
    length = MAGNITUDES[2] * float(torch.stack([b.double() @ a.double() for a, b in run.pairs()]).norm())
    run.method.end_task()
    assert run.method.absorbed == [2]
    lost = float((run.updates() - before).norm())
    if noise:
        assert lost == pytest.approx(MAGNITUDES[2] * noise * PROJECTIONS**0.5, rel=1e-5)
        if scope == "joint":
            assert lost == pytest.approx(length * run.method.residuals[-1] ** 0.5, rel=1e-5)
    else:
        assert lost < 1e-5 * length


@every_scope
def test_the_printed_rule_moves_the_model_unless_the_magnitude_is_one(scope: str) -> None:
    """With norms of projections, for which equation 8 is written."""
    found = {}
    for magnitude in (1.0, 1.7):
        for merge in ("preserving", "literal"):
            run = planted(scope=scope, threshold=0.5, norm="product_fro", merge=merge)
            wholes = run.method.wholes()
            run.method.magnitudes(wholes)[2] = magnitude
            run.method.put(wholes)
            run.method.end_task()
            found[magnitude, merge] = run.updates()
    assert distance(found[1.0, "preserving"], found[1.0, "literal"]) < 1e-6
    assert distance(found[1.0, "literal"], found[1.7, "literal"]) < 1e-6
    assert distance(found[1.7, "literal"], found[1.7, "preserving"]) > 0.01


def test_with_norms_of_projections_a_merge_gives_what_the_next_task_would_have_begun_with() -> None:
    found = []
    for threshold in (0.5, 0.0):
        run = planted(0.1, norm="product_fro", scope="per_projection", threshold=threshold)
        run.method.end_task()
        run.begin(3)
        found.append(run.updates())
    assert 0 < distance(found[0], found[1]) < 0.02, "but for the noise"


def test_the_printed_rule_fails_to_preserve_a_joint_direction() -> None:
    run = planted(threshold=1e-6, merge="literal")
    before = run.updates()
    run.method.end_task()
    assert run.method.absorbed == [2] and distance(run.updates(), before) > 0.01


def test_the_old_magnitudes_grow_by_what_the_combination_says() -> None:
    run = planted(threshold=1e-6)
    before = run.magnitudes().double()
    norms = run.method.directions.norms[0]
    run.method.end_task()
    grown = run.magnitudes()[:2].double() - before[:2]
    expected = MAGNITUDES[2] * torch.tensor(COMBINATION) * norms
    assert torch.allclose(grown, expected, rtol=1e-4)
    assert torch.equal(run.magnitudes()[3:], before[3:].float())


def test_each_projection_decides_for_itself() -> None:
    """Noise in the second block's value alone: that one stores its direction, the others give theirs away."""
    noise = torch.zeros(BLOCKS, 2, 1, 1)
    noise[1, 1] = 4.0
    run = planted(noise, scope="per_projection", threshold=1e-3)
    before, old = run.updates(), run.stored()
    run.method.end_task()
    assert len(run.method.directions) == 3 and run.method.absorbed == []
    assert distance(run.updates(), before) < 1e-5
    fresh = {name: value[:, 2 * RANK :] for name, value in run.stored().items() if name.endswith("stored_A")}
    kept = torch.stack([value.abs().sum((1, 2)) > 0 for value in fresh.values()])
    assert kept.tolist() == [[False, False], [False, True]]
    products = run.method.directions.gram[:, 2]
    assert not products[:3].any() and products[3].all(), "zeros are stored where it was given away"
    offsets = run.method.directions.offsets
    assert bool((offsets[:3, :2] != 0).all()) and not offsets[3].any() and not offsets[:, 2].any()
    run.begin(3)
    assert distance(run.updates(), before) < 1e-5, "also once the norm divides it"
    assert torch.equal(run.stored()["blocks.0.qkv.stored_A"][:, : 2 * RANK], old["blocks.0.qkv.stored_A"])


@every_scope
def test_an_absorbed_direction_leaves_no_trace_in_the_next_task(scope: str) -> None:
    """Magnitudes, stored factors and Gram matrix stay those of two directions; the next one is the third."""
    run = planted(scope=scope, threshold=1e-6)
    gram, stored = run.method.directions.gram.clone(), run.stored()
    run.method.end_task()
    after = run.updates()
    assert torch.equal(run.method.directions.gram, gram)
    assert all(torch.equal(value, stored[name]) for name, value in run.stored().items())
    run.begin(3)
    assert run.magnitudes()[2] == 1.0 and distance(run.updates(), after) < 1e-6
    run.steps()
    run.method.end_task()
    assert len(run.method.directions) == 3 and run.method.report()["ranks"] == [RANK] * 3


def test_magnitudes_that_start_anew_forget_what_was_given() -> None:
    run = Run(variant="kd", alpha_at_task_start="reset", absorption={"threshold": 1.0}).learn(range(2))
    assert run.magnitudes()[0] != 1.0
    run.begin(2)
    assert torch.equal(run.magnitudes()[:2], torch.ones(2))
