"""Reports of a Train run on their way to the Tune trial that drives it."""

from __future__ import annotations

from typing import Any

from ray.train import Checkpoint, UserCallback
from ray.train._internal.session import get_session

from orchestrator.run.trials import told


class Forward(UserCallback):
    """Hands on what rank 0 reports; Ray's own callback for it would hand on test scores too."""

    def __init__(self) -> None:
        session = get_session()
        assert session is not None  # made in the trial's process, called in that of Train's controller
        self.queue = session._get_or_create_inter_actor_queue()

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        self.queue.put(told(metrics[0]))
