"""Does it work on a GPU? One training, one that is stopped and goes on, and one on workers, beside the same on the CPU.

``python -m benchmarks.gpu_check`` prints a line for each and ends with 1 where one of them is not as it should be.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

PROJECT = Path(__file__).resolve().parents[1]
STREAM = ("benchmark=split_digits", "benchmark.tasks=3", "benchmark.train_per_class=60", "method=treelora")
REST = ("head=gaussian", "checkpoint.every=5", "tracking.enabled=false", "train.batch_size=16")
POINTS = 5.0  # how far the accuracy on a GPU may lie from that on the CPU: bf16, and sums in another order
PATIENCE = 300.0


class CheckError(RuntimeError):
    """Something is not as it should be; the message says what."""


def main(arguments: list[str] | None = None) -> int:
    """Every check, also after one that failed; 2 where there is no GPU."""
    parser = argparse.ArgumentParser("python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--without-workers", action="store_true", help="leave out the run on Ray's workers")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("error: torch finds no GPU here", file=sys.stderr)
        return 2
    print(f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for check in (training, going_on, *([] if options.without_workers else [on_workers])):
            try:
                print(f"{check.__name__}: {check(Path(folder))}", flush=True)
            except CheckError as error:
                failed += 1
                print(f"{check.__name__}: FAILED: {error}", flush=True)
    return int(failed > 0)


def training(storage: Path) -> str:
    """The same run on the CPU and on the GPU ends at about the same accuracy."""
    cpu, gpu = (train(storage, name, f"device={name}") for name in ("cpu", "cuda"))
    mine, other = (100 * result["final_average_accuracy"] for result in (gpu, cpu))
    if abs(mine - other) > POINTS:
        raise CheckError(f"accuracy {mine:.1f} % on the GPU, {other:.1f} % on the CPU")
    return f"{mine:.1f} % (CPU {other:.1f} %), {told(gpu)} (CPU {told(cpu)})"


def going_on(storage: Path) -> str:
    """A run that is stopped in its second task and goes on ends as one that was not."""
    whole = train(storage, "whole", "device=cuda", "train.epochs=8")
    process = subprocess.Popen(command(storage, "stopped", "device=cuda", "train.epochs=8"), cwd=PROJECT)
    until(lambda: at_task(storage / "stopped") >= 1 or process.poll() is not None)
    process.send_signal(signal.SIGTERM)
    if process.wait() != 128 + signal.SIGTERM:
        raise CheckError(f"it was not stopped in time, or did not end well (exit code {process.returncode})")
    reached = at_task(storage / "stopped")
    resumed = train(storage, "stopped", "device=cuda", "train.epochs=8")
    same = resumed["accuracy_matrix"] == whole["accuracy_matrix"]
    if not same and abs(resumed["final_average_accuracy"] - whole["final_average_accuracy"]) > POINTS / 100:
        raise CheckError(f"{resumed['accuracy_matrix']} and not {whole['accuracy_matrix']}")
    return f"stopped in task {reached}, then the matrix of an undisturbed run{'' if same else ' but for rounding'}"


def on_workers(storage: Path) -> str:
    """One FSDP2 worker for each GPU."""
    count = torch.cuda.device_count()
    result = train(storage, "workers", f"scale.workers={count}", "scale.sharding=fsdp2", "scale.gpus_per_worker=1")
    return f"{count} workers, {100 * result['final_average_accuracy']:.1f} %, {told(result)}"


def train(storage: Path, name: str, *settings: str) -> dict[str, Any]:
    ended = subprocess.run(command(storage, name, *settings), cwd=PROJECT, capture_output=True, text=True)
    if ended.returncode:
        raise CheckError(f"{name}: exit code {ended.returncode}: {ended.stderr.strip()[-600:]}")
    result: dict[str, Any] = json.loads((storage / name / "result.json").read_text())
    return result


def command(storage: Path, name: str, *settings: str) -> list[str]:
    return [sys.executable, "run.py", "train", *STREAM, *REST, *settings, f"name={name}", f"storage={storage}"]


def at_task(run: Path) -> int:
    file = run / "progress.json"
    return int(json.loads(file.read_text())["task"]) if file.exists() else 0


def until(reached: Callable[[], bool]) -> None:
    patience = time.monotonic() + PATIENCE
    while not reached():
        if time.monotonic() > patience:
            raise CheckError(f"nothing happened for {PATIENCE:.0f} s")
        time.sleep(0.05)


def told(result: dict[str, Any]) -> str:
    return f"{result['seconds']['total']:.1f} s, {result['peak_memory_bytes'] / 2**20:.0f} MiB"


if __name__ == "__main__":
    sys.exit(main())
