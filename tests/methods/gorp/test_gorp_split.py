"""GORP on matrices whose rows two processes share: the same weights and spaces as in one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from methods.gorp.optimizer import GORP
from tests.support.pair import WORLD, Pair

SHAPES = {
    "right": (64, 48),
    "left": (48, 64),
    "lora": (4, 60),
    "uneven": (5, 60),
    "one row": (1, 40),
    "uneven right": (65, 32),
    "uneven left": (33, 60),
    "bias": (7,),
}
UNCOMPRESSED = ("lora", "uneven", "one row")
OPTIONS: dict[str, dict[str, Any]] = {
    "adam": {},
    "released": {"protect": "gradient", "summary": "first", "moments": "keep", "selection": "below"},
    "sgd": {"rule": "sgd", "lr": 0.05},
    "rows of A": {"side": "rows"},
}
every_options = pytest.mark.parametrize("options", list(OPTIONS))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradient(shape: tuple[int, ...], seed: int) -> Tensor:
    """Singular values that fall, so that bases do not hang on the last bit."""
    if len(shape) == 1:
        return random(*shape, seed=seed)
    least = min(shape)
    left, right = (torch.linalg.qr(random(size, least, seed=9 * seed + size)).Q for size in shape)
    return left * 1.5 ** -torch.arange(least) @ right.t()


def made(parameters: dict[str, nn.Parameter], **options: Any) -> GORP:
    """Left compression where ``side`` allows it."""
    if "side" in options:
        parameters = {name: p for name, p in parameters.items() if "left" not in name}
    compressed = [name for name in parameters if "right" in name or "left" in name]
    groups: list[dict[str, Any]] = [
        {"params": [parameters[name] for name in compressed], "names": compressed, "rank": 4}
    ]
    groups += [{"params": [parameters[name] for name in UNCOMPRESSED]}]
    groups += [{"params": [parameters["bias"]], "projected": False}]
    return GORP(groups, **{"lr": 0.01, "rank": None, "every": 3, **options})


def learn(optimizer: GORP, tasks: range, set_gradient: Callable[[nn.Parameter, Tensor], None]) -> None:
    for task in tasks:
        for number in range(4):
            for place, parameter in enumerate(optimizer.layouts):
                assert isinstance(parameter, nn.Parameter)
                set_gradient(parameter, gradient(tuple(parameter.shape), 1000 * task + 100 * place + number))
            optimizer.step()
        if task % 2 == 0:
            optimizer.end_task()


def observed(parameters: dict[str, nn.Parameter], optimizer: GORP) -> dict[str, Tensor]:
    """Whole weights, spaces and state."""
    found = {f"weight.{name}": whole(parameter) for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        if parameter in optimizer.layouts:
            state = optimizer.whole_state(parameter)
            found |= {f"state.{name}.{key}": value for key, value in state.items()}
            if name != "bias":
                found[f"space.{name}"] = optimizer.spaces[parameter]
    return {name: value.detach().clone().contiguous() for name, value in found.items()}


def whole(parameter: Tensor) -> Tensor:
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def start() -> dict[str, Tensor]:
    return {name: random(*shape, seed=number) for number, (name, shape) in enumerate(SHAPES.items())}


# --- the workers ---


class Counted:
    """The size of every exchange of this process, while it is entered."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.real = dist.all_reduce

    def __enter__(self) -> list[int]:
        def all_reduce(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.sizes.append(tensor.numel())
            return self.real(tensor, *args, **kwargs)

        dist.all_reduce = all_reduce
        return self.sizes

    def __exit__(self, *_: Any) -> None:
        dist.all_reduce = self.real


def worker(rank: int, folder: Path) -> None:
    mesh = init_device_mesh("cpu", (WORLD,))

    def shards(placement: Any = None) -> dict[str, nn.Parameter]:
        place = [placement or Shard(0)]
        return {name: nn.Parameter(distribute_tensor(value, mesh, place)) for name, value in start().items()}

    def split(parameter: nn.Parameter, value: Tensor) -> None:
        assert isinstance(parameter.data, DTensor)
        parameter.grad = distribute_tensor(value, mesh, parameter.data.placements)

    for name, options in OPTIONS.items():
        parameters = shards()
        optimizer = made(parameters, **options)
        learn(optimizer, range(4), split)
        save(observed(parameters, optimizer), folder / f"{name}-{rank}")
        resumed = resume(parameters, optimizer, options, shards())
        learn(optimizer, range(4, 6), split), learn(resumed[1], range(4, 6), split)
        save(observed(parameters, optimizer), folder / f"{name}-on-{rank}")
        save(observed(*resumed), folder / f"{name}-resumed-{rank}")
    save(exchanged(shards(), split), folder / f"exchanged-{rank}")
    save(replicated(shards(Replicate()), split), folder / f"replicated-{rank}")
    save(bad_on_one_rank(shards(), split, rank), folder / f"bad-{rank}")
    save(through_fsdp(mesh), folder / f"fsdp-{rank}")
    save({"messages": torch.tensor(list(messages(shards(), mesh)))}, folder / f"messages-{rank}")


def save(values: dict[str, Tensor], path: Path) -> None:
    save_file({name: value.detach().clone().contiguous() for name, value in values.items()}, path)


def resume(
    before: dict[str, nn.Parameter], optimizer: GORP, options: dict[str, Any], after: dict[str, nn.Parameter]
) -> tuple[dict[str, nn.Parameter], GORP]:
    """Fresh weights and a fresh optimiser with what was saved."""
    with torch.no_grad():
        for name, parameter in after.items():
            parameter.copy_(before[name])
    resumed = made(after, **options)
    for new, old in zip(resumed.layouts, optimizer.layouts, strict=True):
        resumed.load_whole_state(new, optimizer.whole_state(old))
    return after, resumed


def exchanged(parameters: dict[str, nn.Parameter], split: Callable[[nn.Parameter, Tensor], None]) -> dict[str, Tensor]:
    """Sizes of all that is exchanged for one compressed matrix at a time, and for LoRA's A in steps alone."""
    found = {}
    for name in ("right", "left", "lora"):
        optimizer = GORP([parameters[name]], rank=None if name == "lora" else 4, every=3)
        with Counted() as sizes:
            learn(optimizer, range(1 if name == "lora" else 0, 2 if name == "lora" else 3), split)
        found[name] = torch.tensor(sizes)
    return found


def replicated(parameters: dict[str, nn.Parameter], split: Callable[[nn.Parameter, Tensor], None]) -> dict[str, Tensor]:
    optimizer = made(parameters)
    with Counted() as sizes:
        learn(optimizer, range(4), split)
        found = observed(parameters, optimizer)
    return found | {"sizes": torch.tensor(sizes)}


def bad_on_one_rank(
    parameters: dict[str, nn.Parameter], split: Callable[[nn.Parameter, Tensor], None], rank: int
) -> dict[str, Tensor]:
    """The second worker's rows of two matrices are not finite, in a step with a refresh and in one without."""
    optimizer = made(parameters)
    for number in range(2):
        for place, parameter in enumerate(optimizer.layouts):
            assert isinstance(parameter, nn.Parameter)
            split(parameter, gradient(tuple(parameter.shape), 100 * place + number))
        for name in ("right", "left", "lora"):
            grad = parameters[name].grad
            assert isinstance(grad, DTensor)
            if rank == 1:
                grad.to_local()[0, 0] = float("nan")
        optimizer.step()
    return observed(parameters, optimizer) | {"skipped": torch.tensor(optimizer.skipped)}


def through_fsdp(mesh: Any) -> dict[str, Tensor]:
    """A module that FSDP2 shards, of which one layer has fewer rows than there are workers; each has half a batch."""
    module = layers()
    fully_shard(module, mesh=mesh)
    return trained(module, slice(dist.get_rank(), None, WORLD))


def layers() -> nn.Module:
    module = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 9), nn.Tanh(), nn.Linear(9, 1))
    for number, parameter in enumerate(module.parameters()):
        parameter.data = 0.3 * random(*parameter.shape, seed=number)
    return module


