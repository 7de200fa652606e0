"""The stream: ordered tasks with train, validation and test examples.

The order of classes is drawn from ``order_seed`` alone and the splits from fixed seeds, so that runs with other
``seed`` see the same stream. Labels are renumbered in the order of arrival: task t owns a range of them, or shares the
only range where the scenario is domain.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from benchmarks import images, texts  # noqa: F401  register their sources
from benchmarks.account import Account
from benchmarks.dataset import FREE, SOURCES, BenchmarkError, Dataset, Examples, Records, StreamConfig
from benchmarks.fingerprint import fingerprint_of, row_digests
from benchmarks.formats import Format, TextFormat
from benchmarks.parts import Part, divide, shared_classes
from benchmarks.preparation import prepare
from benchmarks.repeats import note_repeats
from benchmarks.small_classes import refuse_small, without_small
from benchmarks.texts.scores import check_score

OTHER = FREE - 1  # the label of rows that are left to another split


@dataclass(frozen=True)
class Task:
    """One task; ``classes`` are its labels in the stream's numbering, ``options`` what they are called.

    ``score`` says how an answer is judged: accuracy where there are labels.
    """

    index: int
    name: str
    classes: range
    train: Examples
    validation: Examples
    test: Examples
    options: list[str] = field(default_factory=list)
    score: str = "accuracy"


@dataclass(frozen=True)
class TaskStream:
    """All tasks in order. ``fresh`` counts the rows prepared just now, ``skipped`` names what was left out.

    ``account`` counts what else was done with the data. Where ``benchmark.first`` leaves out later tasks, ``later`` are
    their labels, whose names count as the others: head and adapters are made for the whole stream, so that its first
    tasks are learned alike without the rest.
    """

    name: str
    scenario: str
    class_names: list[str]
    tasks: list[Task]
    answer_length: int
    fresh: int = 0
    skipped: list[str] = field(default_factory=list)
    account: Account = field(default_factory=Account)
    later: list[range] = field(default_factory=list)

    @property
    def classes(self) -> int:
        """Size of the whole label space."""
        return len(self.class_names)

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What tells these tasks from others, as plain values; computed when it is first asked for."""
        return fingerprint_of(self.tasks)

    @property
    def length(self) -> int:
        """Number of tasks of the whole stream."""
        return len(self.tasks) + len(self.later)

    @property
    def parts(self) -> list[int]:
        """Classes that each task adds to the label space; domains share what the first one brings."""
        if self.scenario == "domain":
            return [self.classes]
        return [len(labels) for labels in (*(task.classes for task in self.tasks), *self.later)]

    def candidates(self, learned: int, evaluated: int) -> list[range]:
        """Labels that compete when task ``evaluated`` is tested after ``learned`` tasks.

        All seen classes, and the task's own where it lies ahead; with scenario task its own first, as the result that
        counts, and those of the class-incremental reading second.
        """
        seen = range(self.tasks[max(learned - 1, evaluated)].classes.stop)
        return [self.tasks[evaluated].classes, seen] if self.scenario == "task" else [seen]


def build_stream(config: StreamConfig, order_seed: int | None, form: Format) -> TaskStream:
    """Read the data, divide it into tasks, and prepare the rows they use for a backbone that reads ``form``."""
    data = read(config)
    whole = divide(data, config, order_seed)
    parts = whole[: count_of(whole, config)]
    if config.scenario != "domain":
        refuse_small(data, [label for part in parts for label in part.classes], config)
    ranges = label_ranges(whole, config)
    judged = [score_of(part, config) for part in parts]
    learned = [learned_rows(data.train, part, config) for part in parts]
    tested = [[torch.cat(class_rows(data.test, part, "test", config))] for part in parts]
    train = ready(data.train, learned, parts, config, form)
    test = ready(data.test, tested, parts, config, form)
    account = Account()
    for source in (data.account, train.account, test.account):
        account.include(source)
    note_repeats(train.content, test.content, account)
    tasks = []
    for index, (part, labels) in enumerate(zip(parts, ranges, strict=False)):
        (own_train, own_validation), (own_test,) = train.examples[index], test.examples[index]
        tasks.append(Task(index, part.name, labels, own_train, own_validation, own_test, part.options, judged[index]))
    single = [task.name for task in tasks if len(task.classes) == 1]
    if single and not (isinstance(form, TextFormat) and form.answers):
        # Its classes alone compete in a task's loss, which is 0 for a single one.
        account.note("tasks of one class: only a closed-form head learns from them", single[0], len(single))
    return TaskStream(
        name=config.name,
        scenario=config.scenario,
        class_names=[word for part in (whole[:1] if config.scenario == "domain" else whole) for word in part.options],
        tasks=tasks,
        answer_length=config.text.answer_length,
        fresh=train.fresh + test.fresh,
        skipped=data.skipped + train.bad + test.bad,
        account=account,
        later=ranges[len(parts) :],
    )


def read(config: StreamConfig) -> Dataset:
    if config.source not in SOURCES:
        raise BenchmarkError(f"benchmark.source={config.source}: choose one of {', '.join(sorted(SOURCES))}")
    data = SOURCES[config.source](config)
    if config.scenario == "domain":
        return shared_classes(data)
    return without_small(data, config) if config.skip_bad else data


def count_of(parts: list[Part], config: StreamConfig) -> int:
    """How many of the stream's tasks are used."""
    if config.first is not None and not 1 <= config.first <= len(parts):
        raise BenchmarkError(
            f"benchmark.first={config.first}: {config.name} has {len(parts)} tasks; say 1 to {len(parts)}"
        )
    return config.first or len(parts)


