"""Measure the shipped backbone's frozen features and write its model card.

    python -m benchmarks.model_card        # about a minute; needs the CIFAR-100 file in the data folder

Features of the frozen backbone go into a Gaussian classifier (class means, one shared shrunk covariance), once with
the shipped weights and once with random ones. A seed draws four fifths of the train images, and the random weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, stdev

import torch
import typer
from safetensors import safe_open

from benchmarks.dataset import StreamConfig
from benchmarks.models.backbones import build_model, input_format
from benchmarks.models.config import BackboneConfig
from benchmarks.models.deferred import filled
from benchmarks.models.heads import HeadConfig
from benchmarks.models.vision import MICRO_VIT_WEIGHTS
from benchmarks.stream import build_stream

CARD = MICRO_VIT_WEIGHTS.parent / "README.md"
SEEDS = (0, 1, 2)
SHARE = 0.8
HELD_OUT = 0.01  # one image of each class


def main(card: Path = CARD) -> None:
    """Measure and write."""
    rows = []
    for name, data in datasets().items():
        figures = {kind: [frozen_accuracy(data, kind == "shipped", seed) for seed in SEEDS] for kind in KINDS}
        rows.append(f"| {name} | {percent(figures['shipped'])} | {percent(figures['random'])} |")
        typer.echo(rows[-1])
    with safe_open(MICRO_VIT_WEIGHTS, "pt") as opened:
        recipe = json.loads(opened.metadata()["note"])
    card.write_text(text(recipe, rows))


KINDS = ("shipped", "random")


def datasets() -> dict[str, StreamConfig]:
    """The sets that the card reports on, each as a single task."""
    one_task = {"tasks": 1, "validation_share": HELD_OUT}
    cifar = StreamConfig(name="cifar100", source="array", path=Path("cifar100_100x100_50.npz"), **one_task)
    return {
        "scikit-learn digits, 10 classes": StreamConfig(name="digits", source="digits", **one_task),
        "CIFAR-100, 100 classes, 79 train images each": cifar,
    }


@torch.inference_mode()
def frozen_accuracy(data: StreamConfig, pretrained: bool, seed: int) -> float:
    """Test accuracy of the Gaussian head on frozen features, in 0 to 1."""
    torch.manual_seed(seed)
    backbone = BackboneConfig(pretrained=pretrained)
    stream = build_stream(data, None, input_format(backbone))
    model = filled(build_model(backbone, HeadConfig(kind="gaussian"), stream, seed)).eval()
    task = stream.tasks[0]
    drawn = torch.randperm(len(task.train))[: int(SHARE * len(task.train))]
    for rows in drawn.split(500):
        batch = task.train.take(rows).batch()
        model.collect(batch, torch.ones(len(rows), dtype=torch.bool))
    model.finish(lambda sums: sums)  # one worker, whose sums are the total
    batches = torch.arange(len(task.test)).split(500)
    scores = [model.scores(task.test.take(rows).batch(), task, [task.classes]) for rows in batches]
    return float(torch.cat(scores).mean())


def percent(values: list[float]) -> str:
    return f"{mean(values):.1%} ± {stdev(values):.1%}"


def text(recipe: dict, rows: list[str]) -> str:
    """The card; every number in it is measured or read from the weights' header."""
    size = MICRO_VIT_WEIGHTS.stat().st_size / 1e6
    return f"""# micro_vit

A vision transformer for 32 px images (timm `VisionTransformer`: patch 4, width 128, depth 6, 4 heads, MLP ratio 3,
mean pooling, no class token; 1.0 M parameters), stored as fp16 safetensors ({size:.1f} MB).
It is here so that everything in this project runs without a download; for real work choose a larger backbone.

**Data.** Tiny-ImageNet at 32 px, 200 classes with 200 images each; 180 are trained on, 20 held out. Its images come
from ImageNet and are subject to ImageNet's terms (research use).

**Recipe.** `python -m benchmarks.pretrain`: {recipe["epochs"]} epochs of AdamW (weight decay 0.05, batch 128, peak
learning rate {recipe["learning_rate"]:g}, warm-up and cosine), random crops of 50 to 100 % of the area, flips, CutMix
on half of the batches, label smoothing 0.1, half of the patches dropped until the last seventh; then
{recipe["polish"]} epochs on whole images without CutMix from a quarter of that learning rate; the weights are a moving
average. Seed {recipe["seed"]}.

**Held-out top-1** of 200 classes: {recipe["held_out_top1"]:.1%} ({recipe["held_out_images"]} images, after rounding
to fp16).

**Frozen features** with a Gaussian classifier, test accuracy, mean and standard deviation of {len(SEEDS)} seeds
(`python -m benchmarks.model_card`):

| data | shipped weights | random weights |
| --- | --- | --- |
{chr(10).join(rows)}
"""


if __name__ == "__main__":
    typer.run(main)
