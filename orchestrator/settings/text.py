"""Settings that mean text: names, paths, addresses, templates. They are taken as typed, whatever Hydra makes of it.

A path may hold spaces, brackets, commas or ``=``, and a name may be a number; in Hydra's grammar all of these mean
something else. Which settings are text follows from the types of their fields.
"""

from __future__ import annotations

import re
import types
import typing
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from orchestrator.settings.config import Experiment

BESIDE = {str, Path, bool, type(None)}  # what a field that means text may be too


def as_typed(setting: str) -> str:
    """``key=value`` in Hydra's grammar, with the value in quotes where the setting means text."""
    key, equals, value = setting.partition("=")
    meaning = text_fields().get(key)
    in_quotes = len(value) > 1 and value[0] in "'\"" and value[0] == value[-1]  # by who knows the grammar
    if not equals or meaning is None or value in meaning or in_quotes:
        return setting
    return f"{key}={quoted(value)}"


def as_yaml(value: str) -> list[Any] | dict[Any, Any] | None:
    """A list or mapping that Hydra's grammar has no place for, such as ``[C#, Fotos für Tim (1)]``; else None."""
    try:
        found = yaml.safe_load(value) if value.startswith(("[", "{")) else None
    except yaml.YAMLError:
        return None
    return found if isinstance(found, list | dict) else None


@cache
def text_fields() -> dict[str, tuple[str, ...]]:
    """Every setting that means text, with the words that mean something else in it."""
    return dict(fields_of(Experiment, ""))


def fields_of(model: type[BaseModel], prefix: str) -> typing.Iterator[tuple[str, tuple[str, ...]]]:
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from fields_of(annotation, f"{prefix}{name}.")
            continue
        members = set(members_of(annotation))
        if members & {str, Path} and members <= BESIDE:
            # Null is no value at all, as in name=null.
            yield prefix + name, ("null", "true", "false") if bool in members else ("null",)


def members_of(annotation: Any) -> tuple[Any, ...]:
    """The types of a union, or the one that is there."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if union else (annotation,)


def quoted(text: str) -> str:
    """Backslashes count as two in front of a quote, of the end, and of ``${``, which would refer to a setting."""
    text = re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + "\\${", text)
    return '"' + re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + found[2].replace('"', '\\"'), text) + '"'
