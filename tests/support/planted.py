"""Small folders of images and texts in which every class is easy to tell, laid out as a user would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
from PIL import Image

COLOURS = {
    "ant": (200, 30, 30),
    "bee": (30, 180, 40),
    "cow": (40, 60, 210),
    "dog": (220, 200, 40),
    "emu": (120, 120, 120),
}
NOISE = ("a", "the", "likes", "sees", "eats", "big", "small")


def images(folder: Path, count: int) -> Path:
    """``count`` PNG files of 8 px, each different, in the colour of the class that the folder is named after."""
    folder.mkdir(parents=True)
    generator = numpy.random.default_rng(sum(map(ord, folder.name)) + count)
    for index in range(count):
        pixels = numpy.array(COLOURS[folder.name]) + generator.integers(-25, 26, (8, 8, 3))
        Image.fromarray(pixels.clip(0, 255).astype(numpy.uint8)).save(folder / f"{index:02}.png")
    return folder


def classes(root: Path, *names: str, count: int = 10) -> Path:
    """``root/CLASS/*.png``."""
    for name in names:
        images(root / name, count)
    return root


def labelled(marks: dict[str, str], count: int) -> list[dict[str, Any]]:
    """``count`` rows a label; ``marks`` gives the word that tells each label's texts among words without a meaning."""
    generator = numpy.random.default_rng(count)
    rows = []
    for index in range(count):
        for label, mark in marks.items():
            words = [str(word) for word in generator.choice(NOISE, 3)]
            words.insert(index % 4, mark)
            rows.append({"text": " ".join(words), "label": label})
    return rows


def answered(marks: dict[str, str], count: int) -> list[dict[str, Any]]:
    """The same with free answers."""
    return [{"prompt": row["text"], "answer": row["label"]} for row in labelled(marks, count)]


def text_task(folder: Path, train: list[dict[str, Any]], test: list[dict[str, Any]]) -> Path:
    """``folder/{train,test}.jsonl``."""
    folder.mkdir(parents=True)
    write_rows(folder / "train.jsonl", train)
    write_rows(folder / "test.jsonl", test)
    return folder


def write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
