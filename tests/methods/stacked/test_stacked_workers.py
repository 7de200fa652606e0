"""A stacked layer on two workers, replicated or sharded: the same as in one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from methods.stacked import layer as stacked
from tests.methods.stacked.test_stacked import FORMS, RANK, RANKS, close, made, tokens
from tests.support.pair import WORLD, Pair

pytestmark = pytest.mark.slow  # methods on two workers, which are always tested, go through the layer


class Block(nn.Module):
    """A layer whose output has an odd number of rows, so that the shards are uneven, and its magnitudes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = made((slice(1, 21), slice(41, 61)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).relu()


def whole(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def seen(block: Block, wrapped: nn.Module, share: slice) -> dict[str, Tensor]:
    """Output of these rows of the batch, gradients of its mean loss, and the output and weight around a fold."""
    x, layer = tokens(6, 5).detach()[share], block.layer
    found = {"output": wrapped(x)}
    found["output"].square().mean().backward()
    found |= {name: whole(p.grad) for name, p in layer.named_parameters() if p.requires_grad}
    found["weight"] = whole(layer.base.weight)
    pair = [whole(layer.lora_A), whole(layer.lora_B)]
    found["update"] = layer.delta(
        *pair, whole(layer.magnitudes).repeat_interleave(torch.tensor([*RANKS, RANK])).expand(2, -1)
    )
    layer.fold(found["update"])
    with torch.no_grad():
        found |= {"folded output": wrapped(x), "folded weight": whole(layer.base.weight)}
    layer.unfold()
    with torch.no_grad():
        found |= {"output again": wrapped(x), "weight again": whole(layer.base.weight)}
    return {name: value.detach() for name, value in found.items()}


def worker(process: int, folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patched:
        for name, form in FORMS.items():
            patched.setattr(stacked, "cheaper_form", lambda *_, form=form: form)
            write_cases(name, process, folder)


def write_cases(form: str, process: int, folder: Path) -> None:
    half, mesh = MixedPrecisionPolicy(torch.bfloat16, torch.float32, torch.float32), init_device_mesh("cpu", (WORLD,))
    for case in ("ddp", "fsdp2", "fsdp2, bf16"):
        block = Block()
        if case == "ddp":
            wrapped: nn.Module = DistributedDataParallel(block)
        else:
            policy = half if "bf16" in case else MixedPrecisionPolicy()
            wrapped = fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        torch.save(seen(block, wrapped, slice(process, None, WORLD)), folder / f"{form}, {case}, {process}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pair: Pair) -> Path:
    """What two processes saw."""
    path = tmp_path_factory.mktemp("stacked")
    pair.run(worker, path)
    return path


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("case", "tolerance"), [("ddp", 1e-5), ("fsdp2", 1e-5), ("fsdp2, bf16", 0.03)])
def test_workers_see_what_one_process_sees(folder: Path, form: str, case: str, tolerance: float) -> None:
    block = Block()
    alone = seen(block, block, slice(None))
    views = [torch.load(folder / f"{form}, {case}, {process}") for process in range(WORLD)]
    for name, expected in alone.items():
        rows = [torch.stack([view[name] for view in views], 1).flatten(0, 1)] if "output" in name else None
        for found in rows or [view[name] for view in views]:
            close([found], [expected], tolerance)
    for view in views:
        assert torch.equal(view["weight again"], view["weight"]) and torch.equal(view["output again"], view["output"])
        assert torch.equal(view["folded weight"], view["weight"] + view["update"])
