"""The command line: one short function per command. Heavy imports wait until a command needs them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

# typer carries its own click; this is the ancestor of all errors that either raises for a wrong command line.
CommandLineError: type[Exception] = typer.BadParameter.__mro__[2]
PROJECT = Path(__file__).resolve().parent

app = typer.Typer(
    help="Continual fine-tuning on Ray: train a method on a stream of tasks, sweep its settings, follow jobs.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def complete_setting(incomplete: str) -> list[str]:
    """What a shell offers at a setting."""
    from orchestrator.settings.completion import offers

    return offers(incomplete, os.environ)


Settings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="settings, as in method=treelora method.rank=8 scale.workers=2",
        autocompletion=complete_setting,
    ),
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="leave out files and lines that cannot be read; count them")]
AcceptChange = Annotated[
    bool,
    typer.Option("--accept-change", help="go on where data, weights or code changed since it began; written down"),
]
Address = Annotated[str, typer.Option(help="the cluster's dashboard, as in http://127.0.0.1:8265")]


@app.command()
def train(
    settings: Settings = None,
    skip_bad: SkipBad = False,
    accept_change: AcceptChange = False,
    as_json: Annotated[bool, typer.Option("--json", help="print result.json's content and nothing else")] = False,
) -> None:
    """Train one run, or go on where the run of this name stopped."""
    from orchestrator.settings.compose import load_experiment

    # A slip is told before the slow imports.
    experiment = load_experiment(with_options(settings, skip_bad, accept_change))
    from orchestrator.launch import launch_run
    from orchestrator.pages.console import output, run_table

    result = launch_run(experiment)
    if as_json:
        print(json.dumps(result))
    else:
        output.print(run_table(result), f"report: {experiment.folder / 'report.html'}", sep="\n")


@app.command()
def check(settings: Settings = None, skip_bad: SkipBad = False) -> None:
    """Read data and model as a run would, and say what it would do and cost, without starting one."""
    from orchestrator.settings.compose import load_experiment

    experiment = load_experiment(with_options(settings, skip_bad))
    from orchestrator.check import check_experiment

    for line in check_experiment(experiment):
        print(line, flush=True)


@app.command()
def sweep(
    settings: Settings = None,
    skip_bad: SkipBad = False,
    accept_change: AcceptChange = False,
    as_json: Annotated[bool, typer.Option("--json", help="print sweep.json's content and nothing else")] = False,
) -> None:
    """Search over settings (sweep.space.*), one run for each trial; goes on where a sweep of this name stopped."""
    from orchestrator.settings.compose import load_experiment

    experiment = load_experiment(with_options(settings, skip_bad, accept_change), "sweep")
    from orchestrator.pages.console import output, sweep_summary
    from orchestrator.records.address import tracking_uri
    from orchestrator.sweep import check_complete, launch_sweep

    summary = launch_sweep(experiment)
    if as_json:
        print(json.dumps(summary))
    else:
        output.print(*sweep_summary(experiment, summary, tracking_uri(experiment)), sep="\n", crop=False)
    check_complete(summary)


def with_options(settings: list[str] | None, skip_bad: bool, accept_change: bool = False) -> list[str]:
    """The settings with those that have options of their own."""
    skipping = ["benchmark.skip_bad=true"] if skip_bad else []
    return [*(settings or []), *skipping, *(["checkpoint.accept_change=true"] if accept_change else [])]


@app.command()
def compare(
    study: Annotated[str, typer.Argument(help="file that names the runs, as docs/studies/*.yaml, or methods=[a,b]")],
    settings: Settings = None,
    output: Annotated[Path | None, typer.Option(help="page; default: <study>.md in docs/, or here")] = None,
) -> None:
    """Run all rows of a study, side by side where there is room, and write one page with their table; goes on again."""
    from orchestrator.compare import run_study
    from orchestrator.study import command
    from orchestrator.typed_study import find_study

    file, found, given = find_study(study, settings or [])
    inside = is_checkout() and "=" not in study
    page = (output or (PROJECT / "docs" if inside else Path.cwd()) / f"{file.stem}.md").expanduser()
    run_study(file, found, page, given, command(Path(study), settings or []))
    print(f"page: {page}", f"HTML: {page.with_suffix('.html')}", sep="\n")


def is_checkout() -> bool:
    """Whether this file lies in the project's folder, and not where pip put it."""
    return (PROJECT / "pyproject.toml").is_file()


@app.command()
def tree(
    run: Annotated[str, typer.Argument(help="name of a run, finished or under way, or its folder below storage")],
    settings: Settings = None,
) -> None:
    """Print the task tree of a run: distances of its leaves, and what the last search found in it."""
    from orchestrator.pages.console import output
    from orchestrator.pages.tree_view import tree_parts
    from orchestrator.tree_source import find_tree

    found = find_tree(run, settings or [])
    print(f"{found.run}: {found.when}")
    output.print(*tree_parts(found.report, found.names), sep="\n", crop=False)


