"""The records of the suite as a page of Markdown: each value beside what it has to reach, and where it was measured."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

Record = dict[str, Any]
HEAD = """# Speed

Ratios of medians, both sides measured in turns in one run; a case holds where its value is at most what to reach says.
Machine: {machine}.

| case | what | value | to reach | holds |
| --- | --- | ---: | ---: | --- |
"""
TAIL = "\nRepeat with `python -m benchmarks.speed --json speed.json --page docs/speed.md`.\n"


def writable_file(text: str) -> Path:
    """For an option that names a file to write: ArgumentTypeError, before anything is measured, where it cannot be."""
    file = Path(text)
    if not file.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{file}: there is no folder {file.parent}; make it first")
    return file


def measuring(module: str, description: str) -> argparse.ArgumentParser:
    """The options of a command that measures and writes a page."""
    result = argparse.ArgumentParser(f"python -m {module}", description=description)
    result.add_argument("--page", type=writable_file, metavar="FILE", help="write Markdown there")
    result.add_argument("--toy", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    return result


def put(text: str, file: Path | None) -> None:
    """Into the file, or where none is named to the terminal."""
    if file:
        file.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)


def page(records: list[Record]) -> str:
    """A row for each measurement."""
    lines = [
        f"| {record['case']} | {what(record['detail'])} | {number(record['value'])} | {number(record['reach'])} | "
        f"{'yes' if record['holds'] else '**no**'} |"
        for record in records
    ]
    return HEAD.format(machine=machine()) + "\n".join(lines) + "\n" + TAIL


def what(detail: Record) -> str:
    return str(detail.get("quantity") or detail.get("unit") or "").replace("|", "/")


def number(value: float) -> str:
    return f"{value:.3g}"


def machine() -> str:
    """Processor, cores and torch, as far as the system tells."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    return f"{processor}, {os.cpu_count()} cores, torch {torch.__version__}"
