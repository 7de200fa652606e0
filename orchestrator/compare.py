"""A study from its checks to its page: rows run side by side where there is room, and the page grows as they end."""

from __future__ import annotations

import shutil
from itertools import groupby
from pathlib import Path

from orchestrator.execute import check_room, check_run, executor, interruptible
from orchestrator.pages.console import say
from orchestrator.pages.study_html import html_page
from orchestrator.pages.study_page import Rows as Results
from orchestrator.pages.study_page import page
from orchestrator.records.keep import open_tracker
from orchestrator.records.trials import Recorded
from orchestrator.run.checkpoint import read_json
from orchestrator.run.folder import is_finished
from orchestrator.run.lock import held
from orchestrator.run.trials import Rows, Work
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError
from orchestrator.study import Study, experiments, full_name, row_named

Plan = dict[str, dict[str, list[Experiment]]]  # group -> label -> the runs of all seeds


def run_study(file: Path, study: Study, output: Path, settings: list[str], repeat: str) -> Results:
    """Run all rows, or those that are unfinished, and write ``output`` and its HTML anew as they end.

    Every row is checked before the first one starts. The results are by row, with its group in front, and seed.
    """
    plan = experiments(file, study, settings)
    for group, rows in plan.items():
        for label, runs in rows.items():
            with row_named(file, full_name(group, label)):
                check_run(runs[0])  # the others differ in their seed alone
                for run in runs:
                    is_finished(run)  # refuses a folder that belongs to something else
    check_page(output)
    comparison = Comparison(plan, study, output, repeat)
    check_room([work.experiment for work in comparison.waiting])
    if comparison.waiting:
        scratch = comparison.waiting[0].experiment.storage / f"{file.stem}.study"
        with held(scratch, "a study"):
            execute(comparison, scratch / "tune")
        shutil.rmtree(scratch)
    comparison.write()
    if comparison.errors:
        (key, error), *_ = comparison.errors.items()
        failed = f"{len(comparison.errors)} of {comparison.total} runs failed; the first, {key}: {error}"
        raise UserError(f"{file}: {failed}; the same command tries them again")
    return {
        full_name(group, label): runs for group, rows in comparison.results().items() for label, runs in rows.items()
    }


def execute(comparison: Comparison, scratch: Path) -> None:
    """All runs that are waiting; those that need other resources than the ones before follow behind them.

    ``scratch`` is Ray Tune's to use.
    """
    waiting = [work.experiment for work in comparison.waiting]
    running: dict[str, Path] = {}
    with interruptible(comparison.standing), executor(waiting, running) as run:
        tracker = open_tracker(waiting[0])
        for _, alike in groupby(list(comparison.waiting), key=lambda work: work.experiment.scale):
            comparison.waiting = list(alike)
            first = comparison.waiting[0].experiment
            recorded = Recorded(comparison, tracker, None, running)
            try:
                run(recorded, first, scratch)
            finally:
                for failure in recorded.finish():
                    say(f"record: {failure}")


class Comparison(Rows):
    """The runs of a study, and the page of those that are finished."""

    def __init__(self, plan: Plan, study: Study, output: Path, repeat: str) -> None:
        self.plan, self.study, self.output, self.repeat = plan, study, output, repeat
        runs = [(full_name(g, label), run) for g, rows in plan.items() for label, own in rows.items() for run in own]
        self.total = len(runs)
        works = [Work(f"{row}, seed {run.seed}", run) for row, run in runs if not is_finished(run)]
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

    def write(self) -> None:
        """The Markdown in ``output`` and the same as HTML beside it; nothing before the first row is finished."""
        results = self.results()
        if not results:
            return
        rows, done = (sum(map(len, part.values())) for part in (self.plan, results))
        about = self.study.about
        if done < rows:
            about += f"\n\n*{done} of {rows} rows are finished.*"
        written = page(self.study.title, about, self.repeat, results, self.study.matrices)
        self.output.write_text(written, encoding="utf-8")
        self.output.with_suffix(".html").write_text(html_page(self.study.title, written), encoding="utf-8")


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