@app.command()
def report(
    run: Annotated[str, typer.Argument(help="name of a run or sweep, or its folder below storage")],
    settings: Settings = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="print its table: trials of a sweep, tasks of a run")] = False,
    markdown: Annotated[Path | None, typer.Option(help="write a sweep's page to this .md file instead")] = None,
) -> None:
    """Write report.html again, also of a sweep under way, and print its path."""
    from orchestrator import report_source

    if markdown:
        print(report_source.write_markdown(run, markdown.expanduser(), settings or []))
    elif as_csv:
        print(report_source.table(run, settings or []), end="")
    else:
        print(report_source.write_report(run, settings or []))


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="name of a run, finished or stopped, or its folder below storage")],
    output: Annotated[Path, typer.Option(help="folder to make")],
    settings: Settings = None,
) -> None:
    """Write the update of a run as one LoRA adapter that PEFT loads, and the head beside it."""
    from orchestrator.export import export_run

    done = export_run(run, output, settings or [])
    print(f"{done.run}: {done.when}", f"adapter, for PeftModel.from_pretrained(backbone, …): {done.folder}", sep="\n")


@app.command()
def sync(
    run: Annotated[str, typer.Argument(help="name of a run or sweep, or its folder below storage")],
    settings: Settings = None,
) -> None:
    """Send what the record of a run or sweep lacks; with tracking.uri=… all of it, to a new server."""
    from orchestrator.records.sync import sync_record

    done = sync_record(run, settings or [])
    print(f"{run}: {done.records} complete at {done.address}")


@app.command()
def register(
    run: Annotated[str, typer.Argument(help="name of a run or sweep, or its folder below storage")],
    settings: Settings = None,
) -> None:
    """Register the model of a run, or of a sweep's best trial, with MLflow: mlflow.pyfunc.load_model loads it."""
    from orchestrator.register import register

    done = register(run, settings or [])
    print(f"{done.run}: models:/{done.name}/{done.version} at {done.address}")


@app.command()
def methods() -> None:
    """List the methods."""
    listing("method")


@app.command()
def benchmarks() -> None:
    """List the benchmarks."""
    listing("benchmark")


@app.command()
def options() -> None:
    """List what every group of settings can name, as in backbone=minilm or paper=treelora_cifar100."""
    from orchestrator.settings.compose import GROUPS

    for group in GROUPS:
        print(f"\n{group}=")
        listing(group)


def listing(group: str) -> None:
    from orchestrator.settings.compose import describe

    options = describe(group)
    width = max(len(name) for name in options)
    for name, line in options.items():
        print(f"{name:<{width}}  {line}")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def submit(
    address: Address,
    command: Annotated[
        list[str], typer.Argument(metavar="-- COMMAND...", help="train, sweep or compare with its settings")
    ],
    wait: Annotated[bool, typer.Option(help="follow the job until it ends")] = False,
) -> None:
    """Run a train, sweep or compare command as a job on a Ray cluster; tracked files are uploaded."""
    from orchestrator.cluster import jobs, submission
    from orchestrator.settings.errors import UserError

    if not is_checkout():
        raise UserError("submit: a job gets the files that git tracks; call it from a checkout of the project")
    submission.job_command(command)
    study = checked_here(command)
    job = jobs.submit(address, command, project=PROJECT, study=study)
    print(job)
    if wait:
        logs(job, address, follow=True)
        jobs.wait(address, job)


def checked_here(command: list[str]) -> Path | None:
    """The file of a study, None for other commands; a slip in either is told before an upload."""
    settings = [word for word in command[1:] if not word.startswith("--")]
    if command[0] != "compare":
        from orchestrator.settings.compose import load_experiment

        load_experiment(settings)
        return None
    from orchestrator.settings.errors import UserError
    from orchestrator.study import experiments
    from orchestrator.typed_study import find_study

    if command[1:2] != settings[:1] or not settings:
        raise UserError("compare: name the study's file first, or what is compared, as in methods=[lora,treelora]")
    file, study, given = find_study(settings[0], settings[1:])
    experiments(file, study, given)
    return file


@app.command(name="jobs")
def list_jobs(address: Address) -> None:
    """List the jobs of a cluster."""
    from orchestrator.cluster import jobs

    for job in jobs.listing(address):
        started = job.started.strftime("%Y-%m-%d %H:%M") if job.started else "–"
        print(f"{job.id}  {job.status:<9}  {started}  {job.command}")


@app.command()
def logs(
    job: Annotated[str, typer.Argument(help="the id that submit printed")],
    address: Address,
    follow: Annotated[bool, typer.Option(help="go on until the job ends")] = False,
) -> None:
    """Print what a job has printed."""
    from orchestrator.cluster import jobs

    for text in jobs.follow(address, job, tail=follow):
        print(text, end="", flush=True)


@app.command()
def stop(job: Annotated[str, typer.Argument(help="the id that submit printed")], address: Address) -> None:
    """Stop a job; the same submit goes on where it stopped."""
    from orchestrator.cluster import jobs

    print(f"{job}: {jobs.stop(address, job)}")


@app.command()
def watch(
    settings: Settings = None,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5000,
) -> None:
    """Open MLflow's page on 127.0.0.1 for the record of all runs (settings: storage, tracking.uri)."""
    from orchestrator.records.address import serve_record
    from orchestrator.settings.compose import load_experiment

    serve_record(load_experiment(settings or []), port)


def main() -> None:
    """Exit codes: 0 where all that was asked for is done, 1 where a trial or a row failed, 2 for what users can mend.

    Ctrl-C is 130, another signal 128 and its number. An error is one line, the last one.
    """
    from orchestrator.settings.errors import UserError

    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except CommandLineError as error:
        code = refuse(getattr(error, "format_message", error.__str__)())
    except UserError as error:
        refuse(str(error))
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    sys.exit(code)


def refuse(reason: str) -> int:
    print(f"error: {' '.join(reason.split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
