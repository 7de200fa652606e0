"""Bring defaults, ``configs/`` and ``key=value`` settings together; errors name the setting and the way out."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, ValueType
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from benchmarks.dataset import SUBSET, BenchmarkError
from methods import method_class, method_names
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError
from orchestrator.settings.files import CONFIGS, GROUPS
from orchestrator.settings.text import as_typed, as_yaml

Model = TypeVar("Model", bound=BaseModel)
USUAL = ("micro_vit", "auto")  # a run's name leaves these out
TEXT_SOURCES, TEXT_BACKBONE = ("jsonl_folder", "hub_texts"), "minilm"  # the usual backbone reads images only
UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def load_experiment(settings: list[str], kind: str = "run") -> Experiment:
    """Compose and check an experiment; UserError for anything that is not right.

    ``kind`` (run or sweep) keeps the default names of a sweep and of a run with the same settings apart.
    """
    overrides = [parse(setting) for setting in settings]
    chosen = {o.key_or_group: str(o.value()) for o in overrides if o.key_or_group in GROUPS}
    for group, option in chosen.items():
        check_option(group, option)
    composed = composed_files(chosen)
    for override in overrides:
        if override.key_or_group not in GROUPS:
            assign(composed, override)
    try:
        data = OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {first_line(error)}") from None
    assert isinstance(data, dict)
    return checked({str(key): value for key, value in data.items()}, kind, chosen.get("method"))


def composed_files(chosen: dict[str, str]) -> Any:
    """The chosen files as one; a group on the command line replaces all that the chosen paper says of this group.

    Merged, a paper's settings for its own method or backbone would stay behind in another.
    """
    by_hand = [f"{group}={option}" for group, option in chosen.items() if group != "paper"]
    with initialize_config_dir(str(CONFIGS), version_base=None):
        composed = compose("experiment", overrides=by_hand)
        if composed.benchmark.source in TEXT_SOURCES and not {"backbone", "paper"} & chosen.keys():
            composed = compose("experiment", overrides=[*by_hand, f"backbone={TEXT_BACKBONE}"])
        if "paper" in chosen:
            plain = composed
            composed = compose("experiment", overrides=[*by_hand, f"paper@_global_={chosen['paper']}"])
            for group in chosen.keys() - {"paper"}:
                composed[group] = plain[group]
    OmegaConf.set_struct(composed, False)
    return composed


def parse(setting: str) -> Override:
    """``key=value`` in Hydra's grammar, or as typed where the value means text."""
    key = setting.split("=")[0]
    if "=" not in setting:
        raise UserError(f"{setting}: settings are written key=value{nearest(key, setting_names())}")
    try:
        override = OverridesParser.create().parse_override(as_typed(setting))
    except HydraException as error:
        if names := as_yaml(setting.partition("=")[2]):
            return Override(OverrideType.CHANGE, key, ValueType.ELEMENT, names, input_line=setting)
        raise UserError(f"{setting}: {first_line(error)}; quote values with spaces or brackets") from None
    if override.type is None or override.is_sweep_override() or override.is_delete() or override.is_add():
        raise UserError(f"{setting}: settings are written key=value; sweeps are set with sweep.space.{key}=[…]")
    return override


def assign(composed: Any, override: Override) -> None:
    """Set one value; the space of a sweep is keyed by dotted names."""
    key, value = override.key_or_group, override.value()
    try:
        if key.startswith("sweep.space."):
            space = OmegaConf.to_container(composed.sweep.get("space", OmegaConf.create({})))
            assert isinstance(space, dict)
            composed.sweep.space = space | {key.removeprefix("sweep.space."): value}
        else:
            OmegaConf.update(composed, key, value, merge=False)
    except (OmegaConfBaseException, AttributeError, TypeError) as error:
        raise UserError(f"{key}: no such setting ({first_line(error)}){nearest(key, setting_names())}") from None


def checked(data: dict[str, Any], kind: str = "run", option: str | None = None) -> Experiment:
    """Validate plain data as an Experiment; a name is made up where none is given, from the method's ``option``."""
    method = data.get("method")
    if not isinstance(method, dict):
        raise UserError("method: choose one as in method=treelora")
    if method.get("name") not in method_names():
        raise UserError(f"method={method.get('name')}: choose one of {', '.join(method_names())}")
    config = method_class(method["name"]).Config
    data["method"] = validated(config, method, "method.")
    data["name"] = data.get("name") or default_name(data, option) + ("-sweep" if kind == "sweep" else "")
    return validated(Experiment, data, "")


