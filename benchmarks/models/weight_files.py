"""Which files a backbone's weights come from."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.models.backbones import is_vision
from benchmarks.models.config import MICRO_VIT, BackboneConfig
from benchmarks.models.weights import named_file

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


def weight_files(config: BackboneConfig) -> list[Path]:
    """In order of their names, once they are here; none where weights are drawn."""
    if config.pretrained is False:
        return []
    if file := named_file(config):
        return [file]
    if config.name == MICRO_VIT:
        from benchmarks.models import vision

        return [vision.MICRO_VIT_WEIGHTS]
    folder = weight_folder(config)
    if folder is None:
        return []
    return [folder / config.gguf_file] if config.gguf_file else files_of_model(folder)


def weight_folder(config: BackboneConfig) -> Path | None:
    """A local model's own, or that of the hub's cache; None where nothing was fetched yet."""
    if is_vision(config.name):
        from benchmarks.models import vision

        return snapshot(vision.hub_name(config.name), SINGLE)
    from benchmarks.models import language

    place = language.located(config.name)
    return place if isinstance(place, Path) else snapshot(place, "config.json")


def snapshot(repository: str, file: str) -> Path | None:
    """The folder of the hub's cache that holds ``file`` of ``repository``."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, file)
    return Path(found).parent if isinstance(found, str) else None


def files_of_model(folder: Path) -> list[Path]:
    """Those that transformers would read: the single one, else the parts that the index names."""
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    if not (folder / INDEX).exists():
        return []
    return [folder / name for name in sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))]
