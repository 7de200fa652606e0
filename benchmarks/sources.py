"""Where data lies, and how images are read from archives."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy
import torch
from PIL import Image
from torch import Tensor

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def data_root() -> Path:
    """``EVERGREEN_DATA``, else ``../shared/data`` beside the project, else the user's cache folder."""
    if named := os.environ.get("EVERGREEN_DATA"):
        return Path(named).expanduser().resolve()
    if SHARED.is_dir():
        return SHARED
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "evergreen"


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
