"""The lock on a folder, between real processes: one holds it at a time, and whoever is dead holds nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestrator.run import lock
from orchestrator.run.lock import LOCK, SILENCE, held
from orchestrator.settings.errors import UserError

HOLDS = """
import sys, time
from pathlib import Path
from orchestrator.run.lock import held
with held(Path(sys.argv[1]), "a sweep"):
    print("held", flush=True)
    time.sleep(1000)
"""


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds ``folder``."""
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def content(folder: Path) -> dict[str, Any]:
    return json.loads((folder / LOCK).read_text())


def plant(folder: Path, **changes: Any) -> None:
    """The lock of this process with some entries changed, as nobody holds it."""
    with held(folder, "a run"):
        found = content(folder)
    (folder / LOCK).write_text(json.dumps(found | changes))


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught, held(folder, "a run"):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


def age(folder: Path, seconds: float) -> None:
    changed = time.time() - seconds
    os.utime(folder / LOCK, (changed, changed))


def test_a_folder_that_another_process_holds_is_refused_with_its_name(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        before = (tmp_path / LOCK).read_bytes()
        found = content(tmp_path)
        assert refusal(tmp_path) == (
            f"{tmp_path}: a sweep is under way in process {process.pid} on {found['host']} since {found['since']} "
            f"(last sign 0 s ago); wait for it or stop it, or remove {tmp_path / LOCK} where it is surely gone"
        )
        assert (tmp_path / LOCK).read_bytes() == before and [f.name for f in tmp_path.iterdir()] == [LOCK]


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    """Not even while its number is kept for a parent that has not asked how it ended."""
    with holder(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with held(tmp_path, "a run"):
            assert content(tmp_path)["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt, SystemExit])
def test_it_is_given_back_however_the_work_ends(tmp_path: Path, error: type[BaseException] | None) -> None:
    folder = tmp_path / "runs" / "a"
    for _ in range(2):
        if error is None:
            with held(folder, "a run"):
                assert set(content(folder)) >= {"what", "host", "pid", "started", "since", "heartbeat"}
        else:
            with pytest.raises(error), held(folder, "a run"):
                raise error
        assert not list(folder.iterdir())


def test_the_number_of_a_living_process_is_not_enough(tmp_path: Path) -> None:
    plant(tmp_path)
    assert f"process {os.getpid()} on" in refusal(tmp_path)
    (tmp_path / LOCK).unlink()
    plant(tmp_path, started="1")
    with held(tmp_path, "a run"):
        assert content(tmp_path)["started"] != "1"


@pytest.mark.parametrize("elsewhere", [{"host": "node7"}, {"machine": "the same host before it was started again"}])
def test_an_owner_elsewhere_is_believed_until_it_was_silent_for_long(tmp_path: Path, elsewhere: dict[str, str]) -> None:
    """Its number means nothing here: a dead one is no sign."""
    plant(tmp_path, **elsewhere, pid=2**22 + 1)
    age(tmp_path, SILENCE - 60)
    assert f"process {2**22 + 1} on {elsewhere.get('host', '')}" in refusal(tmp_path)
    assert f"last sign {SILENCE - 60:.0f} s ago" in refusal(tmp_path)
    age(tmp_path, SILENCE + 1)
    with held(tmp_path, "a run"):
        assert content(tmp_path)["pid"] == os.getpid()


@pytest.mark.parametrize("text", ["", "[1]", '{"pid": 1}', '{"what": '])
def test_a_lock_without_an_owner_waits_as_one_from_elsewhere(tmp_path: Path, text: str) -> None:
    (tmp_path / LOCK).write_text(text)
    assert refusal(tmp_path).startswith(f"{tmp_path}: another process begins to work there (last sign 0 s ago); wait")
    age(tmp_path, SILENCE + 1)
    with held(tmp_path, "a run"):
        assert content(tmp_path)["pid"] == os.getpid()


CONTENDS = """
import os, sys
from pathlib import Path
from orchestrator.run.lock import held
from orchestrator.settings.errors import UserError
folder, inside = Path(sys.argv[1]), Path(sys.argv[2])
counts = {"held": 0, "refused": 0}
for turn in range(150):
    child = os.fork()
    if child == 0:
        try:
            with held(folder, "a run"):
                os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # fails where another one is inside
                inside.unlink()
                if turn % 3:
                    os._exit(0)  # as one that is killed: the lock stays
        except UserError:
            os._exit(1)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(2)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    counts[["held", "refused"][code]] += 1
print(counts["held"], counts["refused"])
"""


def test_of_many_that_find_a_dead_owner_one_follows_it(tmp_path: Path) -> None:
    """Two thirds of those that hold the lock die with it, so that nearly every turn is a race to follow a dead one."""
    folder, inside = tmp_path / "a", tmp_path / "inside"
    command = [sys.executable, "-c", CONTENDS, str(folder), str(inside)]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipe) for _ in range(4)]  # type: ignore[call-overload]
    told = [process.communicate() for process in processes]
    assert not any(errors for _, errors in told), told
    counts = [[int(count) for count in printed.split()] for printed, _ in told]
    assert sum(taken for taken, _ in counts) > 100 and sum(refused for _, refused in counts) > 0, counts


def test_one_that_died_while_it_followed_a_dead_one_is_followed_too(tmp_path: Path) -> None:
    plant(tmp_path, started="1")
    about = (tmp_path / LOCK).stat()
    following = tmp_path / f"{LOCK}.{about.st_ino}-{about.st_mtime_ns}"
    following.write_bytes((tmp_path / LOCK).read_bytes())
    with held(tmp_path, "a run"):
        assert content(tmp_path)["started"] != "1" and [f.name for f in tmp_path.iterdir()] == [LOCK]


def test_an_owner_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT", 0.05)
    with held(tmp_path, "a run"):
        first, size = content(tmp_path), (tmp_path / LOCK).stat().st_size
        age(tmp_path, SILENCE + 1)
        while content(tmp_path)["heartbeat"] == first["heartbeat"]:
            time.sleep(0.05)
        assert content(tmp_path) | {"heartbeat": ""} == first | {"heartbeat": ""}
        assert (tmp_path / LOCK).stat().st_size == size and time.time() - (tmp_path / LOCK).stat().st_mtime < SILENCE


@pytest.mark.parametrize("taken", [True, False])
def test_an_owner_that_lost_its_lock_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: bool) -> None:
    monkeypatch.setattr(lock, "BEAT", 0.05)
    (tmp_path / "new").write_text("another's")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start tests with it ignored, too

    def work() -> None:
        with held(tmp_path, "a run"):
            (tmp_path / "new").replace(tmp_path / LOCK) if taken else (tmp_path / LOCK).unlink()
            threading.Event().wait()  # as long as it takes: nothing but the signal ends it

    try:
        with pytest.raises(UserError, match=r"lock.json: removed, or taken over by another process, while a run was"):
            work()
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / LOCK).exists() == taken, "another's lock is left to it"


def test_both_ways_to_look_up_a_process_tell_the_living_from_the_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no /proc, ``ps`` tells."""
    exists = Path.exists
    for proc in (True, False):
        monkeypatch.setattr(Path, "exists", lambda path, seen=proc: seen and exists(path))
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
            began = lock.started(process.pid)
            assert began and began == lock.started(process.pid) != lock.started(1)
            process.kill()
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            assert lock.started(process.pid) is None
        assert lock.started(process.pid) is None


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert refusal(tmp_path / "file" / "a") == (
        f"{tmp_path / 'file' / 'a'}: cannot be written to (Not a directory); name another place"
    )
