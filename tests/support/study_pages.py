"""Results of two tasks made by hand, and the cells of the pages that studies make of results."""

from __future__ import annotations

import re
from html import unescape
from typing import Any


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def html_cells(html: str) -> list[list[str]]:
    """Every row of every table, its cells as text."""
    rows = re.findall(r"<tr>(.*?)</tr>", html, re.S)
    return [[unescape(one) for one in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S)] for row in rows]


def markdown_cells(markdown: str) -> list[list[str]]:
    lines = [line for line in markdown.splitlines() if line.startswith("|") and not line.startswith("| ---")]
    return [[one.replace(r"\|", "|") for one in cells(line)] for line in lines]


def made(method: str, *scores: float, seconds: float, seed: int = 0, **config: Any) -> dict[str, Any]:
    """A result of two tasks: score on both after the first and after the second, both validation scores."""
    one, ahead, left, two, known, other = scores
    settings = {"benchmark": {"name": "digits", "tasks": 2}, "train": {"epochs": 3, "batch_size": 8, "clip_norm": 1}}
    settings |= {"head": {"kind": "linear", "start": "zero"}, "order_seed": None, "method": {"name": method}}
    changed = {key: settings[key] | value if isinstance(value, dict) else value for key, value in config.items()}
    return {
        "method": method,
        "benchmark": settings["benchmark"]["name"],
        "scenario": "class",
        "seed": seed,
        "order_seed": None,
        "subset": {},
        "scores": ["accuracy"] * 2,
        "task_names": ["a", "b"],
        "config": settings | changed,
        "accuracy_matrix": [[one, ahead], [left, two]],
        "unmasked_matrix": [],
        "validation_matrix": [[None, None], [known, other]],
        "final_average_accuracy": (left + two) / 2,
        "average_anytime_accuracy": (one + (left + two) / 2) / 2,
        "forgetting": one - left,
        "backward_transfer": left - one,
        "peak_memory_bytes": 2**20,
        "seconds": {"train": seconds - 1, "method": 1.0, "evaluate": 5.0, "total": 60.0},
    }


FROZEN = [made("frozen", 0.5, 0, 0.5, 0.5, 0.4, 0.4, seconds=1, seed=seed) for seed in (0, 1)]
LORA = [
    made("lora", 0.9, 0, 0.2, 0.8, 0.3, 0.5, seconds=3),
    made("lora", 0.9, 0, 0.4, 0.8, 0.5, 0.7, seconds=5, seed=1),
]
TREE = [made("treelora", 0.9, 0, 0.6, 0.8, 0.6, 0.8, seconds=s, seed=s) for s in (6, 8)]