def default_name(data: dict[str, Any], option: str | None) -> str:
    """Method, benchmark, backbone, head, subset, what is evaluated and seeds; what is usual is left out.

    A number on a subset is never taken for one on all data.
    """
    benchmark = data.get("benchmark", {})
    parts = [option or data["method"].name, str(benchmark.get("name")), *model_parts(data)]
    parts += [f"{k.split('_')[0]}{benchmark[k]}" for k in SUBSET if benchmark.get(k)]
    evaluate = {"every": 1, "limit": None} | data.get("evaluate", {})
    parts += [f"every{evaluate['every']}"] if evaluate["every"] != 1 else []
    parts += [f"limit{evaluate['limit']}"] if evaluate["limit"] is not None else []
    parts += [f"order{data['order_seed']}"] if data.get("order_seed") is not None else []
    return "-".join([*parts, f"seed{data.get('seed', 0)}"])


def model_parts(data: dict[str, Any]) -> list[str]:
    """Backbone and head for a run's name; the usual ones are left out.

    Of a folder or a name on the hub the last part counts, of ``package:NAME/FOLDER`` the package.
    """
    backbone, head = str(data.get("backbone", {}).get("name")), str(data.get("head", {}).get("kind"))
    packaged = backbone.startswith("package:")
    short = backbone.removeprefix("package:").split("/")[0] if packaged else Path(backbone).name
    return [UNSAFE.sub("-", part) for part in (short, head) if part not in USUAL]


def validated(model: type[Model], data: dict[str, Any], prefix: str) -> Model:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise UserError(explain(error, model, prefix)) from None
    except BenchmarkError as error:
        raise UserError(str(error)) from None


def explain(error: ValidationError, model: type[BaseModel], prefix: str) -> str:
    """The first finding as one line."""
    finding = error.errors()[0]
    place = prefix + setting_in(model, finding["loc"])
    if finding["type"] == "extra_forbidden":
        known = [prefix + name for name in (*field_names(model), *model.model_fields)]
        return f"{place}: no such setting{nearest(place, known)}"
    if finding["type"] == "missing":
        return f"{place}: a value is missing"
    reason = finding["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if finding["type"] == "value_error" and isinstance(finding["input"], dict):  # the reason names the settings
        return f"{place.rstrip('.')}: {reason}"
    return (
        f"{place}={finding['input']}: should be {reason}"
        if "Input should" in finding["msg"]
        else (f"{place}={finding['input']}: {reason}")
    )


def setting_in(model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """The dotted name of a finding's place; what pydantic adds for the members of a union is left out."""
    names: list[str] = []
    inner: type[BaseModel] | None = model
    for part in location:
        names.append(str(part))
        field = inner.model_fields.get(str(part)) if inner else None
        inner = model_in(field.annotation) if field else None
        if inner is None:
            break
    return ".".join(names)


def field_names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings below ``model``."""
    for name, field in model.model_fields.items():
        inner = model_in(field.annotation)
        if inner is None:
            yield prefix + name
        else:
            yield from field_names(inner, f"{prefix}{name}.")


def model_in(annotation: Any) -> type[BaseModel] | None:
    options = typing.get_args(annotation) if typing.get_origin(annotation) in (typing.Union, types.UnionType) else ()
    found = [a for a in (annotation, *options) if isinstance(a, type) and issubclass(a, BaseModel)]
    return found[0] if found else None


def setting_names() -> list[str]:
    """Every setting of an experiment, those of all methods included."""
    names = [n for n in field_names(Experiment) if not n.startswith("method.")]
    for method in method_names():
        names += [f"method.{n}" for n in field_names(method_class(method).Config)]
    return [*names, *GROUPS]


def check_option(group: str, option: str) -> None:
    options = option_names(group)
    if option not in options:
        raise UserError(f"{group}={option}: choose one of {', '.join(options)}{nearest(option, options)}")


def option_names(group: str) -> list[str]:
    """The files of one folder of ``configs/``."""
    return sorted(file.stem for file in (CONFIGS / group).glob("*.yaml"))


def describe(group: str) -> dict[str, str]:
    """Option -> first comment line of its file."""
    return {
        name: (CONFIGS / group / f"{name}.yaml").read_text().splitlines()[0].lstrip("# ")
        for name in option_names(group)
    }


def nearest(name: str, names: list[str]) -> str:
    found = difflib.get_close_matches(name, names, 1, cutoff=0.5)
    return f"; did you mean {found[0]}?" if found else ""


def first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def flattened(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name; lists and empty groups stay values."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        inner = isinstance(value, dict) and bool(value)
        flat |= flattened(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return flat


def with_settings(experiment: Experiment, settings: dict[str, Any]) -> Experiment:
    """A copy with some settings changed, by dotted name; UserError where a value does not fit."""
    data = experiment.model_dump(mode="json")
    for key, value in settings.items():
        place: Any = data
        *groups, last = key.split(".")
        for group in groups:
            place = place.get(group) if isinstance(place, dict) else None
        if not isinstance(place, dict) or last not in place:
            raise UserError(f"sweep.space.{key}: no such setting{nearest(key, setting_names())}")
        place[last] = value
    return checked(data)
