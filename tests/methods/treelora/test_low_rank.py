"""The mean of low-rank adapters: the best approximation of the mean of their products."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from benchmarks.models.config import BackboneConfig
from methods.levels import Levels
from methods.lora import LoRA, LoRAConfig
from methods.treelora.low_rank import mean_of_products
from tests.support.models import classifier


def made(pairs: list[tuple[int, int]], rank: int) -> Levels:
    """One level of pairs named as peft names them, A before B; (outputs, inputs) of each."""
    named = []
    for number, (outputs, inputs) in enumerate(pairs):
        for factor, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
            named.append((f"blocks.0.{number}.lora_{factor}.default.weight", nn.Parameter(torch.zeros(shape))))
    return Levels(named, lambda _: 0, lambda values: values)


def random_matrix(levels: Levels, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return levels.local([torch.randn(size, generator=generator) for size in levels.sizes])


def products(levels: Levels, matrix: Tensor) -> list[Tensor]:
    """B A of every pair, dense."""
    levels.set_parameters(matrix)
    found = {part.name: part.parameter.detach().clone() for level in levels.slices for part in level}
    pairs = [(name.replace("lora_A.", "lora_B."), name) for name in found if "lora_A." in name]
    assert pairs and all("lora_B." in first for first, _ in pairs)
    return [found[first] @ found[second] for first, second in pairs]


def best(dense: Tensor, rank: int) -> Tensor:
    u, values, v = torch.linalg.svd(dense, full_matrices=False)
    return (u[:, :rank] * values[:rank]) @ v[:rank]


@pytest.mark.parametrize("pairs", [[(9, 7)], [(9, 7), (5, 12), (20, 30)]])
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_result_is_the_best_approximation_of_the_mean_product(
    pairs: list[tuple[int, int]], share: float, rank: int
) -> None:
    levels = made(pairs, rank)
    one, other = random_matrix(levels, 1), random_matrix(levels, 2)
    found = mean_of_products(levels, [one, other], [1 - share, share])
    assert found.shape == one.shape
    sides = zip(products(levels, one), products(levels, other), products(levels, found), strict=True)
    for left, right, product in sides:
        torch.testing.assert_close(product, best((1 - share) * left + share * right, rank), rtol=1e-4, atol=1e-5)


def test_many_adapters_are_weighted_together() -> None:
    """In one step: pairs one after another would each lose something."""
    levels = made([(9, 7), (20, 30)], 2)
    adapters, shares = [random_matrix(levels, seed) for seed in range(6)], [0.3, 0.1, 0.2, 0.1, 0.1, 0.2]
    found = products(levels, mean_of_products(levels, adapters, shares))
    dense = zip(*(products(levels, adapter) for adapter in adapters), strict=True)
    for product, sides in zip(found, dense, strict=True):
        expected = sum((share * side for share, side in zip(shares, sides, strict=True)), torch.zeros(()))
        torch.testing.assert_close(product, best(expected, 2), rtol=1e-4, atol=1e-5)


def test_equal_adapters_keep_their_products() -> None:
    levels = made([(9, 7), (5, 12)], 3)
    one = random_matrix(levels, 1)
    found = mean_of_products(levels, [one, one.clone(), one.clone()], [0.6, 0.1, 0.3])
    for product, expected in zip(products(levels, found), products(levels, one), strict=True):
        torch.testing.assert_close(product, expected, rtol=1e-4, atol=1e-5)


def test_factors_of_one_product_that_look_different_are_equal() -> None:
    """The mean of the factors would be zero."""
    levels = made([(9, 7)], 2)
    one = random_matrix(levels, 1)
    found = mean_of_products(levels, [one, -one], [0.5, 0.5])
    torch.testing.assert_close(products(levels, found), products(levels, one), rtol=1e-4, atol=1e-5)


def test_zero_factors_stay_finite() -> None:
    levels = made([(9, 7)], 2)
    fresh = random_matrix(levels, 1)
    fresh[0, 14:] = 0  # B of a new adapter
    found = mean_of_products(levels, [fresh, torch.zeros_like(fresh)], [0.5, 0.5])
    assert found.isfinite().all()
    assert products(levels, found)[0].abs().max() < 1e-6


@pytest.mark.parametrize("shape", [(2, 9), (9, 2), (2, 2)])
def test_a_rank_above_the_width_of_a_module_is_padded(shape: tuple[int, int]) -> None:
    levels = made([shape, (9, 7)], 4)
    one, other = random_matrix(levels, 1), random_matrix(levels, 2)
    found = products(levels, mean_of_products(levels, [one, other], [0.5, 0.5]))
    sides = zip(products(levels, one), products(levels, other), strict=True)
    for product, (left, right) in zip(found, sides, strict=True):
        torch.testing.assert_close(product, best((left + right) / 2, 4), rtol=1e-4, atol=1e-5)


def test_factors_are_paired_as_peft_names_them() -> None:
    """The levels of a micro ViT with two adapters a block and 12 pairs in all."""
    model = classifier(BackboneConfig(), 3)
    LoRA(LoRAConfig(rank=2)).adapt(model.backbone, ("qkv", "fc1"), [f"blocks.{i}" for i in range(6)], 1)
    levels = Levels(model.adapters(), model.level_of, lambda values: values)
    one, other = random_matrix(levels, 1), random_matrix(levels, 2)
    found = products(levels, mean_of_products(levels, [one, other], [0.75, 0.25]))
    assert len(found) == 12
    sides = zip(products(levels, one), products(levels, other), strict=True)
    for product, (left, right) in zip(found, sides, strict=True):
        torch.testing.assert_close(product, best(0.75 * left + 0.25 * right, 2), rtol=1e-3, atol=1e-3)
