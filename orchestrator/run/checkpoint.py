"""Checkpoints of one run: safetensors and JSON, written beside and renamed, the last two kept.

    <run>/checkpoints/000003/tensors.safetensors, values.json, digests.json
    <run>/checkpoints/finished/000007.safetensors

What a finished task leaves and no later one changes has a file of its own and is written once, so that a checkpoint
costs the same however many tasks there were. ``digests.json`` has the SHA-256 of all files that belong to a checkpoint:
a damaged one is passed over for the one before it.

A checkpoint holds adapters, head, optimiser, method and search state, the position in the stream, and the matrices.
The frozen backbone is never written. The random numbers of a step depend on (seed, task, step) alone, so the position
is all that they need.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from orchestrator.settings.errors import UserError

logger = logging.getLogger(__name__)

KEEP = 2  # where the newest is damaged, a run can go on from the one before
TENSORS, VALUES, DIGESTS = "tensors.safetensors", "values.json", "digests.json"
FINISHED = re.compile(r"(?:^|\.)finished\.(\d+)\.")  # in the name of what a finished task has left for good


def save(run: Path, tensors: dict[str, Tensor], values: dict[str, Any]) -> Path:
    """Write the next checkpoint of ``run`` and drop those before the last two.

    ``values["finished"]`` counts the finished tasks whose files belong to it; of those that were written before,
    ``tensors`` has nothing.
    """
    folder = run / "checkpoints"
    found = numbered(folder)
    number = found[-1] + 1 if found else 1
    beside = folder / "new"  # a run has one writer; what a killed one left is replaced
    target = folder / f"{number:06d}"
    shutil.rmtree(beside, ignore_errors=True)
    with writable(run):
        beside.mkdir(parents=True)
        lasting = {name: int(match[1]) for name in tensors if (match := FINISHED.search(name))}
        written = [write_finished(folder, task, tensors, lasting) for task in sorted(set(lasting.values()))]
        write_tensors(beside / TENSORS, {name: tensors[name] for name in tensors.keys() - lasting.keys()})
        (beside / VALUES).write_text(json.dumps(values))
        before = known_digests(folder / f"{found[-1]:06d}") if found else {}
        write_digests(folder, beside, values.get("finished", 0), {n: d for n, d in before.items() if n not in written})
        # A rename is all or nothing: a kill at any point leaves whole checkpoints alone. Old ones go only afterwards.
        beside.rename(target)
    for old in found[: max(0, len(found) + 1 - KEEP)]:
        shutil.rmtree(folder / f"{old:06d}")
    return target


def write_digests(folder: Path, beside: Path, finished: int, known: dict[str, str]) -> None:
    """Of a checkpoint's own files, and of those of so many ``finished`` tasks, some of which are ``known``."""
    digests = {name: digest_of(beside / name) for name in (TENSORS, VALUES)}
    for name in map(finished_name, range(finished)):
        if (folder / name).exists():
            digests[name] = known.get(name) or digest_of(folder / name)
    (beside / DIGESTS).write_text(json.dumps(digests))


def write_finished(folder: Path, task: int, tensors: dict[str, Tensor], owners: dict[str, int]) -> str:
    """Write what ``task`` owns of the tensors; gives the name of the file.

    One that a killed start left of the same task is replaced: no checkpoint refers to it.
    """
    (folder / "finished").mkdir(exist_ok=True)
    write_tensors(folder / "new.safetensors", {name: tensors[name] for name, owner in owners.items() if owner == task})
    (folder / "new.safetensors").rename(folder / finished_name(task))
    return finished_name(task)


def write_tensors(file: Path, tensors: dict[str, Tensor]) -> None:
    # safetensors refuses tensors that are not contiguous.
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}, file)


def finished_name(task: int) -> str:
    return f"finished/{task:06d}.safetensors"


