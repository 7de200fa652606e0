"""Several workers, one model: none, ddp or fsdp2, with gloo on CPU and nccl on GPU.

A ``Place`` is one worker's rank, world size, device and kind of sharding. In one process every sum is the identity, so
that the same learner runs whole, replicated or sharded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from benchmarks.models.deferred import fill, sources
from benchmarks.models.model import Model
from benchmarks.models.tensor_files import StoredTensor
from methods.levels import Levels, is_sharded, local_range
from orchestrator.run.memory import return_large_memory
from orchestrator.settings.errors import UserError

CPU = torch.device("cpu")
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
PARTIAL = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True, strict=False)


@dataclass(frozen=True)
class Place:
    """Which worker this is, and how the model is spread over all of them."""

    rank: int = 0
    world: int = 1
    sharding: str = "none"
    device: torch.device = CPU
    # Bytes of a model from which FSDP2 splits its frozen weights, and gathers them block by block: below, every worker
    # has them whole, as gathering them twice in each step costs more than their memory is worth.
    by_blocks_from: int = 128 * 2**20

    def spread(self, model: Model, half: bool = False) -> nn.Module:
        """Wrap or shard ``model`` in place, and fill in weights that it lacks; the result is what training calls.

        Of sharded weights each worker reads its own rows alone. ``half`` computes in bf16.
        """
        stored = sources(model)  # before sharding makes other parameters of them
        if self.sharding == "fsdp2":
            self.shard(model, half)
        fill(model, stored, self.own_values)
        # Moves what is left, and tells FSDP2 of its new parameters.
        model.to(self.device)
        if self.sharding == "ddp":
            return DistributedDataParallel(model)
        return model

    def shard(self, model: Model, half: bool) -> None:
        mesh = init_device_mesh(self.device.type, (self.world,))
        # Gradients are added over workers in float32, and outputs leave in it: a sum in bf16 keeps 8 bits.
        kept = torch.float32
        policy = MixedPrecisionPolicy(torch.bfloat16, kept, kept) if half else MixedPrecisionPolicy()
        by_blocks = sum(parameter.nbytes for parameter in model.parameters()) >= self.by_blocks_from
        if by_blocks and self.device.type == "cpu":
            return_large_memory()
        # Blocks before the root, which takes the parameters that no inner call has taken.
        for block in model.blocks() if by_blocks else []:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        whole = set() if by_blocks else {p for p in model.parameters() if not p.requires_grad}
        # By default the root stays gathered after a forward pass, to save backward a gather. Under no_grad there is no
        # backward: evaluation before training would leave the head stale.
        fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=True, ignored_params=whole)
        model.most = self.most  # type: ignore[method-assign]
        # FSDP2 gathers parameters around forward alone; these methods would meet their shards.
        for method in model.computing:
            register_fsdp_forward_method(model, method)

    def own_values(self, parameter: Tensor, stored: StoredTensor) -> Tensor:
        """What this worker holds of a frozen weight."""
        if not is_sharded(parameter):
            return stored.rows(dtype=parameter.dtype).to(self.device)
        first, count = local_range(parameter)
        width = parameter.numel() // parameter.shape[0]
        rows = stored.rows(first // width, (first + count) // width, parameter.dtype).to(self.device)
        mesh, places = parameter.device_mesh, parameter.placements
        return DTensor.from_local(rows, mesh, places, run_check=False, shape=parameter.shape, stride=parameter.stride())

    def levels(self, model: Model) -> Levels:
        """The adapters, by transformer block."""
        adapters = model.adapters()
        if self.sharding == "fsdp2":
            return Levels(adapters, model.level_of, self.total, self.rank, self.world)
        # Replicas are alike, so that the first worker's sketch is the whole one and the others send none.
        return Levels(adapters, model.level_of, lambda values: values, 0 if self.rank == 0 else None, 1)

    def average_gradients(self, model: nn.Module) -> None:
        """Reduce gradients where the wrapper does not: ``none`` with several workers."""
        if self.sharding == "none" and self.world > 1:
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.copy_(self.total(parameter.grad) / self.world)

    def total(self, values: Tensor) -> Tensor:
        """The sum over all workers, on every worker."""
        if self.world == 1:
            return values
        # all_reduce works in place.
        result = values.clone()
        dist.all_reduce(result)
        return result

    def most(self, count: int) -> int:
        """The largest ``count`` of all workers."""
        if self.world == 1:
            return count
        result = torch.tensor(count, device=self.device)
        dist.all_reduce(result, dist.ReduceOp.MAX)
        return int(result)

    def from_first(self, numbers: Sequence[float]) -> list[float]:
        """The first worker's numbers, however many, on every worker."""
        if self.world == 1:
            return list(numbers)
        # broadcast needs tensors of one size, which only the first worker knows; float64 holds entry numbers exactly.
        size = torch.tensor(len(numbers), device=self.device)
        dist.broadcast(size, 0)
        sent = torch.zeros(int(size), dtype=torch.float64, device=self.device)
        if self.rank == 0:
            sent.copy_(torch.tensor(numbers, dtype=torch.float64))
        dist.broadcast(sent, 0)
        return sent.tolist()

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()


def device_here(wanted: str) -> torch.device:
    """The device of a run in this process: ``cpu``, ``cuda``, or with ``auto`` the GPU where there is one.

    UserError where there is none that was asked for.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: torch finds no GPU here; say device=auto, or install a torch that has CUDA")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def adapters_and_head(model: nn.Module) -> dict[str, Any]:
    """All trainable tensors, whole, on the first worker; empty on the others."""
    names = trainable(model)
    # ignore_frozen_params drops a tensor under its first name alone: frozen tied embeddings, which have two, would get
    # into every checkpoint.
    return {name: value for name, value in get_model_state_dict(model, options=WHOLE).items() if name in names}


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def load_adapters_and_head(model: nn.Module, state: dict[str, Tensor]) -> None:
    """The inverse, from the whole tensors on every worker; ValueError if a name or shape does not fit."""
    names = trainable(model)
    if other := names ^ set(state):
        raise ValueError(f"the checkpoint has other tensors: {sorted(other)[:3]}")
    for name in sorted(names):
        wanted, found = tuple(model.get_parameter(name).shape), tuple(state[name].shape)
        if wanted != found:
            raise ValueError(f"{name} is {found} in the checkpoint and {wanted} in the model")
    # Strict loading would miss the frozen backbone; names and shapes are checked above.
    set_model_state_dict(model, dict(state), options=PARTIAL)


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[Any]]:
    """The optimiser's tensors as ``<parameter>/<quantity>``, whole, on the first worker, and its parameter groups."""
    state: dict[str, Any] = get_optimizer_state_dict(model, optimizer, options=WHOLE)
    # Flat, since safetensors has no nesting; no parameter's name has a slash.
    tensors = {f"{name}/{key}": value for name, kept in state.get("state", {}).items() for key, value in kept.items()}
    return tensors, state.get("param_groups", [])


def load_optimizer_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], groups: list[Any]
) -> None:
    """The inverse, from the whole state on every worker."""
    state: dict[str, Any] = {}
    for name, value in tensors.items():
        parameter, key = name.rsplit("/", 1)
        state.setdefault(parameter, {})[key] = value
    set_optimizer_state_dict(model, optimizer, {"state": state, "param_groups": groups}, options=WHOLE)
