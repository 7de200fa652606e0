"""What workers keep of tasks: merging, means, and gradients of the same batch at other adapters."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from methods.levels import Levels
from methods.treelora.memory import Memory
from methods.treelora.regulariser import RegulariserConfig


class Network(nn.Module):
    """Two tanh layers whose frozen weights have a low-rank product beside them, and a batch of its own."""

    def __init__(self, rank: int = 2) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def drawn(*shape: int) -> Tensor:
            return 0.5 * torch.randn(shape, generator=generator)

        self.frozen = [drawn(6, 5), drawn(3, 6)]
        self.factors = nn.ParameterDict(
            {
                "0_lora_A": nn.Parameter(drawn(rank, 5)),
                "0_lora_B": nn.Parameter(drawn(6, rank)),
                "1_lora_A": nn.Parameter(drawn(rank, 6)),
                "1_lora_B": nn.Parameter(drawn(3, rank)),
            }
        )
        self.rows, self.labels = drawn(32, 5) * 4, torch.randint(3, (32,), generator=generator)

    def loss(self) -> Tensor:
        hidden = self.rows
        for layer, weight in enumerate(self.frozen):
            whole = weight + self.factors[f"{layer}_lora_B"] @ self.factors[f"{layer}_lora_A"]
            hidden = torch.tanh(hidden @ whole.to(hidden.dtype).T)
        return functional.cross_entropy(hidden * 3, self.labels)

    def again(self, levels: Levels) -> Tensor:
        """The gradient [levels, width] at the present values; the gradients in place stay."""
        kept = [p.grad for p in self.parameters()]
        self.zero_grad()
        self.loss().backward()
        found = levels.gradients()
        for parameter, gradient in zip(self.parameters(), kept, strict=True):
            parameter.grad = gradient
        return found


def made() -> tuple[Network, Levels, Memory]:
    network = Network()
    named = [(f"{name}.weight", parameter) for name, parameter in network.factors.items()]
    levels = Levels(named, lambda name: int(name[0]), lambda values: values)
    return network, levels, Memory(levels, bounded=False)


def stored_adapter(levels: Levels, seed: int, distance: float = 0.3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    moved = distance * torch.randn(levels.parameters().shape, generator=generator) * (levels.coordinates() >= 0)
    return levels.parameters() + moved


def exact(network: Network, levels: Levels, stored: Tensor) -> tuple[Tensor, Tensor]:
    """|grad(now) - grad(stored)|_1 and its gradient, by automatic differentiation twice, in float64."""
    now = levels.parameters()
    levels.set_parameters(stored)
    away = torch.autograd.grad(network.double().loss(), list(network.factors.values()))
    levels.set_parameters(now)
    leaves = list(network.factors.values())
    here = torch.autograd.grad(network.loss(), leaves, create_graph=True)
    value = torch.stack([(g - a).abs().sum() for g, a in zip(here, away, strict=True)]).sum()
    value.backward()
    found = levels.gradients()
    network.float().zero_grad()
    return value.detach(), found


@pytest.mark.parametrize("scale", ["raw", "match_loss"])
@pytest.mark.parametrize("seed", range(3))
def test_l1_hvp_is_the_double_backward_pass_to_one_percent(scale: str, seed: int) -> None:
    network, levels, memory = made()
    stored = stored_adapter(levels, seed)
    memory.add(torch.zeros_like(stored), stored)
    value, expected = exact(network, levels, stored)
    before, loss = levels.parameters(), torch.tensor(1.7)
    edited = torch.ones_like(stored)
    config = RegulariserConfig(kind="l1_hvp", strength=0.2, scale=scale)
    weighted = memory.edit_by_gradients(config, edited, [0, 0], loss, 0.5, lambda: network.again(levels))
    factor = 0.1 * float(loss / value if scale == "match_loss" else 1)
    error = (edited - 1 - factor * expected).norm() / (factor * expected).norm()
    assert expected.norm() > 0.1 and error < 1e-2
    assert float(weighted) == pytest.approx(factor * float(value), rel=1e-4)
    assert torch.equal(levels.parameters(), before)


def test_l1_hvp_at_the_stored_adapter_itself_edits_nothing() -> None:
    network, levels, memory = made()
    memory.add(levels.parameters(), levels.parameters())
    edited = torch.ones_like(levels.parameters())
    config = RegulariserConfig(kind="l1_hvp")
    memory.edit_by_gradients(config, edited, [0, 0], torch.tensor(1.0), 1.0, lambda: network.again(levels))
    assert (edited == 1).all()


def test_a_gradient_elsewhere_leaves_the_adapter_and_its_gradient() -> None:
    network, levels, memory = made()
    stored = stored_adapter(levels, 0)
    memory.add(torch.zeros_like(stored), stored)
    network.loss().backward()
    before, gradients = levels.parameters(), levels.gradients()
    found = memory.gradient_at([0, 0], lambda: network.again(levels))
    assert torch.equal(levels.parameters(), before)
    assert torch.equal(levels.gradients(), gradients)
    levels.set_parameters(stored)
    assert torch.equal(found, network.again(levels))
    assert not torch.equal(found, gradients)


def full(value: float) -> Tensor:
    return torch.full((2, 22), value)


def test_every_level_has_the_row_of_its_own_entry() -> None:
    _, _, memory = made()
    for value in (1.0, 2.0, 3.0):
        memory.add(full(value), full(10 * value))
    assert memory.target([2, 0])[:, 0].tolist() == [3, 1]
    assert memory.adapter([1, 1])[:, 0].tolist() == [20, 20]
    assert len(memory) == 3


def test_entries_that_become_one_count_every_task_alike() -> None:
    _, _, memory = made()
    for value in (0.0, 5.0, 3.0, 9.0):
        memory.add(full(value), None)
    memory.join([0, 2])  # 0 and 3
    memory.join([])
    memory.join([0, 2])  # these and 9
    assert [float(t[0, 0]) for t in memory.targets] == [4.0, 5.0]
    assert memory.counts == [3, 1]
    assert memory.adapters == []


def scaled(levels: Levels, factor: float) -> Tensor:
    """The adapter of the network with ``factor`` times its products."""
    base = levels.parameters()
    return torch.where(levels.named("lora_A."), factor * base, base)


def products(levels: Levels, adapter: Tensor) -> list[Tensor]:
    levels.set_parameters(adapter)
    values = {part.name: part.parameter.detach().clone() for level in levels.slices for part in level}
    return [values[f"{layer}_lora_B.weight"] @ values[f"{layer}_lora_A.weight"] for layer in (0, 1)]


def assert_products(levels: Levels, adapter: Tensor, expected: Tensor) -> None:
    for found, wanted in zip(products(levels, adapter), products(levels, expected), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_merged_adapters_have_the_mean_product() -> None:
    """Products along one direction: their mean has the old rank, so nothing is lost."""
    _, levels, memory = made()
    for factor in (1.0, 2.0, 6.0):
        memory.add(levels.parameters(), scaled(levels, factor))
    expected = scaled(levels, 3.0)
    memory.join([0, 1])
    memory.join([0, 1])
    assert len(memory.adapters) == 1 and memory.counts == [3]
    assert_products(levels, memory.adapters[0], expected)


@pytest.mark.parametrize("merged", [[], [0, 1], [0, 2], [1, 2]])
def test_a_mean_adapter_counts_every_task_alike_also_after_merging(merged: list[int]) -> None:
    """Merging changes the factors of a product, so that a mean of factors would be something else."""
    _, levels, memory = made()
    for factor in (1.0, 2.0, 6.0):
        memory.add(levels.parameters(), scaled(levels, factor))
    expected = scaled(levels, 3.0)
    memory.join(merged)
    assert_products(levels, memory.mean_adapter(over_tree=False), expected)


def test_a_mean_adapter_may_follow_the_tree() -> None:
    _, levels, memory = made()
    for factor in (1.0, 2.0, 6.0):
        memory.add(levels.parameters(), scaled(levels, factor))
    memory.weights = [0.25, 0.25, 0.5]
    assert_products(levels, memory.mean_adapter(over_tree=True), scaled(levels, 3.75))


@pytest.mark.parametrize("bounded", [False, True])
def test_a_memory_comes_back_from_its_state(bounded: bool) -> None:
    _, levels, memory = made()
    for value in (1.0, 2.0):
        memory.add(full(value), full(-value))
    again = Memory(levels, bounded)
    memory.bounded = bounded
    again.counts = list(memory.counts)
    again.load_state_dict(memory.state_dict())
    assert [float(t[0, 0]) for t in again.targets + again.adapters] == [1, 2, -1, -2]