def digest_of(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def known_digests(folder: Path) -> dict[str, str]:
    """Those of a checkpoint, so that they need not be formed again; nothing where they cannot be read."""
    try:
        return digests_of(folder)
    except (OSError, ValueError):
        return {}


def digests_of(folder: Path) -> dict[str, str]:
    return {str(name): str(digest) for name, digest in json.loads((folder / DIGESTS).read_text()).items()}


class Writer:
    """Writes the checkpoints of ``run`` one after another beside the training, which waits for the copy alone.

    What went wrong with one is raised by the next call.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        # Threads of an executor are waited for when the process ends: a checkpoint that was begun is finished.
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.writing: Future[Path] | None = None

    def save(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """As ``save``, of the values that the tensors have now; ``values`` may not change any more."""
        self.wait()  # a second copy at a time would be memory for nothing
        copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        self.writing = self.thread.submit(save, self.run, copies, values)

    def wait(self) -> None:
        """Until what was saved is written."""
        if self.writing is not None:
            writing, self.writing = self.writing, None
            writing.result()

    def close(self) -> None:
        """Wait, and raise nothing: for the end of a run that may have failed already."""
        self.thread.shutdown()


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Turns errors of the file system, such as that of a full disk, into a UserError that names ``folder``."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{folder}: cannot be written to ({reason}); mend that, and the same command goes on where it stopped"
        ) from None


def load(run: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The tensors and values of the newest checkpoint that is whole, or None where there is none at all.

    Newer ones that are damaged are logged, and listed in ``values["damaged"]``. UserError where all of them are.
    """
    folder, damaged = run / "checkpoints", dict[str, str]()
    for number in reversed(numbered(folder)):
        try:
            tensors, values = read(folder, f"{number:06d}")
        except Exception as error:  # any kind of damage reads the same to a user
            damaged[f"{number:06d}"] = str(error)
            continue
        for name, why in damaged.items():
            logger.warning("%s: damaged checkpoint (%s); going on from the one before it", folder / name, why)
        return tensors, values | ({"damaged": damaged} if damaged else {})
    if damaged:
        name, why = next(iter(damaged.items()))
        raise UserError(
            f"{folder / name}: damaged checkpoint ({why}), and none before it is whole; put a copy back, or begin "
            "again with another name=…"
        )
    return None


def read(folder: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """One checkpoint; an error where one of its files is not what was written."""
    if not (folder / name / DIGESTS).exists():
        raise ValueError(f"it has no {DIGESTS}, as those of earlier versions")
    digests = digests_of(folder / name)
    own = {TENSORS: folder / name, VALUES: folder / name}
    files = {file: place / file for file, place in (dict.fromkeys(digests, folder) | own).items()}
    for known_as, file in files.items():
        if digest_of(file) != digests[known_as]:
            raise ValueError(f"{known_as if known_as in own else file} is not what was written")
    values = json.loads(files.pop(VALUES).read_text())
    tensors: dict[str, Tensor] = {}
    for file in files.values():
        tensors |= load_file(file)
    return tensors, values


def set_aside(run: Path, damaged: Iterable[str]) -> None:
    """Keep damaged checkpoints under names by which no start finds them."""
    folder = run / "checkpoints"
    for name in damaged:
        with writable(run):
            shutil.rmtree(folder / f"damaged-{name}", ignore_errors=True)
            (folder / name).rename(folder / f"damaged-{name}")


def numbered(folder: Path) -> list[int]:
    """Numbers of the finished checkpoints, in order."""
    return sorted(int(entry.name) for entry in folder.glob("[0-9]*") if entry.name.isdigit())


def write_json(file: Path, values: Any) -> None:
    """Write beside and rename, so that a reader never sees half a file; UserError where that fails."""
    with writable(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        # With the process in its name: a lost worker may still write while its successor does.
        beside = file.with_name(f"{file.name}.{os.getpid()}.new")
        beside.write_text(json.dumps(values, indent=1) + "\n")
        os.replace(beside, file)


def read_json(file: Path) -> Any:
    """The content, or None where there is no such file."""
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as error:
        raise UserError(f"{file}:{error.lineno}: not JSON ({error.msg}); repair or remove the file") from None