def score_of(part: Part, config: StreamConfig) -> str:
    """The name of the score by which the part's answers are measured."""
    if part.classes:
        return "accuracy"
    if part.name in config.text.scores:
        check_score(config.text.scores[part.name], f"benchmark.text.scores.{part.name}")
        return config.text.scores[part.name]
    check_score(config.text.score)
    return config.text.score


def label_ranges(parts: list[Part], config: StreamConfig) -> list[range]:
    """The labels of each part in the stream's numbering."""
    if config.scenario == "domain":
        return [range(len(part.classes)) for part in parts]
    stops = [sum(len(part.classes) for part in parts[: index + 1]) for index in range(len(parts))]
    return [range(stop - len(part.classes), stop) for part, stop in zip(parts, stops, strict=True)]


def learned_rows(records: Records, part: Part, config: StreamConfig) -> list[Tensor]:
    """Train and validation rows of ``part``: as published, else the validation split comes out of the train split."""
    if records.held_out is None:
        return split_off(class_rows(records, part, "train", config), config)
    published = records.held_out
    # Labels that no part has: to each split the rows of the other are not there.
    kept, held_out = (replace(records, labels=records.labels.where(mask, OTHER)) for mask in (~published, published))
    learned = class_rows(kept, part, "train", config)
    validated = class_rows(held_out, part, "validation", config)
    if not any(map(len, validated)):
        return split_off(learned, config)
    return [torch.cat(learned), torch.cat(validated)]


def class_rows(records: Records, part: Part, split: str, config: StreamConfig) -> list[Tensor]:
    """Rows of each class of ``part``, in an order fixed by their number, as many as the settings allow.

    Free answers count as one class. A domain may lack some classes, and so may a published validation split.
    """
    limit = config.test_per_class if split == "test" else config.train_per_class
    found = []
    for label in part.classes or [FREE]:
        wanted = records.labels == label
        rows = wanted if part.group is None or records.groups is None else wanted & (records.groups == part.group)
        found.append(drawn(rows.nonzero().flatten(), limit))
    return found


def drawn(rows: Tensor, limit: int | None) -> Tensor:
    # Seeded by their number alone: a class has the same rows in every order, subset and seed.
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(len(rows)))][:limit]


def split_off(classes: list[Tensor], config: StreamConfig) -> list[Tensor]:
    """Train and validation rows: the validation split comes out of train, never out of test."""
    counts = [min(max(1, round(config.validation_share * len(rows))), max(0, len(rows) - 1)) for rows in classes]
    kept = [rows[count:] for rows, count in zip(classes, counts, strict=True)]
    held_out = [rows[:count] for rows, count in zip(classes, counts, strict=True)]
    return [torch.cat(kept), torch.cat(held_out)]


@dataclass(frozen=True)
class Ready:
    """Prepared examples [part][split], rows prepared just now, what was left out, and what was done with the rest.

    ``content``: of all rows the SHA-256, labels, and what they were read from.
    """

    examples: list[list[Examples]]
    fresh: int
    bad: list[str]
    account: Account
    content: tuple[Tensor, Tensor, list[Any]]


def ready(records: Records, splits: list[list[Tensor]], parts: list[Part], config: StreamConfig, form: Format) -> Ready:
    """Prepare all rows of ``splits`` [part][split] at once, in the records' order, then divide them again."""
    rows = torch.cat([own for part in splits for own in part])
    owners = torch.cat([torch.full((sum(map(len, part)),), index) for index, part in enumerate(splits)])
    # The image cache is sorted by path, as the records are: in this order it is read in place, in any other copied.
    rows, order = rows.sort()
    owners = owners[order]
    prepared = prepare(records, rows, owners, parts, config, form)
    rows, owners = rows[prepared.kept], owners[prepared.kept]
    labels = new_labels(records.labels[rows], owners, parts, label_ranges(parts, config))
    references = [records.answers[row] for row in rows.tolist()] if records.answers else ()
    everyone = torch.arange(len(rows))
    digests = row_digests(prepared.inputs, everyone) if prepared.digests is None else prepared.digests
    everything = Examples(prepared.inputs, labels, everyone, prepared.answers, references, digests)
    examples = [[everything.take(among(rows, own)) for own in part] for part in splits]
    for part, own in zip(parts, examples, strict=True):
        if not all(len(split) for split in own):
            bad = f" ({len(prepared.bad)} cannot be read, the first: {prepared.bad[0]})" if prepared.bad else ""
            raise BenchmarkError(
                f"benchmark={config.name}: task {part.name!r} has no rows left in one of its splits{bad}; add some"
            )
    items = rows.tolist() if isinstance(records.items, Tensor) else [records.items[row] for row in rows.tolist()]
    return Ready(examples, prepared.fresh, prepared.bad, prepared.account, (digests, labels, items))


def new_labels(labels: Tensor, owners: Tensor, parts: list[Part], ranges: list[range]) -> Tensor:
    """Labels of the source to those of the stream; free answers keep theirs."""
    result = torch.full_like(labels, FREE)
    for index, (part, own) in enumerate(zip(parts, ranges, strict=True)):
        for label, new in zip(part.classes, own, strict=True):
            result[(owners == index) & (labels == label)] = new
    return result


def among(rows: Tensor, wanted: Tensor) -> Tensor:
    """Where the rows of ``wanted`` that are left stand in ``rows``, which is sorted; in that order."""
    return torch.isin(rows, wanted).nonzero().flatten()
