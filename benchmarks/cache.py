"""What was decoded or tokenised once, on disk, for all runs of this machine.

A folder of the cache is named by what it was made from; it is made beside and renamed, under a lock, so that many
trials may ask for it at once and none ever sees half of it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from benchmarks.dataset import BenchmarkError

FULL = (errno.ENOSPC, errno.EDQUOT)


def cache_root() -> Path:
    """``EVERGREEN_CACHE``, else the user's cache folder."""
    if named := os.environ.get("EVERGREEN_CACHE"):
        return Path(named).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "evergreen" / "prepared"


def cached(kind: str, made_from: dict[str, Any], make: Callable[[Path], None]) -> tuple[Path, bool]:
    """The folder that ``make`` fills for ``made_from`` (plain JSON values), and whether it was made just now.

    BenchmarkError where the cache cannot be written or the disk is full.
    """
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:24]
    folder = cache_root() / f"{kind}-{digest}"
    if folder.exists():
        return folder, False
    check_writable(folder.parent)
    with FileLock(f"{folder}.lock"):
        # Another process may have made it while this one waited.
        if folder.exists():
            return folder, False
        make_whole(folder, make)
    return folder, True


def make_whole(folder: Path, make: Callable[[Path], None]) -> None:
    beside = folder.with_name(f"{folder.name}.new")
    # What a killed process left; the lock says that nobody works on it.
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    try:
        make(beside)
    except BaseException as error:  # an interruption too must not leave gigabytes behind
        shutil.rmtree(beside, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in FULL:
            raise unusable(folder.parent, error.strerror) from None
        raise
    beside.rename(folder)


def check_writable(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unusable(root, error.strerror) from None
    if not os.access(root, os.W_OK):
        raise unusable(root, "Permission denied")


def unusable(root: Path, reason: str | None) -> BenchmarkError:
    return BenchmarkError(f"{root}: the cache cannot be written ({reason}); name another folder with EVERGREEN_CACHE")
