"""One worker with a limit on its memory: losses of a few steps on a ViT-L, or the line that refuses it.

    python -m tests.support.limited RANK WORLD MEBIBYTES FOLDER

The limit is what the process has once everything is imported, and MEBIBYTES more; 0 sets none.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.models import vision  # noqa: F401  imported before the limit is set
from benchmarks.stream import TaskStream
from orchestrator.run.learner import Learner
from orchestrator.run.session import read_stream
from orchestrator.run.sharding import Place
from orchestrator.settings.compose import load_experiment
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError

MIB = 2**20
STEPS = 3


def main(rank: int, world: int, mebibytes: int, folder: Path) -> None:
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world)
    rows = ["benchmark=split_digits", "benchmark.classes=4", "benchmark.tasks=2", "benchmark.train_per_class=8"]
    backbone = ["backbone.name=vit_large_patch16_224", f"backbone.pretrained={folder / 'vit.safetensors'}"]
    image = ["backbone.image_size=32", "head=linear", "method=lora", f"storage={folder}"]
    experiment = load_experiment([*rows, *backbone, *image, "name=limited"])
    stream = read_stream(experiment)
    if mebibytes:
        data = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (data + mebibytes * MIB, resource.RLIM_INFINITY))
    print(json.dumps(losses(experiment, stream, Place(rank, world, "fsdp2" if world > 1 else "none"))))


def losses(experiment: Experiment, stream: TaskStream, place: Place) -> list[float]:
    learner = Learner(experiment, stream, place, None)
    learner.begin_task(stream.tasks[0], STEPS)
    return [learner.step(torch.arange(4 * step, 4 * step + 4), step) for step in range(STEPS)]


if __name__ == "__main__":
    try:
        main(*map(int, sys.argv[1:4]), Path(sys.argv[4]))
    except UserError as error:
        print(f"error: {error}")
        sys.exit(2)
