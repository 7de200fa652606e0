"""What a sweep searches over: the entries of ``sweep.space``, read and checked before anything starts.

    [4, 8]                                       every value; a grid with the other lists
    {choice: [4, 8]}                             one of them, drawn
    {uniform: [0, 0.9]}, {uniform: [0, 1, 0.25]} a number, or one of those in steps of 0.25
    {loguniform: [1e-5, 1e-3]}                   a number whose logarithm is uniform
    {int: [1, 9]}, {int: [2, 16, 2]}             a whole number, both ends included, or in steps of 2
    {logint: [1, 64]}                            a whole number whose logarithm is uniform

Beside the kind, ``when: {setting: value or values}`` and ``unless:`` say for which values of other settings the entry
counts, and ``with: {value: {setting: value}}`` what else is set where one value is drawn.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from methods import method_class
from orchestrator.settings.compose import flattened, with_settings
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError

FORMS = "[a, b], {choice: [a, b]}, {uniform: [low, high]}, loguniform, int or logint"
RANGES = ("uniform", "loguniform", "int", "logint")
CONDITIONS = ("when", "unless", "with")
# Settings of the search itself, or of where things lie: a trial cannot change them.
OUTSIDE = ("name", "storage", "sweep", "tracking", "checkpoint", "scale")


@dataclass(frozen=True)
class Entry:
    """One dimension of the space; ``kind`` is grid, choice or a range, ``values`` its values or [low, high, step]."""

    key: str
    kind: str
    values: list[Any]
    when: dict[str, list[Any]] = field(default_factory=dict)
    unless: dict[str, list[Any]] = field(default_factory=dict)
    others: dict[str, dict[str, Any]] = field(default_factory=dict)

    def counts(self, settings: dict[str, Any]) -> bool:
        """Whether the entry is drawn, given the ``settings`` that were chosen before it and those that are fixed."""
        wanted = all(settings.get(key) in values for key, values in self.when.items())
        return wanted and not any(settings.get(key) in values for key, values in self.unless.items())

    def ends(self) -> list[Any]:
        return self.values[:2] if self.kind in RANGES else self.values

    def points(self) -> list[Any] | None:
        """All values of an entry that has finitely many, else None."""
        if self.kind not in RANGES:
            return self.values
        low, high, *step = self.values
        if self.kind == "logint" or (self.kind == "uniform" and not step) or self.kind == "loguniform":
            return None
        width = step[0] if step else 1
        points = [low + index * width for index in range(math.floor((high - low) / width + 1e-9) + 1)]
        return points if self.kind == "int" else [round(point, 12) for point in points]

    def chosen(self, value: Any) -> dict[str, Any]:
        """The settings that ``value`` stands for."""
        return {self.key: value} | self.others.get(str(value), {})


def space_of(experiment: Experiment) -> list[Entry]:
    """The entries of ``sweep.space``, else of the method's own, each behind those that its conditions name."""
    space = experiment.sweep.space or method_class(experiment.method.name).search_space()
    if not space:
        raise UserError("sweep.space: nothing to search over; say for example sweep.space.method.rank=[4,8]")
    return in_order([read_entry(experiment, key, value) for key, value in space.items()])


def read_entry(experiment: Experiment, key: str, value: Any) -> Entry:
    """One entry; UserError names it where it is none."""
    if key.partition(".")[0] in OUTSIDE:
        raise UserError(f"sweep.space.{key}: the same for all trials; search over settings of what is trained")
    kinds = {name: part for name, part in value.items() if name not in CONDITIONS} if isinstance(value, dict) else {}
    if isinstance(value, list) and value:
        return Entry(key, "grid", distinct(key, value))
    if len(kinds) != 1:
        raise UserError(f"sweep.space.{key}={value}: write {FORMS}")
    (kind, values), *_ = kinds.items()
    if kind in ("choice", "grid") and isinstance(values, list) and values:
        values = distinct(key, values)
    elif kind in RANGES and is_range(values, kind):
        kind = whole_kind(experiment, key, kind, values)
    else:
        raise UserError(f"sweep.space.{key}={value}: write {FORMS}")
    when, unless = (named_values(key, name, value.get(name, {})) for name in ("when", "unless"))
    return Entry(key, kind, values, when, unless, together(key, values, value.get("with", {})))


def distinct(key: str, values: list[Any]) -> list[Any]:
    if len({repr(value) for value in values}) < len(values):
        raise UserError(f"sweep.space.{key}={values}: name each value once")
    return values


