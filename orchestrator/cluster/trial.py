"""One run of many, as Tune calls it in a process of its own.

Nothing heavy is imported before the call: while a new process starts, Tune hands its trial to one that has just become
free and gives the new one up, so that short trials would never get a second process.
"""

from __future__ import annotations

import json
import socket
from typing import Any

from ray import tune


def trial(work: dict[str, Any]) -> None:
    """A run of its own; with workers it is their driver. Its node, its numbers and its error are reports to Tune."""
    tune.report({"node": socket.gethostname()})
    from orchestrator.run.trials import attempt, outcome, told
    from orchestrator.settings.compose import checked

    experiment = checked(json.loads(work["experiment"]))
    if experiment.scale.workers:
        from orchestrator.cluster.forward import Forward
        from orchestrator.cluster.trainer import train_on_workers

        error = outcome(experiment, lambda: train_on_workers(experiment, [Forward()]))
    else:
        error = attempt(experiment, lambda metrics: tune.report(told(metrics)))
    # Raised, it would be tried again like a lost process, and fail again.
    tune.report({"error": error})
