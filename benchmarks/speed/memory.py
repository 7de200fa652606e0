"""What sharding saves: the memory of a worker whose backbone is shared, and the peak while a backbone is loaded.

The frozen base is a ViT with random weights in a file. Memory is what a run's result says of its first worker, above
that of the same run with the micro ViT, which stands for an empty worker.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.speed.measure import PROJECT, Measurement, all_cores, once

TOY, REAL = "vit_tiny_patch16_224", ("vit_base_patch16_224", "vit_large_patch16_224")
MIB = 2**20
MAKE = """
import sys, timm
from safetensors.torch import save_file
model = timm.create_model(sys.argv[1], num_classes=0)
save_file({name: value.contiguous() for name, value in model.state_dict().items()}, sys.argv[2])
"""
LOAD = """
import sys
from pathlib import Path
from benchmarks.models import vision
from benchmarks.models.config import BackboneConfig
from benchmarks.models.deferred import filled

def memory(line):
    status = Path("/proc/self/status").read_text()
    return int(status.split(line)[1].split()[0]) / 1024

before = memory("VmRSS:")
model = filled(vision.load(BackboneConfig(name=sys.argv[1], pretrained=sys.argv[2]))[0])
print(memory("VmHWM:") - before)
"""


def worker_memory(toy: bool) -> list[Measurement]:
    """Of one worker, and of each of two FSDP2 workers that share the base."""
    found = []
    for name in (TOY,) if toy else REAL:
        with tempfile.TemporaryDirectory() as folder, all_cores():
            file = weights(name, Path(folder))
            backbone = [f"backbone.name={name}", f"backbone.pretrained={file}"]
            empty = peak(Path(folder), "empty", 1, ["backbone=micro_vit"])
            one, two = (peak(Path(folder), str(workers), workers, backbone) - empty for workers in (1, 2))
            detail = {"base_mib": file.stat().st_size / MIB, "one": one, "two": two, "empty": empty}
        found.append(Measurement("worker-memory", two / one, 0.6, {"unit": f"one worker, {name}"} | detail))
    return found


def loading_peak(toy: bool) -> list[Measurement]:
    """The peak in one process while a base is read, above what it took before."""
    name = TOY if toy else REAL[0]
    with tempfile.TemporaryDirectory() as folder:
        file = weights(name, Path(folder))
        base = file.stat().st_size / MIB
        found = subprocess.run(
            [sys.executable, "-c", LOAD, name, str(file)], cwd=PROJECT, capture_output=True, text=True, check=True
        )
    taken = float(found.stdout)
    return [
        Measurement("loading-peak", taken / base, 1.3, {"unit": "of the base", "base_mib": base, "peak_mib": taken})
    ]


def weights(name: str, folder: Path) -> Path:
    file = folder / f"{name}.safetensors"
    once([sys.executable, "-c", MAKE, name, str(file)])
    return file


def peak(folder: Path, name: str, workers: int, backbone: list[str]) -> float:
    """MiB of the first worker of a short run."""
    few = ["benchmark.classes=4", "benchmark.tasks=2", "benchmark.train_per_class=4", "benchmark.test_per_class=2"]
    sizes = ["train.epochs=1", "train.batch_size=2", "train.evaluation_batch_size=2", "scale.sharding=fsdp2"]
    places = [f"storage={folder}", f"name={name}", "tracking.enabled=false", f"scale.workers={workers}"]
    once([sys.executable, "run.py", "train", "method=lora", *few, *sizes, *places, *backbone])
    return float(json.loads((folder / name / "result.json").read_text())["peak_memory_bytes"]) / MIB
