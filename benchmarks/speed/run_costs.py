"""What stays the same over a hundred tasks, what a checkpoint takes from a step, and how fast rows are read."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy
import torch

from benchmarks.dataset import Examples
from benchmarks.speed.measure import PROJECT, Measurement, medians, once
from benchmarks.speed.memory import weights
from benchmarks.speed.sdlora_models import REAL, TOY, stepping, with_lora

CLASSES, IMAGES, ENDS = 5, 8, 10
LOOK_SECONDS = 0.01
PAGE = resource.getpagesize()


def growth(toy: bool) -> list[Measurement]:
    """Tasks of five classes and eight images a class; those at the end of the stream beside those at its start.

    Between evaluations of all seen tasks, which grow by their definition, the latest and the next one are scored.
    """
    tasks = 4 if toy else 100
    ends = min(ENDS, tasks // 2)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        settings = ["method=treelora", "train.epochs=2", f"evaluate.every={tasks}"]
        ended = watched(command(folder, tasks, CLASSES, settings), folder / "stream" / "progress.json")
    seconds, mebibytes = numpy.diff(numpy.array(ended), axis=0).T
    first, last = (float(numpy.median(part)) for part in (seconds[:ends], seconds[-ends - 1 : -1]))
    detail = {"unit": "a task at the end by one at the start", "tasks": tasks, "first": first, "last": last}
    return [Measurement("stream-growth", last / first, 1.1, detail | {"mib_a_task": float(mebibytes[ends:].mean())})]


def command(folder: Path, tasks: int, classes: int, settings: list[str]) -> list[str]:
    """A run named ``stream`` on random images."""
    file = arrays(folder / "images.npz", tasks * classes)
    data = ["benchmark=array", f"benchmark.path={file}", f"benchmark.tasks={tasks}"]
    places = [f"storage={folder}", "name=stream", "tracking.enabled=false"]
    return [sys.executable, "run.py", "train", *data, *settings, *places]


def watched(run: list[str], progress: Path) -> list[tuple[float, float]]:
    """When each task was learned, in seconds, and the MiB that the process had then."""
    process = subprocess.Popen(run, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ended: list[tuple[float, float]] = []
    while process.poll() is None:
        time.sleep(LOOK_SECONDS)
        now = json.loads(progress.read_text()) if progress.exists() else {"task": 0}
        if now["task"] > len(ended):
            ended.append((progress.stat().st_mtime, resident(process.pid)))
    if process.returncode:
        raise RuntimeError(f"{' '.join(run)}: exit code {process.returncode}")
    return ended


def resident(process: int) -> float:
    """MiB that a process has now; 0 where the system does not say."""
    status = Path(f"/proc/{process}/statm")
    return int(status.read_text().split()[1]) * PAGE / 2**20 if status.exists() else 0.0


def arrays(file: Path, classes: int) -> Path:
    """Random images of 32 px, each class around a colour of its own."""
    generator = numpy.random.default_rng(0)
    labels = numpy.repeat(numpy.arange(classes), IMAGES)
    colours = generator.integers(40, 216, (classes, 1, 1, 3))
    images = colours[labels] + generator.integers(-30, 30, (len(labels), 32, 32, 3))
    pixels = images.clip(0, 255).astype(numpy.uint8)
    few = numpy.arange(len(labels)) % IMAGES < 2
    numpy.savez(file, x_train=pixels, y_train=labels, x_test=pixels[few], y_test=labels[few])
    return file


def checkpoint(toy: bool) -> list[Measurement]:
    """What the training waits for at a checkpoint, by a step, in twenty tasks of SD-LoRA that take a step each."""
    tasks = 2 if toy else 20
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        backbone = ["backbone=micro_vit"]
        if not toy:
            file = weights("vit_base_patch16_224", folder)
            backbone = ["backbone.name=vit_base_patch16_224", f"backbone.pretrained={file}", "backbone.image_size=96"]
        settings = ["method=sdlora", "method.rank=8", "train.epochs=1", f"evaluate.every={tasks}", "evaluate.limit=8"]
        once(command(folder, tasks, CLASSES, [*settings, *backbone]))
        seconds = json.loads((folder / "stream" / "result.json").read_text())["seconds"]
    detail = {"unit": "of a training step of 32 rows", "tasks": tasks, "seconds": seconds}
    return [Measurement("checkpoint", seconds["checkpoint"] / seconds["train"], 0.25, detail)]


def loader(toy: bool) -> list[Measurement]:
    """Batches from the memory-mapped cache, by training steps on as many rows."""
    sizes, repeats = (TOY, 2) if toy else (REAL, 7)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "images.npy"
        rows = 16 * sizes.batch
        pixels = numpy.random.default_rng(0).integers(0, 256, (rows, 3, sizes.pixels, sizes.pixels), dtype=numpy.uint8)
        numpy.save(file, pixels)
        mapped = torch.from_numpy(numpy.load(file, mmap_mode="r+"))
        examples = Examples.of(mapped, torch.zeros(rows, dtype=torch.long))
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(0)).split(sizes.batch)
        turns = iter(range(10**9))

        def read() -> None:
            examples.take(order[next(turns) % len(order)]).batch()

        seconds = medians({"read": read, "step": stepping(with_lora(sizes), sizes)}, repeats)
    detail = {"unit": "of a training step", "seconds": seconds, "reach_as_rate": 10}
    return [Measurement("loader", seconds["read"] / seconds["step"], 0.1, sizes.detail() | detail)]
