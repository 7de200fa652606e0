"""A study that is typed instead of written to a file: what is compared, and the settings of all rows.

    run.py compare methods=[lora,treelora] seeds=[0,1,2] benchmark=split_digits head=gaussian

Every combination of ``methods``, ``heads`` and ``backbones`` is a row; ``benchmarks`` makes a group for each.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.settings.compose import explain, parse
from orchestrator.settings.errors import UserError
from orchestrator.study import OTHER, PLACES, Study, read_study

ROWS = {"methods": "method", "heads": "head", "backbones": "backbone"}
LISTS = (*ROWS, "benchmarks", "seeds")
LONGEST_FILE = 60  # characters of a name that is made of rows


def find_study(named: str, settings: list[str]) -> tuple[Path, Study, list[str]]:
    """The study in the file ``named``, or that of a command line; its file, and the settings that are not in it."""
    if "=" in named and not Path(named).exists():
        words = [named, *settings]
        # Where it is stored is no part of a study: its folder may be moved before it goes on.
        places = [word for word in words if word.startswith(PLACES)]
        return (*study_of([word for word in words if word not in places]), places)
    return Path(named), read_study(Path(named)), settings


def study_of(words: list[str]) -> tuple[Path, Study]:
    """The study that ``key=value`` words describe, and the name of the file that could hold it."""
    lists = {key: values_of(word) for word in words for key in [word.partition("=")[0]] if key in LISTS}
    settings = [word for word in words if word.partition("=")[0] not in LISTS]
    benchmarks = lists.get("benchmarks", [])
    compared = [[f"{setting}={one}" for one in lists[key]] for key, setting in ROWS.items() if key in lists]
    if not compared and not benchmarks:
        raise UserError("compare: name a study's file, or what is compared, as in methods=[lora,treelora]")
    rows = {", ".join(map(value_of, row)): list(row) for row in product(*compared)}
    named = benchmarks or [value_of(word) for word in settings if word.startswith("benchmark=")]
    found: dict[str, Any] = {
        "title": f"{', '.join(rows)} on {', '.join(named) or 'the default benchmark'}",
        "settings": settings,
        "rows": rows,
        "seeds": lists.get("seeds", [0]),
        "groups": {name: [f"benchmark={name}"] for name in benchmarks} or {"": []},
    }
    try:
        study = Study.model_validate(found)
    except ValidationError as error:
        raise UserError(f"compare: {explain(error, Study, '')}") from None
    name = OTHER.sub("-", "-".join(["compare", *rows, *named]))[:LONGEST_FILE]
    return Path(name.rstrip("-.") + ".yaml"), study


def values_of(word: str) -> list[str]:
    """The values in ``key=[a,b]``, or the one in ``key=a``."""
    value = parse(word).value()
    return [str(one) for one in (value if isinstance(value, list) else [value])]


def value_of(word: str) -> str:
    return word.partition("=")[2]
