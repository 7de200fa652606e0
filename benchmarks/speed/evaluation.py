"""What evaluation costs: by training in a stream of small text tasks, and by the bare backbone in one pass."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.speed.measure import Measurement, all_cores, medians, once
from benchmarks.speed.sdlora_models import REAL, TOY, Network, bare, batch, with_lora
from benchmarks.speed.texts import decoder, text_tasks


def evaluation(toy: bool) -> list[Measurement]:
    """Of a whole run by its training, and of plain LoRA by the backbone alone."""
    return [in_a_stream(toy), beside_the_backbone(toy)]


def in_a_stream(toy: bool) -> Measurement:
    """Twenty tasks of 450 rows to learn and 100 to test, one epoch."""
    tasks, train, test = (2, 20, 10) if toy else (20, 450, 100)
    with tempfile.TemporaryDirectory() as made, all_cores():
        folder = Path(made)
        model, data = decoder(folder / "model"), text_tasks(folder / "data", tasks, train, test)
        places = [f"benchmark.path={data}", f"backbone.name={model}", f"storage={folder}", "name=texts"]
        settings = ["method=lora", "train.epochs=1", "benchmark.text.length=128", "tracking.enabled=false"]
        once([sys.executable, "run.py", "train", "benchmark=jsonl_folder", *settings, *places])
        seconds = json.loads((folder / "texts" / "result.json").read_text())["seconds"]
    detail = {"unit": "of the seconds of training", "tasks": tasks, "train_rows": train, "test_rows": test}
    return Measurement("evaluation", seconds["evaluate"] / seconds["train"], 1.0, detail | {"seconds": seconds})


def beside_the_backbone(toy: bool) -> Measurement:
    """A batch without gradients."""
    sizes, repeats = (TOY, 2) if toy else (REAL, 15)
    images = batch(sizes)[0]
    networks = {"bare": bare(sizes), "lora": with_lora(sizes)}
    with torch.no_grad():
        seconds = medians({name: inferring(network, images) for name, network in networks.items()}, repeats)
    detail = {"unit": "of the bare backbone's", "seconds": seconds, "repeats": repeats}
    return Measurement("evaluation", seconds["lora"] / seconds["bare"], 1.02, sizes.detail() | detail)


def inferring(network: Network, images: Tensor) -> Callable[[], Tensor]:
    """A pass in evaluation; the first one is done already."""
    network.eval()
    network(images)
    return lambda: network(images)