def is_range(values: Any, kind: str) -> bool:
    """Two ordered numbers, and a step where there is one; positive for logarithms, whole for whole numbers."""
    numbers = isinstance(values, list) and len(values) in (2, 3)
    if not numbers or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        return False
    whole = all(isinstance(value, int) for value in values)
    steps = len(values) == 2 or (values[2] > 0 and not kind.startswith("log"))
    return values[0] < values[1] and steps and (values[0] > 0 or "log" not in kind) and (whole or "int" not in kind)


def whole_kind(experiment: Experiment, key: str, kind: str, values: list[Any]) -> str:
    """A range on a setting that takes whole numbers draws whole numbers."""
    if "int" in kind or not takes_whole_numbers(experiment, key):
        return kind
    if not all(isinstance(value, int) for value in values):
        raise UserError(f"sweep.space.{key}={{{kind}: {values}}}: takes whole numbers; write both ends so")
    return "int" if kind == "uniform" else "logint"


def takes_whole_numbers(experiment: Experiment, key: str) -> bool:
    *groups, last = key.split(".")
    model: Any = experiment
    for group in groups:
        model = getattr(model, group, None)
    declared = type(model).model_fields.get(last) if hasattr(type(model), "model_fields") else None
    annotation = declared.annotation if declared else None
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    members = typing.get_args(annotation) if union else (annotation,)
    plain = {typing.get_args(m)[0] if typing.get_origin(m) is typing.Annotated else m for m in members}
    return int in plain and float not in plain


def named_values(key: str, name: str, conditions: Any) -> dict[str, list[Any]]:
    if not isinstance(conditions, dict):
        raise UserError(f"sweep.space.{key}.{name}={conditions}: write {{setting: value}} or {{setting: [values]}}")
    return {other: value if isinstance(value, list) else [value] for other, value in conditions.items()}


def together(key: str, values: list[Any], others: Any) -> dict[str, dict[str, Any]]:
    """What is set with each value; keys are the values as text, as YAML and the command line write them."""
    known = {str(value) for value in values}
    well = isinstance(others, dict) and all(isinstance(changes, dict) for changes in others.values())
    if not well or not {str(value) for value in others} <= known:
        raise UserError(f"sweep.space.{key}.with={others}: write {{value: {{setting: value}}}} for some of {values}")
    return {str(value): flattened(changes) for value, changes in others.items()}


def in_order(entries: list[Entry]) -> list[Entry]:
    """Entries behind those that their conditions name; UserError for conditions that go in a circle."""
    ordered: list[Entry] = []
    waiting = list(entries)
    while waiting:
        open_keys = {entry.key for entry in waiting}
        free = [e for e in waiting if not open_keys & ({*e.when, *e.unless} - {e.key})]
        if not free or any(e.key in e.when or e.key in e.unless for e in waiting):
            raise UserError(f"sweep.space.{waiting[0].key}: its conditions go in a circle; leave one out")
        ordered += free
        waiting = [entry for entry in waiting if entry not in free]
    return ordered


def check_space(experiment: Experiment, entries: Sequence[Entry]) -> list[Experiment]:
    """The experiment at every end of every entry; UserError names an entry or a value that does not fit."""
    return [
        with_settings(experiment, context | entry.chosen(end))
        for entry in entries
        for context in [a_context(experiment, entries, entry)]
        for end in entry.ends()
    ]


def a_context(experiment: Experiment, entries: Sequence[Entry], entry: Entry) -> dict[str, Any]:
    """Settings under which the entry counts; UserError where the space has none."""
    fixed = flattened(experiment.model_dump(mode="json"))
    drawn = {other.key: other for other in entries}
    chosen: dict[str, Any] = {}
    for key in {**entry.when, **entry.unless}:
        if key not in drawn and key not in fixed:
            raise UserError(f"sweep.space.{entry.key}: its condition names {key}, which is no setting")
        if key in drawn:
            allowed = [v for v in drawn[key].points() or drawn[key].ends() if entry.counts(others_met(entry, key, v))]
            if not allowed:
                raise UserError(f"sweep.space.{entry.key}: its condition on {key} holds for none of its values")
            chosen |= a_context(experiment, entries, drawn[key]) | drawn[key].chosen(allowed[0])
    if not entry.counts(fixed | chosen):
        raise UserError(f"sweep.space.{entry.key}: its condition never holds; change it or leave the entry out")
    return chosen


def others_met(entry: Entry, key: str, value: Any) -> dict[str, Any]:
    """Settings that meet all conditions of ``entry`` but those on ``key``, which has ``value``."""
    return {other: values[0] for other, values in entry.when.items()} | {key: value}