def trained(module: nn.Module, share: slice) -> dict[str, Tensor]:
    matrices = [(name, p) for name, p in module.named_parameters() if p.dim() == 2]
    others = [p for p in module.parameters() if p.dim() == 1]
    narrow = [p for name, p in matrices if p.shape[0] == 1]
    groups = [{"params": [p for name, p in matrices if p.shape[0] > 1]}, {"params": narrow, "rank": None}]
    optimizer = GORP([*groups, {"params": others, "projected": False}], lr=0.01, rank=3, every=4, rule="sgd")
    for task in range(3):
        for _ in range(6):
            optimizer.zero_grad()
            inputs, wanted = random(8, 12, seed=task)[share], random(8, 1, seed=10 + task)[share]
            (module(inputs) - wanted).square().mean().backward()
            optimizer.step()
        optimizer.end_task()
    return {name: whole(p) for name, p in module.named_parameters()} | {
        f"space.{name}": optimizer.spaces[p] @ optimizer.spaces[p].t()  # type: ignore[index]
        for name, p in module.named_parameters()
        if p.dim() == 2
    }


def messages(parameters: dict[str, nn.Parameter], mesh: Any) -> Any:
    """Whether what cannot be split is told."""
    sideways = nn.Parameter(distribute_tensor(random(8, 8), mesh, [Shard(1)]))
    for refused, options, message in (
        (sideways, {"rank": 2}, "Shard"),
        (parameters["right"], {"rank": 2, "refresh": "svd"}, "randomised"),
    ):
        try:
            GORP([refused], **options)
        except ValueError as told:
            yield message in str(told)
        else:
            yield False


