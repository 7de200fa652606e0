"""A study from its checks to its page: rows run side by side where there is room, and the page grows as they end."""

from __future__ import annotations

import os
from itertools import groupby
from pathlib import Path
from typing import Any

from orchestrator.execute import check_room, check_run, executor, interruptible
from orchestrator.pages.console import say
from orchestrator.pages.study_html import html_page
from orchestrator.pages.study_page import Rows as Results
from orchestrator.pages.study_page import page
from orchestrator.records.keep import is_closed, recorded
from orchestrator.records.trials import Recorded
from orchestrator.run.checkpoint import read_json, write_json
from orchestrator.run.folder import is_finished
from orchestrator.run.lock import held
from orchestrator.run.trials import Rows, Work
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import IncompleteError, UserError
from orchestrator.study import Study, experiments, full_name, row_named

Plan = dict[str, dict[str, list[Experiment]]]  # group -> label -> the runs of all seeds


def run_study(file: Path, study: Study, output: Path, settings: list[str], repeat: str) -> Results:
    """Run all rows, or those that are unfinished, and write ``output`` and its HTML anew as they end.

    Every row is checked before the first one starts. The results are by row, with its group in front, and seed.
    """
    plan = experiments(file, study, settings)
    about_data: dict[str, None] = {}  # in order, and once where rows share a stream
    for group, rows in plan.items():
        for label, runs in rows.items():
            with row_named(file, full_name(group, label)):
                about_data |= dict.fromkeys(check_run(runs[0]))  # the others differ in their seed alone
                for run in runs:
                    is_finished(run)  # refuses a folder that belongs to something else
    check_page(output)
    comparison = Comparison(plan, study, output, repeat)
    check_room([work.experiment for work in comparison.waiting])
    folder = comparison.runs[0].storage / f"{file.stem}.study"
    if comparison.waiting or not is_closed(comparison.runs[0], folder):
        with held(folder, "a study"):
            for line in about_data:
                say(line)
            write_json(folder / "study.json", comparison.description(folder))
            execute(comparison, folder)
    comparison.write()
    if comparison.errors:
        (key, error), *_ = comparison.errors.items()
        failed = f"{len(comparison.errors)} of {comparison.total} runs failed; the first, {key}: {error}"
        raise IncompleteError(f"{file}: {failed}; the same command tries them again")
    return {
        full_name(group, label): runs for group, rows in comparison.results().items() for label, runs in rows.items()
    }


def execute(comparison: Comparison, folder: Path) -> None:
    """All runs that are waiting, recorded as children of the study whose folder this is."""
    waiting = [work.experiment for work in comparison.waiting]
    running: dict[str, Path] = {}
    about = comparison.study.model_dump(mode="json")
    with (
        interruptible(comparison.standing),
        executor(waiting, running) as run,
        recorded(comparison.runs[0], folder, about) as tracker,
    ):
        # Those that need other resources than the ones before follow behind them.
        for _, alike in groupby(list(comparison.waiting), key=lambda work: work.experiment.scale):
            comparison.waiting = list(alike)
            runs = Recorded(comparison, tracker, folder, running)
            try:
                run(runs, comparison.waiting[0].experiment, folder / "tune")
            finally:
                for failure in runs.finish():
                    say(f"record: {failure}")
        if written := comparison.markdown():
            (folder / "report.html").write_text(html_page(comparison.study.title, written), encoding="utf-8")
        if tracker:
            tracker.end(folder, "FAILED" if comparison.errors else "FINISHED")


class Comparison(Rows):
    """The runs of a study, and the page of those that are finished."""

    def __init__(self, plan: Plan, study: Study, output: Path, repeat: str) -> None:
        self.plan, self.study, self.output, self.repeat = plan, study, output, repeat
        named = [(full_name(g, label), run) for g, rows in plan.items() for label, own in rows.items() for run in own]
        self.runs, self.total = [run for _, run in named], len(named)
        works = [
            Work(f"{row}, seed {run.seed}", run)
            for row, run in named
            if not (is_finished(run) and is_closed(run, run.folder))
        ]
        super().__init__(works)
        self.begun = self.total - len(works)

    def next(self) -> Work | None:
        work = super().next()
        if work:
            self.begun += 1
            say(f"run {self.begun} of {self.total}: {work.key}")
        return work

    def ended(self, key: str, error: str | None) -> None:
        super().ended(key, error)
        if error:
            say(f"{key} failed: {error}")
        self.write()

    def standing(self) -> str:
        return f"{self.begun} of {self.total} runs"

    def results(self) -> dict[str, Results]:
        """result.json of every row whose runs are all finished."""
        found: dict[str, Results] = {}
        for group, rows in self.plan.items():
            for label, runs in rows.items():
                contents = [read_json(run.folder / "result.json") for run in runs]
                if all(contents):
                    found.setdefault(group, {})[label] = contents
        return found

    def description(self, folder: Path) -> dict[str, Any]:
        """study.json: which runs the study has, and where they lie from its ``folder``."""
        runs = [
            {"group": group, "row": label, "seed": run.seed, "folder": os.path.relpath(run.folder, folder)}
            for group, rows in self.plan.items()
            for label, own in rows.items()
            for run in own
        ]
        return {"title": self.study.title, "command": self.repeat, "runs": runs}

    def write(self) -> None:
        """The Markdown in ``output`` and the same as HTML beside it; nothing before the first row is finished."""
        if written := self.markdown():
            self.output.write_text(written, encoding="utf-8")
            self.output.with_suffix(".html").write_text(html_page(self.study.title, written), encoding="utf-8")

    def markdown(self) -> str:
        """The page of the rows that are finished, "" where none is."""
        results = self.results()
        if not results:
            return ""
        rows, done = (sum(map(len, part.values())) for part in (self.plan, results))
        about = self.study.about
        if done < rows:
            about += f"\n\n*{done} of {rows} rows are finished.*"
        return page(self.study.title, about, self.repeat, results, self.study.matrices)


def check_page(output: Path) -> None:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written ({error.strerror}); name another file") from None
    if output.suffix == ".html":
        raise UserError(f"--output {output}: name the Markdown file, as in {output.stem}.md; its HTML goes beside it")
    for file in (output, output.with_suffix(".html")):
        if file.is_dir():
            raise UserError(f"--output {file}: it is a folder; name a file in it")
