"""A safetensors file of weights that the user names."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError

from benchmarks.dataset import BenchmarkError
from benchmarks.models.config import BackboneConfig
from benchmarks.models.tensor_files import StoredTensor, stored_tensors
from benchmarks.sources import POINTER, is_pointer, models_root


def named_file(config: BackboneConfig) -> Path | None:
    """The file of ``backbone.pretrained``, here or in the model folder; None where it is true or false."""
    if not isinstance(config.pretrained, Path):
        return None
    for place in (config.pretrained, models_root() / config.pretrained):
        if place.is_file():
            return place
    raise BenchmarkError(
        f"backbone.pretrained={config.pretrained}: no such file, nor in the model folder {models_root()}; "
        "name a safetensors file or say false"
    )


def read_weights(file: Path) -> dict[str, StoredTensor]:
    """All tensors of a safetensors file, where they are; BenchmarkError for any other file, pickles among them."""
    if is_pickle(file):
        code = f"save_file(torch.load({file.name!r}, weights_only=True), {file.stem + '.safetensors'!r})"
        raise BenchmarkError(
            f"backbone.pretrained={file}: a file of torch.save, which may run code when it is read; convert it with "
            f"safetensors.torch.{code}"
        )
    if is_pointer(file):
        raise BenchmarkError(f"backbone.pretrained={file}: {POINTER}")
    try:
        return stored_tensors([file])
    except SafetensorError as error:
        raise BenchmarkError(f"backbone.pretrained={file}: not a safetensors file ({error})") from None


def is_pickle(file: Path) -> bool:
    """Whether torch wrote it: as a zip, or in the old form as a bare pickle."""
    with file.open("rb") as opened:
        return opened.read(2) in (b"PK", b"\x80\x02")
