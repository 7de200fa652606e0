"""The words that a person would type to get an experiment again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from orchestrator.settings.compose import load_experiment, option_names
from orchestrator.settings.config import Experiment
from orchestrator.settings.text import quoted

PLAIN = re.compile(r"[A-Za-z_/][\w./-]*")
MEANING = ("null", "true", "false", "nan", "inf", "none", "yes", "no", "on", "off")  # not text where they stand bare


def words_of(experiment: Experiment) -> list[str]:
    """``key=value`` for method, benchmark and all that differs from their defaults, without place and name."""
    parts = {"method": experiment.method.name, "benchmark": experiment.benchmark.name}
    named = [f"{group}={name}" for group, name in parts.items() if name in option_names(group)]
    usual = load_experiment(named).identity()
    return [*named, *(f"{key}={written(value)}" for key, value in differing(usual, experiment.identity()))]


def sweep_words_of(experiment: Experiment) -> list[str]:
    """The same of the settings of a sweep: the option of ``configs/sweep`` that they are nearest to, and the rest."""
    found = [words_from(option, experiment.sweep.model_dump(mode="json")) for option in option_names("sweep")]
    return min((words for words in found if words), key=len)


def words_from(option: str, wanted: dict[str, Any]) -> list[str]:
    """``wanted`` as what differs from one option; none where that has an entry of the space too many."""
    usual = load_experiment([f"sweep={option}"]).sweep.model_dump(mode="json")
    space, known = wanted["space"], usual.pop("space")
    if not known.keys() <= space.keys():
        return []
    further = {f"space.{key}": value for key, value in space.items() if known.get(key) != value}
    changed = [*differing(usual, {key: value for key, value in wanted.items() if key != "space"}), *further.items()]
    return [f"sweep={option}", *(f"sweep.{key}={written(value)}" for key, value in changed)]


def differing(usual: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in wanted.items():
        before = usual.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            yield from differing(before, value, f"{prefix}{key}.")
        elif key not in usual or value != before:
            yield prefix + key, value


def written(value: Any) -> str:
    """A value in Hydra's grammar, in which the keys of a mapping are not quoted."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{written(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    if isinstance(value, str):
        return value if PLAIN.fullmatch(value) and value.lower() not in MEANING else quoted(value)
    return json.dumps(value)
