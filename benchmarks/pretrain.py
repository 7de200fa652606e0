"""Pre-train the micro ViT that ships with the project, on Tiny-ImageNet at 32 px.

    python -m benchmarks.pretrain                      # about an hour on 2 cores
    python -m benchmarks.pretrain --epochs 1           # a quick look

Stopped at any point, the same command goes on after the last finished epoch. The last epoch writes
``benchmarks/weights/micro_vit.safetensors`` (fp16) and its figures; ``python -m benchmarks.model_card`` then
measures the frozen features and writes the model card.

Half of the patches are dropped until the last seventh of the main phase: on two cores that doubles the epochs an hour
buys. A short polish follows, on whole images without CutMix, with a second, smaller cosine of the learning rate: the
main phase alone leaves a model of this size underfitted.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy
import torch
import typer
from rich.progress import Progress
from safetensors.torch import load_file, save_file
from timm.data import Mixup
from timm.layers import PatchDropout
from timm.models.vision_transformer import VisionTransformer
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.models.vision import MICRO_VIT_WEIGHTS, micro_vit
from benchmarks.sources import data_root, read_image_zip

ARCHIVE = "tiny_imagenet_32px_200x200.zip"
BATCH = 128
HELD_OUT_PER_CLASS = 20
CLASSES = 200
PATCH_DROP, FULL_PATCHES_FROM = 0.5, 0.85
POLISH_RATE = 0.25  # peak learning rate of the polish, as a share of the main phase's


def main(
    data: Annotated[Path | None, typer.Option(help="The Tiny-ImageNet archive.")] = None,
    epochs: Annotated[int, typer.Option(min=1)] = 42,
    polish: Annotated[int, typer.Option(min=0, help="Epochs of the last phase.")] = 5,
    learning_rate: Annotated[float, typer.Option(min=0)] = 2e-3,
    seed: int = 0,
    folder: Annotated[Path, typer.Option(help="Where checkpoints go.")] = Path("runs/pretrain"),
    weights: Annotated[Path, typer.Option(help="Where the result goes.")] = MICRO_VIT_WEIGHTS,
) -> None:
    """Train the micro ViT from random weights and write it as fp16 safetensors."""
    recipe = {"epochs": epochs, "polish": polish, "learning_rate": learning_rate, "seed": seed}
    train, held_out = split(*read_image_zip(data or data_root() / ARCHIVE, "train"))
    torch.manual_seed(seed)
    trainer = Trainer(recipe, steps=len(train[1]) // BATCH)
    first = trainer.load(folder)
    with Progress() as progress:
        bar = progress.add_task("pre-training", total=trainer.total, completed=first * trainer.steps)
        for epoch in range(first, epochs + polish):
            trainer.epoch(epoch, *train, advance=lambda: progress.advance(bar))
            accuracy = top1(trainer.ema.module, *held_out)
            progress.console.print(f"epoch {epoch + 1}: held-out top-1 {accuracy:.2%}")
            trainer.save(folder, epoch + 1, accuracy)
    write_weights(trainer.ema.module, weights, recipe, held_out)


class Trainer:
    """Model, moving average, optimiser and schedule of one pre-training run."""

    def __init__(self, recipe: dict, steps: int) -> None:
        self.recipe, self.steps = recipe, steps
        self.main, self.total = recipe["epochs"] * steps, (recipe["epochs"] + recipe["polish"]) * steps
        self.model = micro_vit(CLASSES)
        self.ema = ModelEmaV3(self.model, decay=0.999, use_warmup=True)
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        rest = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe["learning_rate"])
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self.rate)
        self.mixup = Mixup(0.0, 1.0, prob=0.5, label_smoothing=0.1, num_classes=CLASSES)

    def rate(self, step: int) -> float:
        """Learning rate as a share of its peak: warm-up and cosine, then a smaller cosine."""
        if step < self.main:
            warmup = max(1, self.main // 12)
            return min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / self.main))
        done = (step - self.main) / max(1, self.total - self.main)
        return POLISH_RATE * (0.5 + 0.5 * math.cos(math.pi * done))

    def epoch(self, epoch: int, images: Tensor, labels: Tensor, advance: Callable[[], None]) -> None:
        """One pass; the randomness depends on (seed, epoch) alone, so that a resumed run is the same run."""
        torch.manual_seed(self.recipe["seed"] * 1000 + epoch)
        numpy.random.seed(self.recipe["seed"] * 1000 + epoch)  # timm's Mixup draws from it
        dropping = epoch < FULL_PATCHES_FROM * self.recipe["epochs"]
        self.mixup.mixup_enabled = epoch < self.recipe["epochs"]
        self.model.patch_drop = PatchDropout(PATCH_DROP if dropping else 0.0, num_prefix_tokens=0)
        self.model.train()
        order = torch.randperm(len(labels))
        for step in range(self.steps):
            chosen = order[step * BATCH : (step + 1) * BATCH]
            self.step(*self.mixup(augment(normalise(images[chosen])), labels[chosen]))
            advance()

    def step(self, images: Tensor, targets: Tensor) -> None:
        loss = functional.cross_entropy(self.model(images), targets)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        self.ema.update(self.model, step=self.schedule.last_epoch)

    def save(self, folder: Path, epoch: int, accuracy: float) -> None:
        """Write the state beside the old one, then rename: a kill in between costs one epoch."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.module.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v for k, v in state.items()}
        note = self.recipe | {"epoch": epoch, "held_out_top1": accuracy}
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / "state.new", metadata={"note": json.dumps(note)})
        os.replace(folder / "state.new", folder / "state.safetensors")
        with (folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(note) + "\n")

    def load(self, folder: Path) -> int:
        """Continue from ``folder`` and return the number of finished epochs (0 where there is none)."""
        file = folder / "state.safetensors"
        if not file.exists():
            return 0
        note = read_note(file)
        if any(note[key] != value for key, value in self.recipe.items()):
            raise typer.BadParameter(f"{folder} holds a run with other settings ({note}); name another --folder")
        tensors = load_file(file)
        self.model.load_state_dict(part(tensors, "model."))
        self.ema.module.load_state_dict(part(tensors, "ema."))
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in part(tensors, "optimizer.").items():
            index, name = key.split(".", 1)
            state.setdefault(int(index), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        # The schedule is not saved: it follows from the number of steps.
        for _ in range(note["epoch"] * self.steps):
            self.schedule.step()
        return note["epoch"]


def split(images: Tensor, labels: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Keep the last ``HELD_OUT_PER_CLASS`` images of each class for evaluation."""
    place = torch.zeros_like(labels)
    for label in range(CLASSES):
        rows = (labels == label).nonzero().flatten()
        place[rows] = torch.arange(len(rows), 0, -1)
    held_out = place <= HELD_OUT_PER_CLASS
    return (images[~held_out], labels[~held_out]), (images[held_out], labels[held_out])


def normalise(images: Tensor) -> Tensor:
    """uint8 [n, 3, h, w] to floats in [-1, 1]."""
    return images.float().div_(127.5).sub_(1.0)


def augment(images: Tensor) -> Tensor:
    """Random crop of 50 to 100 % of the area and flip, an own one for each image of the batch."""
    count = len(images)
    scale = torch.empty(count).uniform_(0.5, 1.0).sqrt()
    ratio = torch.empty(count).uniform_(math.log(0.8), math.log(1.25)).exp().sqrt()
    width, height = (scale * ratio).clamp(max=1), (scale / ratio).clamp(max=1)
    flip = torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = width * flip, height
    theta[:, 0, 2] = (torch.rand(count) * 2 - 1) * (1 - width)
    theta[:, 1, 2] = (torch.rand(count) * 2 - 1) * (1 - height)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


@torch.inference_mode()
def top1(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of ``images`` whose highest logit is the label."""
    model.eval()
    right = [
        (model(normalise(x)).argmax(1) == y).sum() for x, y in zip(images.split(500), labels.split(500), strict=True)
    ]
    return int(sum(right)) / len(labels)


def write_weights(model: VisionTransformer, file: Path, recipe: dict, held_out: tuple[Tensor, Tensor]) -> None:
    """Round to fp16, measure the rounded model, write weights and figures."""
    rounded = {k: v.half().float() for k, v in model.state_dict().items()}
    model.load_state_dict(rounded)
    figures = recipe | {"held_out_top1": top1(model, *held_out), "held_out_images": len(held_out[1])}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half() for k, v in rounded.items()}, file, metadata={"note": json.dumps(figures)})
    typer.echo(f"{file}: {file.stat().st_size / 1e6:.1f} MB, {figures}")


def read_note(file: Path) -> dict:
    """The JSON note in the header of a safetensors file."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return json.loads(opened.metadata()["note"])


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


if __name__ == "__main__":
    typer.run(main)
