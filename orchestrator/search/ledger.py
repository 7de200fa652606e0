"""The ledger of a search: every decision in one line of ``<sweep>/trials.jsonl``, written when it is made.

    {"event": "proposed", "trial": 3, "time": "…", "settings": {"method.rank": 8}}
    {"event": "started", "trial": 3, "time": "…", "node": "host", "attempt": 1}
    {"event": "stopped", "trial": 3, "time": "…", "rule": "asha", "tasks": 2, "value": 0.61, …}
    {"event": "ended", "trial": 3, "time": "…", "status": "finished", "error": null}

It is all that a search needs to go on, together with the trials' own folders; what a kill left of a last line is
cut off.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.run.checkpoint import read_json, writable
from orchestrator.settings.errors import UserError

OVER = ("finished", "stopped", "failed")


@dataclass
class Trial:
    """What is known of one trial; ``values`` has its objectives once they are known."""

    number: int
    settings: dict[str, Any]
    status: str = "waiting"
    values: dict[str, float] = field(default_factory=dict)
    history: list[tuple[int, float]] = field(default_factory=list)  # tasks learned, average anytime validation accuracy
    stopped: dict[str, Any] | None = None
    error: str | None = None
    node: str | None = None
    attempts: int = 0
    started: str | None = None
    ended: str | None = None

    @property
    def id(self) -> str:
        return f"{self.number:05d}"

    @property
    def over(self) -> bool:
        return self.status in OVER


class Ledger:
    """The trials of the sweep in ``folder``, read from its file and kept there."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "trials.jsonl"
        self.trials: list[Trial] = []
        for line in read_lines(self.file):
            self.apply(line)

    def write(self, event: str, trial: int, **content: Any) -> Trial:
        """Add one line and apply it."""
        line = {"event": event, "trial": trial, "time": datetime.now(UTC).isoformat(timespec="seconds")} | content
        with writable(self.file.parent):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        return self.apply(line)

    def apply(self, line: dict[str, Any]) -> Trial:
        if line["event"] == "proposed":
            self.trials.append(Trial(line["trial"], line["settings"]))
        trial = self.trials[line["trial"]]
        match line["event"]:
            case "started":
                trial.status, trial.node, trial.ended, trial.error = "running", line["node"], None, None
                trial.started, trial.attempts = trial.started or line["time"], trial.attempts + 1
            case "stopped":
                trial.stopped = {key: line[key] for key in line.keys() - {"event", "trial", "time"}}
            case "ended":
                trial.status, trial.error, trial.ended = line["status"], line["error"], line["time"]
        return trial


def read_lines(file: Path) -> list[dict[str, Any]]:
    """All whole lines; a last one that was cut off is removed from the file, so that the next starts a line."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return []
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        file.write_bytes(whole)
    lines = []
    for number, line in enumerate(whole.decode("utf-8", "replace").splitlines(), start=1):
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise UserError(f"{file}:{number}: not JSON ({error.msg}); repair or remove the line") from None
    return lines


def history_of(folder: Path) -> list[tuple[int, float]]:
    """Tasks learned and average anytime validation accuracy of the run in ``folder``, as far as it came."""
    rows = (read_json(folder / "progress.json") or {"history": []})["history"]
    return [(row["task"], row["anytime_validation_accuracy"]) for row in rows]
