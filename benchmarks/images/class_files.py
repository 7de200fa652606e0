"""Image files sorted by class, domain and split, and the dataset they make."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import torch

from benchmarks.account import Account
from benchmarks.dataset import BenchmarkError, Dataset, Records

SPLIT_SEED = 0
TEST_SHARE = 0.2


@dataclass(frozen=True)
class ClassFiles:
    """The files of one class in one split, of one domain where there are domains; there may be none.

    ``held_out``: of the train split, the files that the publisher has set aside for validation.
    """

    name: str
    test: bool
    files: Sequence[Path]
    domain: str = ""
    held_out: bool = False


def own_split(name: str, files: list[Path], domain: str = "") -> list[ClassFiles]:
    """Train and test files of a class whose publisher has no splits: a fixed fifth, at least one, is for the test."""
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(SPLIT_SEED)).tolist()
    count = max(1, round(TEST_SHARE * len(files)))
    parts = ((True, order[:count]), (False, order[count:]))
    return [ClassFiles(name, test, [files[i] for i in rows], domain) for test, rows in parts]


def image_dataset(
    found: list[ClassFiles],
    place: str,
    skip_bad: bool,
    skipped: Sequence[str] = (),
    names: Mapping[str, str] = MappingProxyType({}),
    account: Account | None = None,
) -> Dataset:
    """Classes and domains in the order of their names; ``names`` are readable ones.

    A class or domain without train or test image raises BenchmarkError that begins with ``place``, or with
    ``skip_bad`` is left out and named after ``skipped``, with ``place`` too.
    """
    account = account or Account()
    found = [replace(f, name=composed(f.name), domain=composed(f.domain)) for f in found]
    if not found:
        raise BenchmarkError(f"{place}: no class folder with images in it; put the images of each class in one")
    classes, domains = lacking("class", found, lambda f: f.name), lacking("domain", found, lambda f: f.domain)
    problems = [*domains.values(), *classes.values()]
    if problems and not skip_bad:
        more = f" ({len(problems) - 1} more like it)" if len(problems) > 1 else ""
        raise BenchmarkError(
            f"{place}: {problems[0]}{more}; add some or remove the folder, or leave it out with --skip-bad"
        )
    if problems:
        rest = [f for f in found if f.name not in classes and f.domain not in domains]
        named = [f"{place}: {problem}" for problem in problems]
        # Once more, since without these a class or domain that was complete may lack images.
        return image_dataset(rest, place, skip_bad, [*skipped, *named], names, account)
    class_names, group_names = sorted({f.name for f in found}), sorted({f.domain for f in found} - {""})
    train, test = (records([f for f in found if f.test == test], class_names, group_names) for test in (False, True))
    names = {composed(name): shown for name, shown in names.items()}
    shown = readable([names.get(name, name) for name in class_names], account)
    account.note_case(shown, "classes whose name differs from")
    return Dataset(train, test, shown, readable(group_names, account), list(skipped), account)


def composed(name: str) -> str:
    """Accents in the one of Unicode's two ways that most systems write: macOS writes the other, for the same name."""
    return unicodedata.normalize("NFC", name)


def readable(names: list[str], account: Account) -> list[str]:
    """The same names where they are UTF-8, else with a stand-in for each byte that is not, told apart by a number."""
    found: list[str] = []
    for name in names:
        shown = os.fsencode(name).decode("utf-8", "replace")
        if shown != name:
            account.note("names of folders that are not UTF-8, shown with stand-ins", shown)
            shown += "" if shown not in found else f" ({len(found)})"
        found.append(shown)
    return found


def lacking(kind: str, found: list[ClassFiles], name_of: Callable[[ClassFiles], str]) -> dict[str, str]:
    """How many images each name has that lacks those of train or of test."""
    problems = {}
    for name in sorted({name_of(f) for f in found} - {""}):
        own = [f for f in found if name_of(f) == name]
        held_out = sum(len(f.files) for f in own if f.held_out)
        train, test = (sum(len(f.files) for f in own if f.test == test and not f.held_out) for test in (False, True))
        if not train or not test:
            more = f", and {held_out} of validation" if held_out else ""
            problems[name] = f"{kind} {name!r} has {train} train and {test} test images{more}"
    return problems


def records(found: list[ClassFiles], class_names: list[str], group_names: list[str]) -> Records:
    """Rows in the order of their paths, as the cache of decoded images has them."""
    label = {name: index for index, name in enumerate(class_names)}
    group = {name: index for index, name in enumerate(group_names)}
    rows = [(os.fspath(file), label[f.name], group.get(f.domain, 0), f.held_out) for f in found for file in f.files]
    paths, labels, groups, held_out = zip(*sorted(rows), strict=True)
    return Records(
        [Path(p) for p in paths],
        torch.tensor(labels),
        torch.tensor(groups) if group_names else None,
        held_out=torch.tensor(held_out) if any(held_out) else None,
    )
