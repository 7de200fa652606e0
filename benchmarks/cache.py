"""What was decoded or tokenised once, on disk, for all runs of this machine.

A folder of the cache is named by what it was made from; it is made beside and renamed, under a lock, so that many
trials may ask for it at once and none ever sees half of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock


def cache_root() -> Path:
    """``EVERGREEN_CACHE``, else the user's cache folder."""
    if named := os.environ.get("EVERGREEN_CACHE"):
        return Path(named).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "evergreen" / "prepared"


def cached(kind: str, made_from: dict[str, Any], make: Callable[[Path], None]) -> tuple[Path, bool]:
    """The folder that ``make`` fills for ``made_from`` (plain JSON values), and whether it was made just now."""
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:24]
    folder = cache_root() / f"{kind}-{digest}"
    if folder.exists():
        return folder, False
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.exists():
            return folder, False
        beside = folder.with_name(f"{folder.name}.new")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        try:
            make(beside)
        except BaseException:  # an interruption too must not leave gigabytes behind
            shutil.rmtree(beside, ignore_errors=True)
            raise
        beside.rename(folder)
    return folder, True
