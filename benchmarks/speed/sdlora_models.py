"""What the cases of SD-LoRA compare: one small ViT bare, with plain LoRA, with SD-LoRA, and with a loop over tasks.

The loop is the layer of the released code (``_LoRA_qkv_timm_train`` in ``backbone/lora.py`` of WuYichen-97/SD-Lora-CL)
less its norms, its files and the layers that it makes in every pass, all of which would cost it more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from methods.base import Method
from methods.levels import Levels
from methods.lora import LoRA, LoRAConfig
from methods.sdlora import SDLoRA, SDLoRAConfig

TARGETS = ("qkv",)
PATCH = 14  # pixels; a token each, and one for the class


@dataclass(frozen=True)
class Sizes:
    """A timm model with ``changes`` of its own arguments, a batch of square images, ranks, and stored tasks."""

    model: str = "vit_small_patch14_dinov2"
    changes: dict[str, Any] = field(default_factory=dict)
    pixels: int = 98
    batch: int = 32
    classes: int = 100
    rank: int = 10
    stored: int = 20

    def detail(self) -> dict[str, Any]:
        tokens = self.batch * ((self.pixels // PATCH) ** 2 + 1)
        return {"model": self.model, "pixels": self.pixels, "batch": self.batch, "tokens": tokens, "rank": self.rank}


REAL = Sizes()
SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 2}
TOY = Sizes(changes=SMALL, pixels=28, batch=2, classes=3, rank=2, stored=4)


class Network(nn.Module):
    """A frozen backbone with random weights, and a linear head that learns."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        torch.manual_seed(0)
        options = {"img_size": sizes.pixels, "num_classes": 0} | sizes.changes
        backbone: Any = timm.create_model(sizes.model, pretrained=False, **options)
        self.backbone = backbone.requires_grad_(False)
        self.head = nn.Linear(backbone.num_features, sizes.classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))

    def adapted(self, method: Method, tasks: int) -> None:
        method.adapt(self.backbone, TARGETS, [], tasks)
        named = [(name, p) for name, p in self.named_parameters() if p.requires_grad and not name.startswith("head.")]
        method.bind(Levels(named, lambda _: 0, lambda values: values), None)

    def adapted_layers(self) -> list[nn.Module]:
        return [module for name, module in self.backbone.named_modules() if name.endswith(TARGETS)]


def bare(sizes: Sizes) -> Network:
    return Network(sizes)


def with_lora(sizes: Sizes) -> Network:
    """Plain LoRA through peft."""
    network = Network(sizes)
    network.adapted(LoRA(LoRAConfig(rank=sizes.rank, alpha=sizes.rank)), 1)
    return network


def with_sdlora(sizes: Sizes, stored: int) -> tuple[Network, SDLoRA]:
    """In the task after ``stored`` ones, whose directions are random."""
    network, method = Network(sizes), SDLoRA(SDLoRAConfig(rank=sizes.rank))
    network.adapted(method, stored + 1)
    for task in range(stored):
        method.begin_task(task, 1, 1)
        for layer in method.layers.values():
            nn.init.normal_(layer.lora_B, std=0.02)
        method.end_task()
    method.begin_task(stored, 1, 1)
    return network, method


def with_loop(sizes: Sizes, stored: int) -> Network:
    """The same task with separate adapters; all layers share the magnitudes."""
    network = Network(sizes)
    magnitudes = nn.ParameterList(torch.ones(1) for _ in range(stored + 1))
    for block in network.backbone.get_submodule("blocks").children():
        base = block.get_submodule("attn.qkv")
        assert isinstance(base, nn.Linear)
        block.set_submodule("attn.qkv", LoopedLayer(base, sizes.rank, magnitudes))
    return network


class LoopedLayer(nn.Module):
    """A fused layer whose query and value get the product of each task's pair, one after another; the last one learns.

    What a pair makes of the tokens is multiplied by its magnitude, for whose gradient autograd keeps it.
    """

    def __init__(self, base: nn.Linear, rank: int, magnitudes: nn.ParameterList) -> None:
        super().__init__()
        self.base, self.magnitudes = base, magnitudes
        inputs, last = base.in_features, len(magnitudes) - 1
        frozen = [task < last for task in range(last + 1) for _ in range(2)]
        self.downs = nn.ParameterList(self.factor(rank, inputs, stays) for stays in frozen)
        self.ups = nn.ParameterList(self.factor(inputs, rank, stays) for stays in frozen)

    @staticmethod
    def factor(outputs: int, inputs: int, frozen: bool) -> nn.Parameter:
        return nn.Parameter(0.02 * torch.randn(outputs, inputs), requires_grad=not frozen)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.base(x)
        width = x.shape[-1]
        for number, section in enumerate((slice(0, width), slice(2 * width, 3 * width))):
            pairs = list(zip(self.magnitudes, self.downs[number::2], self.ups[number::2], strict=True))
            added = self.scaled(x, *pairs[-1])
            for pair in pairs[:-1]:
                added += self.scaled(x, *pair)
            qkv[..., section] += added
        return qkv

    @staticmethod
    def scaled(x: Tensor, magnitude: Tensor, down: Tensor, up: Tensor) -> Tensor:
        return magnitude * functional.linear(functional.linear(x, down), up)


def batch(sizes: Sizes) -> tuple[Tensor, Tensor]:
    """Random images and labels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(sizes.batch, 3, sizes.pixels, sizes.pixels, generator=generator)
    return images, torch.randint(sizes.classes, (sizes.batch,), generator=generator)


def stepping(network: Network, sizes: Sizes) -> Callable[[], None]:
    """A call that makes one step of Adam on adapters and head; the first one, which allocates, is done already."""
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=1e-4)
    images, labels = batch(sizes)

    def run() -> None:
        functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    run()
    return run
