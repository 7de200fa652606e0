"""Which files a backbone's weights come from."""

from __future__ import annotations

from pathlib import Path

from benchmarks.models.backbones import is_vision
from benchmarks.models.config import MICRO_VIT, BackboneConfig
from benchmarks.models.weights import named_file


def weight_files(config: BackboneConfig) -> list[Path]:
    """In order of their names, once they are here; none where weights are drawn.

    Of a folder or a snapshot of the hub all safetensors files count, also one that would not be read.
    """
    if config.pretrained is False:
        return []
    if file := named_file(config):
        return [file]
    if not is_vision(config.name):
        from benchmarks.models import language

        place = language.located(config.name)
        folder = place if isinstance(place, Path) else snapshot(place, "config.json")
    else:
        from benchmarks.models import vision

        if config.name == MICRO_VIT:
            return [vision.MICRO_VIT_WEIGHTS]
        folder = snapshot(vision.hub_name(config.name), "model.safetensors")
    return sorted(folder.glob(config.gguf_file or "*.safetensors")) if folder else []


def snapshot(repository: str, file: str) -> Path | None:
    """The folder of the hub's cache that holds ``file`` of ``repository``; None where it was not fetched."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, file)
    return Path(found).parent if isinstance(found, str) else None
