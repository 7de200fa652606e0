"""From a checked experiment to a finished run, with everything that a person at a terminal expects.

Bad input is found before a cluster, a record or a folder is made. Ctrl-C ends what was started and says how to go on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.execute import check_room, check_run, in_background, interruptible, ray_where_needed
from orchestrator.pages.console import say, where_stopped
from orchestrator.pages.progress import watching
from orchestrator.records.keep import close_run, is_closed, recorded
from orchestrator.run.folder import claim, finished, is_finished
from orchestrator.run.identity import code_digest
from orchestrator.run.lock import held
from orchestrator.run.session import run_here
from orchestrator.settings.config import Experiment

if TYPE_CHECKING:
    from orchestrator.records.tracking import Tracker


def launch_run(experiment: Experiment) -> dict[str, Any]:
    """Train one run with progress, record and report; returns result.json's content."""
    about_data = check_run(experiment)
    on_workers = experiment.scale.workers > 0
    check_room([experiment] if on_workers else [])
    folder = experiment.folder
    if is_finished(experiment) and is_closed(experiment, folder):
        result = finished(folder)
        since = "" if result.get("code", code_digest()) == code_digest() else " (of other code than today's)"
        say(f"{experiment.name} is finished; its result is shown{since}. name=… starts another run")
        return result
    with held(folder, "a run"), interruptible(lambda: where_stopped(folder)):
        for line in about_data:
            say(line)
        claim(experiment)
        with recorded(experiment, folder, experiment.identity()) as tracker:
            with ray_where_needed([experiment], on_workers), watching(lambda: [folder], keeping_up(folder, tracker)):
                result = in_background(lambda: train(experiment)) if on_workers else train(experiment)
            close_run(folder, tracker)
    if result["skipped"]:
        say(f"{len(result['skipped'])} left out as unreadable, the first: {result['skipped'][0]}")
    return result


def train(experiment: Experiment) -> dict[str, Any]:
    """Run to the end, or go on with a run of this name, and return result.json's content.

    With workers, Ray has to be connected. UserError for anything that the user can mend.
    """
    if not claim(experiment):
        if experiment.scale.workers == 0:
            run_here(experiment)
        else:
            from orchestrator.cluster.trainer import train_on_workers

            train_on_workers(experiment)
    return finished(experiment.folder)


def keeping_up(folder: Path, tracker: Tracker | None) -> Callable[[], None]:
    """Brings the record up to date at each call; why it could not be written is said once, not twice a second."""
    said: set[str] = set()

    def keep_up() -> None:
        reason = tracker.keep_up(folder) if tracker else None
        if reason and reason not in said:
            said.add(reason)
            say(f"record: {reason}; it is brought up to date when it can be written again")

    return keep_up
