"""What SD-LoRA costs after twenty tasks: a training step, its memory, its growth with the tasks, and inference.

The references in the same run are a step of plain LoRA, the bare backbone, and a loop over the stored adapters as the
released layer has it.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack

import numpy
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from benchmarks.speed.evaluation import inferring
from benchmarks.speed.measure import Measurement, medians
from benchmarks.speed.sdlora_models import (
    REAL,
    TOY,
    Network,
    bare,
    batch,
    stepping,
    with_loop,
    with_lora,
    with_sdlora,
)
from methods.stacked.layer import StackedLinear


def step(toy: bool) -> list[Measurement]:
    """A step after twenty tasks by one of plain LoRA; activations that it keeps by those that the loop keeps."""
    sizes, repeats = (TOY, 2) if toy else (REAL, 9)
    networks = {
        "sdlora": with_sdlora(sizes, sizes.stored)[0],
        "lora": with_lora(sizes),
        "loop": with_loop(sizes, sizes.stored),
    }
    detail = sizes.detail() | {"stored_tasks": sizes.stored}
    seconds = medians({name: stepping(network, sizes) for name, network in networks.items()}, repeats)
    timed = {"quantity": "a training step by one of plain LoRA", "seconds": seconds, "repeats": repeats}
    kept = {name: kept_bytes(network, batch(sizes)[0]) for name, network in networks.items()}
    without_inputs = {name: own for name, (own, _) in kept.items()}
    memory = {
        "quantity": "adapter activations kept for the backward pass, by the loop's",
        "bytes": without_inputs,
        "bytes_with_the_inputs": {name: own + inputs for name, (own, inputs) in kept.items()},
    }
    return [
        Measurement("sdlora-step", seconds["sdlora"] / seconds["lora"], 1.10, detail | timed),
        Measurement("sdlora-step", without_inputs["sdlora"] / without_inputs["loop"], 1 / 50, detail | memory),
    ]


def growth(toy: bool) -> list[Measurement]:
    """The slope of a step's seconds over the number of stored tasks, by the seconds with none."""
    sizes, repeats = (TOY, 2) if toy else (REAL, 4)
    counts = [sizes.stored * quarter // 4 for quarter in range(5)]
    many = 3 * sizes.stored
    candidates = {f"sdlora {count}": stepping(with_sdlora(sizes, count)[0], sizes) for count in (*counts, many)}
    ends = [counts[0], counts[-1]]
    candidates |= {f"loop {count}": stepping(with_loop(sizes, count), sizes) for count in ends}
    seconds = medians(candidates, repeats)
    slope = relative_slope(counts, [seconds[f"sdlora {count}"] for count in counts])
    detail = {
        "quantity": "what each stored task adds to a step, by a step with none",
        "loop": relative_slope(ends, [seconds[f"loop {count}"] for count in ends]),
        "seconds": seconds,
        "repeats": repeats,
    }
    far = seconds[f"sdlora {many}"] / seconds[f"sdlora {counts[2]}"]
    apart = {"quantity": f"a step with {many} stored tasks by one with {counts[2]}", "seconds": seconds}
    return [
        Measurement("sdlora-growth", slope, 0.008, sizes.detail() | detail),
        Measurement("sdlora-growth", far, 1.3, sizes.detail() | apart),
    ]


def relative_slope(counts: list[int], seconds: list[float]) -> float:
    """Least squares."""
    return float(numpy.polyfit(counts, seconds, 1)[0]) / seconds[0]


def fold(toy: bool) -> list[Measurement]:
    """Inference with twenty tasks folded into the weights, by inference of the bare backbone."""
    sizes, repeats = (TOY, 2) if toy else (REAL, 15)
    folded, method = with_sdlora(sizes, sizes.stored)
    pair = {"bare": bare(sizes), "folded": folded}
    others = {"unfolded": with_sdlora(sizes, sizes.stored)[0], "loop": with_loop(sizes, sizes.stored)}
    images = batch(sizes)[0]
    with ExitStack() as stack:
        stack.enter_context(method.inference())
        stack.enter_context(torch.no_grad())
        seconds: dict[str, float] = {}
        # Apart: a turn after the loop's finds other memory in the cache.
        for networks in (pair, others):
            runs = {name: inferring(network, images) for name, network in networks.items()}
            seconds |= medians(runs, repeats if networks is pair else max(2, repeats // 5))
    ratios = {name: value / seconds["bare"] for name, value in seconds.items()}
    detail = {
        "quantity": "inference by that of the bare backbone",
        "stored_tasks": sizes.stored,
        "unfolded": ratios["unfolded"],
        "loop": ratios["loop"],
        "seconds": seconds,
        "repeats": repeats,
    }
    return [Measurement("sdlora-fold", ratios["folded"], 1.02, sizes.detail() | detail)]


def kept_bytes(network: Network, images: Tensor) -> tuple[int, int]:
    """Bytes that the adapted layers keep for the backward pass: of their own, and of their inputs.

    Parameters and stored directions do not count, and a storage counts once, however many tensors share it.
    """
    calls: list[tuple[nn.Module, Tensor]] = []
    layers = network.adapted_layers()
    handles = [
        layer.register_forward_pre_hook(lambda layer, given: calls.append((layer, given[0]))) for layer in layers
    ]
    network(images)
    for handle in handles:
        handle.remove()
    kept = Kept()
    with saved_tensors_hooks(kept.pack, kept.unpack):
        for layer, x in calls:
            layer(x)
    constant = storages([tensor for layer in layers for tensor in constants(layer)])
    inputs = storages([x for _, x in calls])
    found = {place: size for place, size in storages(kept.tensors).items() if place not in constant}
    of_inputs = sum(size for place, size in found.items() if place in inputs)
    return sum(found.values()) - of_inputs, of_inputs


class Kept:
    """Holds what autograd saves."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []

    def pack(self, tensor: Tensor) -> Tensor:
        self.tensors.append(tensor)
        return tensor

    def unpack(self, tensor: Tensor) -> Tensor:
        return tensor


def storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Address and bytes of each storage."""
    found = [tensor.untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in found}


def constants(layer: nn.Module) -> list[Tensor]:
    """What a layer holds whether it is used or not."""
    stored = [layer.stored_A, layer.stored_B] if isinstance(layer, StackedLinear) else []
    return [*layer.parameters(), *layer.buffers(), *stored]
