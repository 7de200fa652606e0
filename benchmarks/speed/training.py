"""What a method adds to whole training steps of a small ViT, by those of sequential LoRA; what two workers add."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional

from benchmarks.speed.measure import Measurement, all_cores, medians, once
from benchmarks.speed.memory import weights
from benchmarks.speed.sdlora_models import REAL, TOY, Network, Sizes, batch, stepping, with_lora
from methods.levels import Levels
from methods.treelora import TreeLoRA, TreeLoRAConfig

STEPS = 10_000  # planned steps of the task that is measured
VIT = "vit_small_patch14_dinov2"


def treelora_training(toy: bool) -> list[Measurement]:
    """After twenty tasks, without sparsity and with; a turn is as many steps as lie between two search points."""
    sizes, repeats = (TOY, 2) if toy else (REAL, 7)
    plain, sparse = TreeLoRAConfig(rank=sizes.rank), TreeLoRAConfig(rank=sizes.rank, sparsity=0.9)
    turn = plain.search.every
    lora = stepping(with_lora(sizes), sizes)
    candidates: dict[str, Callable[[], object]] = {
        "lora": lambda: [lora() for _ in range(turn)],
        "treelora": tree_stepping(plain, sizes, turn),
        "sparse": tree_stepping(sparse, sizes, turn),
    }
    seconds = medians(candidates, repeats)
    detail = sizes.detail() | {"stored_tasks": sizes.stored, "seconds": seconds, "steps": turn * repeats}
    by_lora, by_dense = seconds["treelora"] / seconds["lora"], seconds["sparse"] / seconds["treelora"]
    return [
        Measurement("treelora-training", by_lora, 1.03, {"unit": "of sequential LoRA's step"} | detail),
        Measurement("treelora-training", by_dense, 1.03, {"unit": "sparsity 0.9 by none"} | detail),
    ]


def compiled(toy: bool) -> list[Measurement]:
    """Steps of LoRA whose blocks torch.compile has made, by those without; the first call apart."""
    sizes, repeats = (TOY, 2) if toy else (REAL, 7)
    network = with_lora(sizes)
    for block in network.backbone.blocks:
        block.compile()
    began = time.perf_counter()
    step = stepping(network, sizes)
    step()
    first = time.perf_counter() - began
    seconds = medians({"eager": stepping(with_lora(sizes), sizes), "compiled": step}, repeats)
    detail = {"unit": "of a step without train.compile", "seconds": seconds, "first_steps": first}
    return [Measurement("compile", seconds["compiled"] / seconds["eager"], 1.0, sizes.detail() | detail)]


def tree_stepping(config: TreeLoRAConfig, sizes: Sizes, count: int) -> Callable[[], None]:
    """A call that makes ``count`` steps of a task after the stored ones; the first such is done already."""
    network, method = Network(sizes), TreeLoRA(config)
    method.adapt(network.backbone, ("qkv",), [], sizes.stored + 1)
    adapters = [(name, p) for name, p in network.named_parameters() if p.requires_grad and not name.startswith("head.")]
    levels = Levels(adapters, lambda name: int(name.split("blocks.")[1].split(".")[0]), lambda values: values)
    method.bind(levels, method.service(0))
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=1e-4)
    images, labels = batch(sizes)
    done = 0

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        nonlocal done
        loss = functional.cross_entropy(network(images), labels)
        loss.backward()
        method.edit_gradients(done, loss.detach(), unasked)
        optimizer.step()
        optimizer.zero_grad()
        done += 1

    def run() -> None:
        for _ in range(count):
            step(images, labels)

    for task in range(sizes.stored):
        method.begin_task(task, 1, 1)
        done = 0
        step(images[:1], labels[:1])  # a task of one image: what is stored of it costs later steps the same
        method.end_task()
    method.begin_task(sizes.stored, STEPS, 1)
    done = 0
    run()
    return run


def unasked() -> torch.Tensor:
    raise AssertionError("stored signatures need no further pass over the batch")


def tree_actor(toy: bool) -> list[Measurement]:
    """Steps of TreeLoRA on a worker of one thread that asks the tree actor, by those of a process of one thread."""
    ways = {"in process": (0, "none"), "actor": (1, "none")}
    found: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as made, all_cores():
        folder = Path(made)
        backbone = real_backbone(folder, toy)
        for turn in range(1 if toy else 3):
            for name, way in ways.items():
                place = f"{name.replace(' ', '_')}{turn}"
                found[name].append(train_seconds(folder, place, *way, ["method=treelora", *backbone], toy))
    seconds = {name: statistics.median(values) for name, values in found.items()}
    detail = {"unit": "steps of a run with the tree actor by those of one in process", "seconds": found}
    return [Measurement("tree-actor", seconds["actor"] / seconds["in process"], 1.02, detail)]


def real_backbone(folder: Path, toy: bool) -> list[str]:
    if toy:
        return ["backbone=micro_vit"]
    return [f"backbone.name={VIT}", f"backbone.pretrained={weights(VIT, folder)}", "backbone.image_size=98"]


def workers(toy: bool) -> list[Measurement]:
    """Samples a second of two workers with a thread each, by those of one worker, on batches of the same size."""
    with tempfile.TemporaryDirectory() as made, all_cores():
        folder = Path(made)
        settings = ["method=lora", *real_backbone(folder, toy)]
        runs = {"one": (1, "none"), "ddp": (2, "ddp"), "fsdp2": (2, "fsdp2")}
        seconds = {name: train_seconds(folder, name, *way, settings, toy) for name, way in runs.items()}
    found = []
    for name, reach in (("ddp", 1.6), ("fsdp2", 1.4)):
        detail = {"unit": f"seconds of two {name} workers by those of one, reach {reach} times the speed"}
        found.append(Measurement("workers", seconds[name] / seconds["one"], 1 / reach, detail | {"seconds": seconds}))
    return found


def train_seconds(folder: Path, name: str, count: int, sharding: str, settings: list[str], toy: bool) -> float:
    """Of the steps of a short run, with a thread for each worker, what the method adds included."""
    rows = ["benchmark.classes=4", "benchmark.tasks=2", f"benchmark.train_per_class={4 if toy else 160}"]
    sizes = ["benchmark.test_per_class=2", "train.epochs=1", f"train.batch_size={4 if toy else 32}"]
    places = [f"storage={folder}", f"name={name}", "tracking.enabled=false"]
    scale = [f"scale.workers={count}", f"scale.sharding={sharding}"]
    threads = ["env", "OMP_NUM_THREADS=1"]  # as Ray gives a worker of one core
    once([*threads, sys.executable, "run.py", "train", "head=linear", *rows, *sizes, *scale, *places, *settings])
    seconds = json.loads((folder / name / "result.json").read_text())["seconds"]
    return float(seconds["train"] + seconds["method"])
