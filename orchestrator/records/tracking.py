"""MLflow: a sweep is a parent run, a trial its child, a single run stands alone. Only the driver writes.

The id of a folder's MLflow run is kept in ``mlflow.json`` beside its result, so that a resumed run goes on in the
same record. Values that are logged already are not logged again.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from orchestrator.records.address import tracking_uri
from orchestrator.run.checkpoint import read_json, write_json
from orchestrator.settings.compose import flattened
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError

ARTIFACTS = ("result.json", "report.html", "experiment.json", "sweep.json")
SUMMARY = (
    "final_average_accuracy",
    "average_anytime_accuracy",
    "backward_transfer",
    "forgetting",
    "forward_transfer",
)


class Tracker:
    """Writes folders of runs to one MLflow experiment."""

    def __init__(self, experiment: Experiment) -> None:
        experiment.storage.mkdir(parents=True, exist_ok=True)
        self.uri = tracking_uri(experiment)
        try:
            self.client = MlflowClient(self.uri)
            self.experiment_id = self.find_experiment(experiment)
        except MlflowException as error:
            raise UserError(f"tracking.uri={self.uri}: {str(error).splitlines()[0]}") from None

    def find_experiment(self, experiment: Experiment) -> str:
        name = experiment.tracking.experiment
        if found := self.client.get_experiment_by_name(name):
            return found.experiment_id
        local = self.uri.startswith("sqlite:")
        # MLflow's default for a database is ./mlruns, wherever the command happens to be started.
        location = (experiment.storage / "mlflow-artifacts").as_uri() if local else None
        return self.client.create_experiment(name, artifact_location=location)

    def begin(self, folder: Path, name: str, settings: dict[str, Any], parent: Path | None = None) -> None:
        """Create the record of ``folder``, or go on with it."""
        note = read_json(folder / "mlflow.json")
        if note and note["uri"] == self.uri:
            # Params are not logged again: MLflow refuses to change one, and equal ones bring nothing.
            self.client.update_run(note["run_id"], status="RUNNING")
            return
        tags = {"mlflow.parentRunId": read_json(parent / "mlflow.json")["run_id"]} if parent else {}
        run = self.client.create_run(self.experiment_id, run_name=name, tags=tags)
        # MLflow's limits: 6,000 characters a value, 100 params a call.
        params = [Param(key, str(value)[:6000]) for key, value in flattened(settings).items()]
        for first in range(0, len(params), 100):
            self.client.log_batch(run.info.run_id, params=params[first : first + 100])
        # Last, so that a record without its params is not taken for one to go on with.
        write_json(folder / "mlflow.json", {"uri": self.uri, "run_id": run.info.run_id, "logged": 0})

    def sync(self, folder: Path) -> None:
        """Log the tasks that progress.json has and the record has not; the step is the number of tasks seen."""
        note, progress = read_json(folder / "mlflow.json"), read_json(folder / "progress.json")
        if not note or not progress:
            return
        # Logged twice, a metric would have two points at one step; a call takes 1,000, which is 333 tasks.
        fresh = progress["history"][note["logged"] :]
        now = int(time.time() * 1000)
        points = [
            Metric(key, float(value), now, row["task"])
            for row in fresh
            for key, value in row.items()
            if key != "task" and value is not None
        ]
        if points:
            self.client.log_batch(note["run_id"], metrics=points)
            write_json(folder / "mlflow.json", note | {"logged": len(progress["history"])})

    def keep_up(self, folder: Path) -> str | None:
        """``sync`` for a run under way: a record that cannot be written must not end it; the reason is returned."""
        try:
            self.sync(folder)
        except MlflowException as error:
            return str(error).splitlines()[0]
        return None

    def end(self, folder: Path, status: str = "FINISHED") -> None:
        """Log the summary and the files, close the record; ``status`` as MLflow names it."""
        note = read_json(folder / "mlflow.json")
        if not note:
            return
        self.sync(folder)
        if result := read_json(folder / "result.json"):
            self.summarise(note["run_id"], result)
        for name in ARTIFACTS:
            if (folder / name).exists():
                self.client.log_artifact(note["run_id"], str(folder / name))
        self.client.set_terminated(note["run_id"], status)

    def summarise(self, run_id: str, result: dict[str, Any]) -> None:
        now, step = int(time.time() * 1000), len(result["accuracy_matrix"])
        known = {key: result[key] for key in SUMMARY if result[key] is not None}
        known |= {f"seconds_{kind}": value for kind, value in result["seconds"].items()}
        tags = [RunTag(key, str(result[key])) for key in ("method", "benchmark")]
        self.client.log_batch(run_id, metrics=[Metric(k, float(v), now, step) for k, v in known.items()], tags=tags)

    def log_best(self, folder: Path, best: dict[str, Any]) -> None:
        """The winning trial's settings and objective, on the sweep's own record."""
        run_id = read_json(folder / "mlflow.json")["run_id"]
        self.client.log_metric(run_id, "best_validation_accuracy", best["objective"])
        self.client.set_tag(run_id, "best_trial", best["id"])
        for key, value in best["settings"].items():
            self.client.set_tag(run_id, f"best.{key}", str(value))