# --- the tests ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pair: Pair) -> Path:
    """What two processes saw."""
    path = tmp_path_factory.mktemp("split")
    pair.run(worker, path)
    return path


def whole_gradient(parameter: nn.Parameter, value: Tensor) -> None:
    parameter.grad = value


def alone(tasks: range = range(4), **options: Any) -> dict[str, Tensor]:
    parameters = {name: nn.Parameter(value) for name, value in start().items()}
    optimizer = made(parameters, **options)
    learn(optimizer, tasks, whole_gradient)
    return observed(parameters, optimizer)


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@every_options
def test_split_matrices_learn_what_whole_ones_learn(folder: Path, options: str) -> None:
    expected = alone(**OPTIONS[options])
    views = [load_file(folder / f"{options}-{rank}") for rank in range(WORLD)]
    assert same(*views), "every rank sees the same"
    assert views[0].keys() == expected.keys()
    before = start()
    for name, value in expected.items():
        if name.startswith(("weight.", "space.")):
            torch.testing.assert_close(views[0][name], value, rtol=0, atol=1e-5, msg=name)
            moved = not name.startswith("weight.") or (value - before[name.removeprefix("weight.")]).abs().max() > 1e-2
            assert moved or "left" in name, f"{name} has to move for this to show anything"


@every_options
def test_whole_state_is_that_of_one_process(folder: Path, options: str) -> None:
    expected = alone(**OPTIONS[options])
    found = load_file(folder / f"{options}-0")
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        assert found[name].dtype == value.dtype, name
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=name)


@every_options
def test_split_state_resumes_to_the_bit(folder: Path, options: str) -> None:
    on, resumed = (load_file(folder / f"{options}-{name}-0") for name in ("on", "resumed"))
    assert same(on, resumed)
    assert not torch.equal(on["weight.right"], load_file(folder / f"{options}-0")["weight.right"])


def test_state_of_two_ranks_goes_on_in_one(folder: Path) -> None:
    saved = load_file(folder / "adam-0")
    parameters = {name: nn.Parameter(saved[f"weight.{name}"]) for name in SHAPES}
    optimizer = made(parameters)
    for name, parameter in parameters.items():
        prefix = f"state.{name}."
        state = {key.removeprefix(prefix): value for key, value in saved.items() if key.startswith(prefix)}
        optimizer.load_whole_state(parameter, state)
    learn(optimizer, range(4, 6), whole_gradient)
    expected = load_file(folder / "adam-on-0")
    for name in SHAPES:
        torch.testing.assert_close(parameters[name].detach(), expected[f"weight.{name}"], rtol=0, atol=1e-5, msg=name)


def test_nothing_as_large_as_the_matrix_is_exchanged(folder: Path) -> None:
    sizes = load_file(folder / "exchanged-0")
    width = 4 + 8
    spaces = load_file(folder / "adam-0")
    for name in ("right", "left"):
        rows, columns = SHAPES[name]
        allowed = {"right": columns * width, "left": columns * width}[name]
        assert 0 < sizes[name].max() <= allowed < rows * columns / 3
        assert spaces[f"space.{name}"].shape[1] > 0
    assert set(sizes["lora"].tolist()) == {1}, "its space is on the inputs, which every rank has"


def test_replicated_matrices_exchange_nothing(folder: Path) -> None:
    found = load_file(folder / "replicated-0")
    assert found.pop("sizes").numel() == 0
    expected = alone()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_ranks_agree_on_gradients_that_are_not_finite(folder: Path) -> None:
    views = [load_file(folder / f"bad-{rank}") for rank in range(WORLD)]
    assert same(*views)
    found, before = views[0], start()
    assert found["skipped"] == 6
    for name, value in before.items():
        assert torch.equal(found[f"weight.{name}"], value) == (name in ("right", "left", "lora")), name


def test_a_module_that_fsdp_shards_learns_what_a_whole_one_learns(folder: Path) -> None:
    expected, found = trained(layers(), slice(None)), load_file(folder / "fsdp-1")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value.detach(), rtol=1e-4, atol=1e-4, msg=name)
    assert all(value.any() for name, value in expected.items() if name.startswith("space."))


def test_what_cannot_be_split_is_told(folder: Path) -> None:
    assert load_file(folder / "messages-0")["messages"].tolist() == [True, True]
