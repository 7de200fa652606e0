"""Folders of data, and how images are read from archives."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy
import torch
from PIL import Image
from torch import Tensor

from benchmarks.dataset import BenchmarkError, StreamConfig

LFS = b"version https://git-lfs.github.com/spec/"
POINTER = "only Git LFS's pointer to it is here; fetch it with git lfs pull"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def data_root() -> Path:
    """``EVERGREEN_DATA``, else ``../shared/data`` beside the project, else the user's cache folder."""
    if named := os.environ.get("EVERGREEN_DATA"):
        return Path(named).expanduser().resolve()
    if SHARED.is_dir():
        return SHARED
    return user_cache()


def models_root() -> Path:
    """``EVERGREEN_MODELS``, else ``../shared/models`` beside the project, else the user's cache folder."""
    if named := os.environ.get("EVERGREEN_MODELS"):
        return Path(named).expanduser().resolve()
    beside = SHARED.parent / "models"
    return beside if beside.is_dir() else user_cache() / "models"


def user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "evergreen"


def located(config: StreamConfig) -> Path:
    """``benchmark.path`` as it is, or inside the data folder; BenchmarkError says where to get it and put it."""
    if config.path is None:
        raise BenchmarkError("benchmark.path: name the file or folder to read, as in benchmark.path=images")
    for place in (config.path, data_root() / config.path):
        if place.exists():
            return place
    origin = (
        f"get it from {config.options['origin']} and put it there" if "origin" in config.options else "put it there"
    )
    raise BenchmarkError(
        f"benchmark.path={config.path}: not found, nor in the data folder {data_root()}; {origin}, "
        "or set EVERGREEN_DATA to the folder that has it"
    )


def refuse_path(config: StreamConfig) -> None:
    """For a source that knows where its data is."""
    if config.path is not None:
        raise BenchmarkError(
            f"benchmark.path={config.path}: {config.name} reads data of its own; leave it out, or choose a benchmark "
            "for yours: image_folder, array or jsonl_folder"
        )


def check_options(config: StreamConfig, *known: str) -> None:
    """Refuse ``benchmark.options`` that are not ``known``; ``origin``, where to get the data, every source takes."""
    for name in config.options:
        if name not in ("origin", *known):
            choice = f"choose one of {', '.join(known)}" if known else "it has none"
            raise BenchmarkError(f"benchmark.options.{name}: {config.source} has no such option; {choice}")


def is_pointer(file: Path) -> bool:
    """Whether Git LFS has left a few lines of text in the place of the file."""
    with file.open("rb") as opened:
        return opened.read(len(LFS)) == LFS


def read_image_zip(archive: Path, split: str) -> tuple[Tensor, Tensor]:
    """Decode ``{split}/CLASS/*`` of a zip: images [n, 3, height, width] uint8, labels [n] in class-name order."""
    with zipfile.ZipFile(archive) as opened:
        names = sorted(n for n in opened.namelist() if f"{split}/" in n and n.endswith(".JPEG"))
        classes = sorted({Path(n).parent.name for n in names})
        images = [decode(opened.read(name)) for name in names]
    labels = torch.tensor([classes.index(Path(n).parent.name) for n in names])
    return torch.from_numpy(numpy.stack(images)).permute(0, 3, 1, 2).contiguous(), labels


def decode(content: bytes) -> numpy.ndarray:
    return numpy.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
