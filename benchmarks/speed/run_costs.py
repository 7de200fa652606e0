"""What stays the same over a hundred tasks, what a checkpoint takes from a step, and how fast rows are read."""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy
import torch

from benchmarks.dataset import Examples
from benchmarks.speed.measure import Measurement, medians
from benchmarks.speed.sdlora_models import REAL, TOY, stepping, with_lora, with_sdlora
from orchestrator.run.checkpoint import Writer
from orchestrator.run.session import run_here
from orchestrator.settings.compose import load_experiment

CLASSES, IMAGES, ENDS = 5, 8, 10
PAGE = resource.getpagesize()


def growth(toy: bool) -> list[Measurement]:
    """Tasks of five classes and eight images a class; those at the end of the stream beside those at its start.

    Between evaluations of all seen tasks, which grow by their definition, the latest and the next one are scored.
    """
    tasks = 4 if toy else 100
    ends = min(ENDS, tasks // 2)
    ended: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        file = arrays(folder / "images.npz", tasks)
        data = ["benchmark=array", f"benchmark.path={file}", f"benchmark.tasks={tasks}", "method=treelora"]
        settings = ["train.epochs=2", f"evaluate.every={tasks}", "tracking.enabled=false", f"storage={folder}"]
        run_here(load_experiment([*data, *settings, "name=stream"]), lambda _: ended.append((time.time(), resident())))
    seconds, mebibytes = numpy.diff(numpy.array(ended), axis=0).T
    first, last = (float(numpy.median(part)) for part in (seconds[:ends], seconds[-ends - 1 : -1]))
    detail = {"unit": "a task at the end by one at the start", "tasks": tasks, "first": first, "last": last}
    return [Measurement("stream-growth", last / first, 1.1, detail | {"mib_a_task": float(mebibytes[ends:].mean())})]


def resident() -> float:
    """MiB that this process has now; 0 where the system does not say."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * PAGE / 2**20 if status.exists() else 0.0


def arrays(file: Path, tasks: int) -> Path:
    """Random images of 32 px, each class around a colour of its own."""
    generator = numpy.random.default_rng(0)
    labels = numpy.repeat(numpy.arange(CLASSES * tasks), IMAGES)
    colours = generator.integers(40, 216, (CLASSES * tasks, 1, 1, 3))
    images = colours[labels] + generator.integers(-30, 30, (len(labels), 32, 32, 3))
    pixels = images.clip(0, 255).astype(numpy.uint8)
    few = numpy.arange(len(labels)) % IMAGES < 2
    numpy.savez(file, x_train=pixels, y_train=labels, x_test=pixels[few], y_test=labels[few])
    return file


def checkpoint(toy: bool) -> list[Measurement]:
    """What a step waits for, with SD-LoRA's directions of twenty tasks, by a step."""
    sizes, repeats = (TOY, 2) if toy else (REAL, 5)
    network, method = with_sdlora(sizes, sizes.stored)
    step = stepping(network, sizes)
    tensors = method.state_dict() | {name: p for name, p in network.named_parameters() if p.requires_grad}
    with tempfile.TemporaryDirectory() as folder:
        writer = Writer(Path(folder))

        def save() -> None:
            writer.save(tensors, {"step": 0})

        seconds = {"step": medians({"step": step}, repeats)["step"], "save": waited(save, writer, repeats)}
        writer.close()
    size = sum(tensor.nbytes for tensor in tensors.values()) / 2**20
    detail = {"unit": "of a training step", "mebibytes": size, "seconds": seconds, "stored_tasks": sizes.stored}
    return [Measurement("checkpoint", seconds["save"] / seconds["step"], 0.25, sizes.detail() | detail)]


def waited(save: Callable[[], None], writer: Writer, repeats: int) -> float:
    """Median seconds of ``save``, each once the one before is written, as it is in a run."""
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        save()
        found.append(time.perf_counter() - began)
        writer.wait()
    return float(numpy.median(found))


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
