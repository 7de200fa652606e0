"""What a shell offers for ``key=value``: groups with their files, and every setting with the values its type names.

Bash hands ``method=tr`` over as three words, zsh and fish as one. A shell puts a blank behind a word that is the only
one, so a name that is unique so far comes with its values: what they share is all that the shell then writes.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from orchestrator.settings.files import CONFIGS, GROUPS

PLAIN: dict[str, list[str]] = {
    "name": [],
    "seed": ["0"],
    "device": ["auto"],
    "order_seed": ["null"],
    "storage": ["runs"],
}  # with their defaults
SECTIONS = (
    "method.",
    "benchmark.",
    "backbone.",
    "head.",
    "train.",
    "scale.",
    "evaluate.",
    "checkpoint.",
    "tracking.",
    "sweep.",
)
SPACE = "sweep.space."


def offers(incomplete: str, environment: Mapping[str, str]) -> list[str]:
    """The words that may stand where ``incomplete`` does; in bash, behind a ``=``, the bare values."""
    key = bash_key(environment)
    if key is not None:
        return starting(incomplete, values(key))
    key, equals, _ = incomplete.partition("=")
    if equals:
        return starting(incomplete, (f"{key}={value}" for value in values(key)))
    found = names(incomplete)
    if len(found) == 1 and found[0].endswith("."):
        found = names(found[0])
    return written_out(found[0]) if len(found) == 1 else found


def bash_key(environment: Mapping[str, str]) -> str | None:
    """The key whose value is being typed, where bash has taken ``key=value`` apart."""
    words = environment.get("COMP_WORDS", "").split("\n")
    words = words[: int(environment.get("COMP_CWORD") or len(words)) + 1]
    for behind in (1, 2):
        if len(words) > behind and words[-behind] == "=":
            return words[-behind - 1]
    return None


def names(start: str) -> list[str]:
    """Settings that begin so, as ``key=``; without a dot yet also sections, as ``train.``, which need no import."""
    if "." not in start:
        return starting(start, [*(f"{name}=" for name in (*GROUPS, *PLAIN)), *SECTIONS])
    from orchestrator.settings.compose import setting_names

    space = SPACE if start.startswith(SPACE) else ""
    return starting(start, (f"{space}{name}=" for name in setting_names()))


def written_out(name: str) -> list[str]:
    """``key=`` with each value; the setting's own default is one where its type names none."""
    key = name.removesuffix("=")
    known = values(key) or defaults(key)
    return [*([name] if len(known) < 2 else []), *(f"{name}{value}" for value in known)]


def values(key: str) -> list[str]:
    """A group's files, or what the type of a setting lets it be where that can be counted."""
    if key in GROUPS:
        return sorted(file.stem for file in (CONFIGS / key).glob("*.yaml"))
    if key in PLAIN:
        return PLAIN[key]
    return distinct(value for field in fields(key) for value in choices(field.annotation))


def choices(annotation: Any) -> list[str]:
    """The values of a literal, of a truth value and of null, as the command line writes them."""
    if annotation is bool:
        return ["true", "false"]
    if annotation is types.NoneType:
        return ["null"]
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return [str(value).lower() if isinstance(value, bool) else str(value) for value in inner]
    if origin in (typing.Union, types.UnionType):
        return [value for option in inner for value in choices(option)]
    return []


def defaults(key: str) -> list[str]:
    """Defaults that are plain numbers, words or paths."""
    found = (field.default for field in fields(key))
    return distinct(str(value) for value in found if isinstance(value, (int, float, str, Path)))


def fields(key: str) -> list[FieldInfo]:
    """The field of a dotted setting; of ``method.<key>`` that of each method which has it."""
    if "." not in key:
        return []
    from methods import method_class, method_names
    from orchestrator.settings.config import Experiment

    if not key.startswith("method."):
        return field_in(Experiment, key)
    inner = key.removeprefix("method.")
    return [field for name in method_names() for field in field_in(method_class(name).Config, inner)]


def field_in(model: type[BaseModel] | None, key: str) -> list[FieldInfo]:
    """The field of a dotted name below ``model``, or nothing."""
    from orchestrator.settings.compose import model_in

    *groups, last = key.split(".")
    for group in groups:
        field = model.model_fields.get(group) if model else None
        model = model_in(field.annotation) if field else None
    found = model.model_fields.get(last) if model else None
    return [found] if found else []


def starting(start: str, words: Iterable[str]) -> list[str]:
    return distinct(word for word in words if word.startswith(start))


def distinct(words: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(words))
