"""Folders of data that may come as an archive, unpacked once."""

from __future__ import annotations

import lzma
import os
import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from benchmarks.cache import cached
from benchmarks.dataset import BenchmarkError, StreamConfig
from benchmarks.sources import located

DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError)
GIB = 2**30
SAID_TO_BE_UTF8, MADE_ON_DOS = 0x800, 0  # of a zip's members: a flag, and the system


def data_folder(config: StreamConfig) -> Path:
    """``top_folder``, or what is in it alone: a single folder at the top is entered."""
    folder = top_folder(config)
    # Only a folder that has folders: the one class of a data set is not entered.
    while len(inside := folders(folder)) == 1 and folders(inside[0]):
        folder = inside[0]
    return folder


def top_folder(config: StreamConfig) -> Path:
    """``benchmark.path`` as a folder: an archive is unpacked."""
    place = located(config)
    return place if place.is_dir() else unpacked(place)


def folders(folder: Path) -> list[Path]:
    """The folders in ``folder``, sorted, without hidden ones and what macOS adds to a zip."""
    return sorted(f for f in folder.iterdir() if not f.name.startswith((".", "__MACOSX")) and f.is_dir())


def walked(folder: Path) -> list[Path]:
    """All that is below ``folder`` and no folder, but what is hidden; links are followed, in circles too only once."""
    found, entered = list[Path](), set[str]()
    for place, inner, names in os.walk(folder, followlinks=True, onerror=refuse):
        inner[:] = sorted(name for name in inner if not name.startswith((".", "__MACOSX")))
        real = os.path.realpath(place)
        if real in entered:
            inner[:] = []
            continue
        entered.add(real)
        found += [Path(place, name) for name in names if not name.startswith(".")]
    return found


def refuse(error: OSError) -> None:
    raise BenchmarkError(f"{error.filename}: cannot be read ({error.strerror}); mend its rights, or move it away")


def unpacked(archive: Path) -> Path:
    """A folder of the cache with what is in the zip or tar ``archive``."""
    if not (zipfile.is_zipfile(archive) or tarfile.is_tarfile(archive)):
        raise BenchmarkError(f"benchmark.path={archive}: neither a folder nor a whole zip or tar archive; get it again")
    found = archive.stat()
    made_from = {"archive": str(archive.resolve()), "bytes": found.st_size, "changed": found.st_mtime_ns}
    try:
        return cached("unpacked", made_from, lambda folder: unpack(archive, folder))[0]
    except DAMAGE as error:
        raise BenchmarkError(
            f"benchmark.path={archive}: cannot be unpacked ({error}); if it is damaged, get it again"
        ) from None


def unpack(archive: Path, folder: Path) -> None:
    if tarfile.is_tarfile(archive):
        with tarfile.open(archive) as opened:
            check_space(archive, sum(member.size for member in opened), folder)
            if hasattr(tarfile, "data_filter"):
                opened.extractall(folder, filter="data")  # refuses links and paths that lead out of the folder
            else:  # Python below 3.11.4
                opened.extractall(folder, plain_members(opened))
        return
    with zipfile.ZipFile(archive) as opened:
        check_space(archive, sum(member.file_size for member in opened.infolist()), folder)
        for member in opened.infolist():
            member.filename = own_name(member)
            # zipfile would quietly put such a name elsewhere inside the folder.
            if leads_out(member.filename):
                raise BenchmarkError(f"benchmark.path={archive}: {member.filename!r} in it would be written elsewhere")
            opened.extract(member, folder)


def check_space(archive: Path, size: int, folder: Path) -> None:
    """BenchmarkError where what the archive says that it holds does not fit: a small one may hold petabytes."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise BenchmarkError(
            f"benchmark.path={archive}: it holds {size / GIB:,.1f} GiB, and {free / GIB:,.1f} GiB are free for the "
            "cache; make room, or name another folder with EVERGREEN_CACHE"
        )


def own_name(member: zipfile.ZipInfo) -> str:
    """The name as it was given, with slashes between folders.

    Many programs write names in UTF-8 without saying so, and zipfile takes them for those of DOS; bytes of yet other
    encodings stay what they are, as in a folder.
    """
    name = member.filename
    if not member.flag_bits & SAID_TO_BE_UTF8:
        name = os.fsdecode(name.encode("cp437"))
    return name.replace("\\", "/") if member.create_system == MADE_ON_DOS else name


def plain_members(archive: tarfile.TarFile) -> list[tarfile.TarInfo]:
    """Files and folders that stay inside, with this user as owner; TarError for all else, every link included."""
    members = archive.getmembers()
    for member in members:
        if leads_out(member.name) or not (member.isfile() or member.isdir()):
            raise tarfile.TarError(f"{member.name!r} is a link or would be written elsewhere")
        member.mode = 0o755 if member.isdir() else 0o644
        # tarfile gives files to the archive's owner where root unpacks them.
        member.uid, member.gid, member.uname, member.gname = os.getuid(), os.getgid(), "", ""
    return members


def leads_out(name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts
