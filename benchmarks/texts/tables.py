"""Files of rows: JSON lines, a JSON list, CSV, TSV and Parquet, each also compressed; UTF-8, or UTF-16 with its mark.

Every reader gives each row with its place. A row that cannot be read is a RowError in its stead, and a file that
cannot be read a BenchmarkError.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import re
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.dataset import BenchmarkError
from benchmarks.sources import LFS, POINTER
from benchmarks.texts.rows import FIELDS, FORMS, RowError

Found = list[tuple[str, object]]

MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
MANY_ZEROS = 0.2  # of the bytes: text of Latin letters in UTF-16 has half
NUMBER = re.compile(r"-?[1-9]\d{0,17}|0", re.ASCII)
ESCAPED = re.compile("[\udc80-\udcff]")  # bytes that were no UTF-8


def read_rows(content: bytes, name: str, place: str) -> Found:
    """The rows of a file's ``content``, by the endings of its ``name``; ``place`` is what messages call it."""
    if content.startswith(LFS):
        raise BenchmarkError(f"{place}: {POINTER}")
    ending, *packed = reversed(name.lower().split(".")[1:])
    if ending in PACKED:
        content, ending = unpacked(content, ending, place), packed[0]
    return READERS[ending](content if ending == "parquet" else as_utf8(content, place), place)


def unpacked(content: bytes, ending: str, place: str) -> bytes:
    try:
        return PACKED[ending](content)
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise BenchmarkError(f"{place}: cannot be decompressed ({error}); get it again") from None


def zstandard(content: bytes) -> bytes:
    import pyarrow  # comes with datasets; Python has this only from 3.14 on

    return bytes(pyarrow.CompressedInputStream(io.BytesIO(content), "zstd").read())


def as_utf8(content: bytes, place: str) -> bytes:
    """Without a byte order mark, which Windows writes and readers refuse; UTF-16 is read by its mark."""
    for mark, encoding in MARKS.items():
        if content.startswith(mark):
            try:
                return content.removeprefix(mark) if encoding == "utf-8-sig" else content.decode(encoding).encode()
            except UnicodeError as error:
                raise BenchmarkError(f"{place}: not whole UTF-16 ({error}); save it as UTF-8") from None
    if content.count(0) > MANY_ZEROS * len(content):
        raise BenchmarkError(f"{place}:1: not UTF-8, likely UTF-16 without its mark; save it as UTF-8")
    return content


def likely(content: bytes) -> str:
    """The encoding that bytes which are no UTF-8 may have: letters with accents stand alone, others in words."""
    runs = re.findall(rb"[\x80-\xff]+", content)
    western = sum(map(len, runs)) < 2 * len(runs)
    return "likely Windows-1252" if western else "likely Windows-1251, GB18030, Shift JIS or their likes"


def json_lines(content: bytes, place: str) -> Found:
    """Every line that is not blank, with its number."""
    # As bytes: text splits at U+2028 too, which JSON allows inside a string, and one bad byte would spoil all lines.
    lines = enumerate(content.split(b"\n"), 1)
    return [(f"{place}:{number}", parsed(line)) for number, line in lines if line.strip()]


def json_list(content: bytes, place: str) -> Found:
    """The entries of one JSON list, with their numbers."""
    if not content.strip():
        return []
    entries = whole(content, place, once)
    if not isinstance(entries, list):
        raise BenchmarkError(f"{place}: not a JSON list; put one line for each row into a .jsonl file instead")
    return [(f"{place}: entry {number}", entry) for number, entry in enumerate(entries, 1)]


def parsed(line: bytes) -> object:
    """One line of JSON, or a RowError that says what is wrong."""
    try:
        return json.loads(line.decode(), object_pairs_hook=once)
    except UnicodeDecodeError as error:
        return RowError(f"not UTF-8 (byte {error.start + 1} of the line), {likely(line)}")
    except json.JSONDecodeError as error:
        return RowError(f"not JSON ({error.msg} at column {error.colno})")
    # A number of over 4,300 digits, or brackets nested too deep.
    except (ValueError, RecursionError) as error:
        return RowError(f"not JSON ({error})")


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any] | RowError:
    """A JSON object; a RowError in its stead where a field is there twice, of which json would keep the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        return RowError(f"the field {twice!r} is there twice")
    return found


def whole(content: bytes, place: str, as_object: Callable[[list[tuple[str, Any]]], object] = dict) -> Any:
    """A whole file of JSON; BenchmarkError names the line."""
    try:
        return json.loads(content.decode(), object_pairs_hook=as_object)
    except UnicodeDecodeError as error:
        line, reason = content[: error.start].count(b"\n") + 1, f"not UTF-8, {likely(content)}"
    except json.JSONDecodeError as error:
        line, reason = error.lineno, f"not JSON ({error.msg})"
    except (ValueError, RecursionError) as error:
        line, reason = 1, f"not JSON ({error})"
    raise BenchmarkError(f"{place}:{line}: {reason}; correct the file")


def read_json(file: Path, shown: Path) -> Any:
    return whole(as_utf8(file.read_bytes(), str(shown)), str(shown))


def commas(content: bytes, place: str) -> Found:
    """Between commas, or what spreadsheets write elsewhere: the one of them that gives the wanted columns."""
    for delimiter in ",;\t":
        if is_form(columns(content.split(b"\n")[0].decode(errors="replace").split(delimiter), '"')):
            return separated(content, place, delimiter)
    return separated(content, place, ",")


def tabs(content: bytes, place: str) -> Found:
    return separated(content, place, "\t")


def separated(content: bytes, place: str, delimiter: str) -> Found:
    """Rows below a header, with the number of their first line; quotes around a cell as spreadsheets write them."""
    csv.field_size_limit(sys.maxsize)
    text = content.decode(errors="surrogateescape")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    found: Found = []
    names: list[str] | None = None
    line = 1
    try:
        for cells in reader:
            if cells and names is None:
                names = checked(columns(cells), place)
            elif cells and names is not None:
                found.append((f"{place}:{line}", as_fields(names, cells, delimiter)))
            line = reader.line_num + 1
    except csv.Error as error:
        raise BenchmarkError(
            f"{place}:{line}: the quotes do not fit ({error}); write a quote inside a quoted cell twice"
        ) from None
    return with_numbers(found)


def with_numbers(found: Found) -> Found:
    """Labels as numbers where all are: a table has text alone."""
    rows = [fields for _, fields in found if isinstance(fields, dict) and "label" in fields]
    if all(NUMBER.fullmatch(fields["label"]) for fields in rows):
        for fields in rows:
            fields["label"] = int(fields["label"])
    return found


def columns(cells: list[str], quote: str = "") -> list[str]:
    return [cell.strip().strip(quote).lower() for cell in cells]


def is_form(names: list[str]) -> bool:
    return any(form <= set(names) for form in FIELDS)


def checked(names: list[str], place: str) -> list[str]:
    if not is_form(names) or any(names.count(name) > 1 for form in FIELDS for name in form):
        there = ", ".join(names)
        raise BenchmarkError(f"{place}: the columns are {there}; they need to have {FORMS}, once each")
    return names


def as_fields(names: list[str], cells: list[str], delimiter: str) -> object:
    """A row by its column names, or a RowError."""
    if ESCAPED.search("".join(cells)):
        return RowError(f"not UTF-8, {likely(delimiter.join(cells).encode(errors='surrogateescape'))}")
    if len(cells) != len(names):
        return RowError(f"{len(cells)} cells for {len(names)} columns")
    return dict(zip(names, cells, strict=True))


def parquet(content: bytes, place: str) -> Found:
    import pyarrow.parquet  # takes long to import, and few need it

    try:
        table = pyarrow.parquet.ParquetFile(io.BytesIO(content), pre_buffer=False)
        wanted = [name for name in table.schema_arrow.names if any(name.lower() in form for form in FIELDS)]
        names = checked(columns(wanted or list(table.schema_arrow.names)), place)
        rows = table.read(columns=wanted, use_threads=False).to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BenchmarkError(f"{place}: cannot be read as Parquet ({reason}); get it again") from None
    return [(f"{place}: row {n}", dict(zip(names, row.values(), strict=True))) for n, row in enumerate(rows, 1)]


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.decompress,
    "bz2": bz2.decompress,
    "xz": lzma.decompress,
    "zst": zstandard,
}
READERS: dict[str, Callable[[bytes, str], Found]] = {
    "jsonl": json_lines,
    "ndjson": json_lines,
    "json": json_list,
    "csv": commas,
    "tsv": tabs,
    "parquet": parquet,
}
