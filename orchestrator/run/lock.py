"""One process at a time works in the folder of a run, a sweep or a study: ``lock.json`` there names it.

A lock dies with its owner. On its own machine the owner is looked up, by the time at which it began too, as numbers of
processes come again; of an owner elsewhere the lock's own age tells, which it renews all the time. All of this needs
no more of the file system than that a new file is made, and another renamed, by one process alone: so does NFS.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from tempfile import NamedTemporaryFile

from orchestrator.settings.errors import UserError

LOCK = "lock.json"  # all files of this module begin with it
BEAT = 15.0  # seconds between two signs of life
# Seconds after which an owner elsewhere counts as dead. One that swaps, or whose file server is started again, may be
# silent for a minute or two; who goes on after a machine was lost has to wait this long.
SILENCE = 180.0


@dataclass(frozen=True)
class Owner:
    """The content of ``lock.json``."""

    what: str
    host: str
    machine: str
    pid: int
    started: str | None
    since: str
    heartbeat: str  # always as long as the last one: it is written over it

    def content(self) -> bytes:
        return (json.dumps(asdict(self), indent=1) + "\n").encode()


@contextmanager
def held(folder: Path, what: str) -> Iterator[None]:
    """Hold the folder, which is made where there is none, while ``what`` ("a run") is under way there.

    UserError where another process holds it, and where the lock was lost meanwhile: that interrupts the main thread.
    """
    file = folder / LOCK
    owner = Owner(what, socket.gethostname(), machine(), os.getpid(), started(os.getpid()), now(), now())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = take(file, owner)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to ({error.strerror}); name another place") from None
    lost = threading.Event()
    try:
        with beating(file, lock, owner, lost):
            yield
    except KeyboardInterrupt:
        if not lost.is_set():
            raise
    finally:
        if is_ours(file, lock):
            file.unlink()
        os.close(lock)
    if lost.is_set():
        raise UserError(
            f"{file}: removed, or taken over by another process, while {what} was under way, which has ended here; "
            "the same command goes on when no other process works there"
        )


def take(file: Path, owner: Owner) -> int:
    """Make ``file`` and return it open; UserError where it has an owner that lives."""
    try:
        made = os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
    except FileExistsError:
        return take_over(file, owner)
    try:
        os.write(made, owner.content())
        os.fsync(made)
    except OSError:  # as on a full disk
        file.unlink()
        raise
    return made


def take_over(file: Path, owner: Owner) -> int:
    """The same where ``file`` was there just now, of an owner that may be dead.

    Of several that find it so, the one goes on that makes the next file, whose name only this state of ``file`` gives;
    and if it dies there, its next file is taken over alike.
    """
    try:
        found, about = read(file)
    except FileNotFoundError:  # given back meanwhile
        return take(file, owner)
    refuse_living(file, found, about)
    following = file.with_name(f"{file.name}.{about.st_ino}-{about.st_mtime_ns}")
    lock = take(following, owner)
    # From here on only this process may replace that state. It may be gone, for one that was faster.
    if state(file) == (about.st_ino, about.st_mtime_ns):
        os.replace(following, file)
        return lock
    following.unlink()
    os.close(lock)
    return take(file, owner)


def read(file: Path) -> tuple[Owner | None, os.stat_result]:
    """The owner, None where it has not written its name, and the state of the file in which it stood there."""
    with file.open("rb") as opened:
        about = os.fstat(opened.fileno())
        try:
            return Owner(**json.loads(opened.read())), about
        except (TypeError, ValueError):
            return None, about


def refuse_living(file: Path, owner: Owner | None, about: os.stat_result) -> None:
    with NamedTemporaryFile(dir=file.parent, prefix=f"{LOCK}.") as probe:
        # By the clock of the file server, as the lock's: those of two machines may differ by minutes.
        age = max(0.0, os.fstat(probe.fileno()).st_mtime - about.st_mtime)
    if owner and (owner.host, owner.machine) == (socket.gethostname(), machine()):
        living = owner.started is not None and started(owner.pid) == owner.started
    else:
        living = age < SILENCE
    if living:
        who = f"{owner.what} is under way in process {owner.pid} on {owner.host} since {owner.since}" if owner else ""
        raise UserError(
            f"{file.parent}: {who or 'another process begins to work there'} (last sign {age:.0f} s ago); "
            f"wait for it or stop it, or remove {file} where it is surely gone"
        )


@contextmanager
def beating(file: Path, lock: int, owner: Owner, lost: threading.Event) -> Iterator[None]:
    """Give signs of life meanwhile; where the lock is ``lost``, interrupt the main thread if this is it."""
    over = threading.Event()
    interrupts = threading.current_thread() is threading.main_thread()

    def beat() -> None:
        while not over.wait(BEAT):
            # A file server may be away for a while: a later sign finds out whose the lock is.
            with suppress(OSError):
                if not is_ours(file, lock):
                    lost.set()
                    break
                os.pwrite(lock, replace(owner, heartbeat=now()).content(), 0)
        if lost.is_set() and interrupts:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)  # wakes it where it waits, too

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def is_ours(file: Path, lock: int) -> bool:
    return state(file)[0] == os.fstat(lock).st_ino


def state(file: Path) -> tuple[int, int]:
    """What changes with the file's owner, or with a sign of it; of no file, zeros."""
    try:
        about = file.stat()
    except FileNotFoundError:
        return 0, 0
    return about.st_ino, about.st_mtime_ns


def now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def machine() -> str:
    """Within what the number of a process means something: Linux since its start, and there the container."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # elsewhere the host's name has to do
        return ""


def started(pid: int) -> str | None:
    """When the process began, in the system's own terms; None where there is none, or one that has ended."""
    if Path("/proc/self/stat").exists():
        try:
            # The name of the program, in brackets, may hold anything; behind it stand state and, 19 later, the time.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else fields[19]
    told = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True).stdout
    status, _, began = told.strip().partition(" ")
    return None if not began or status.startswith("Z") else began.strip()
