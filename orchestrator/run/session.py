"""One worker's part of a run, from building the learner to the written result; the same with and without Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from torch import Tensor

from benchmarks import metrics
from benchmarks.dataset import BenchmarkError
from benchmarks.limit import limited
from benchmarks.models.backbones import input_format
from benchmarks.outline import outline_of, stream_of
from benchmarks.overview import overview
from benchmarks.stream import TaskStream, build_stream
from methods.base import Chooser
from orchestrator.run import checkpoint
from orchestrator.run.checkpoint import write_json
from orchestrator.run.identity import check_identity, code_digest, identity_of
from orchestrator.run.learner import Learner, part
from orchestrator.run.loop import Hooks, Matrix, Position, learn
from orchestrator.run.memory import forget_peak, peak_memory
from orchestrator.run.service import make_service
from orchestrator.run.sharding import Place, device_here
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError

PROGRESS_SECONDS = 0.3  # a little more often than watchers look (0.5 s)


class Search(Chooser, Protocol):
    """A chooser whose state is part of the run's checkpoint; all workers call these together."""

    def expect(self, parts: int) -> None: ...

    def state_dict(self, since: int = 0) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...

    def report(self) -> dict[str, Any]: ...


class Session:
    """Everything that one worker needs to take part in a run; its data are read unless ``stream`` is given."""

    def __init__(
        self,
        experiment: Experiment,
        place: Place,
        search: Search | None,
        report: Callable[[dict[str, Any]], None],
        stream: TaskStream | None = None,
    ) -> None:
        self.experiment, self.place, self.search, self.report = experiment, place, search, report
        forget_peak(place.device)
        self.stream = read_stream(experiment) if stream is None else stream
        self.learner = Learner(experiment, self.stream, place, search)
        self.position = Position()
        self.earlier, self.started = 0.0, time.perf_counter()
        self.writer = checkpoint.Writer(experiment.folder)
        self.kept = 0  # finished tasks whose lasting tensors are written
        self.written = 0.0
        self.history: list[dict[str, Any]] = []  # the numbers after each task
        self.identity: dict[str, Any] = {}
        self.changes: list[dict[str, Any]] = []

    def run(self) -> None:
        """Resume where the checkpoint stands, learn, write the result."""
        self.goes_on_with(self.resume())
        self.progress(steps=1)
        hooks = Hooks(self.save, self.stepped, self.learned)
        every = self.experiment.checkpoint.every, self.experiment.evaluate.every
        try:
            learn(self.learner, self.stream, self.position, hooks, *every)
        finally:
            self.writer.close()
        details = self.search.report() if self.search else self.learner.method.report()
        if self.place.rank == 0:
            write_json(self.experiment.folder / "result.json", self.result(details))
        # Only now, with everything written: ASHA stops a trial at the report of its last task.
        self.report(task_metrics(self.position, self.position.task - 1))

    def goes_on_with(self, begun: dict[str, Any]) -> None:
        """UserError where data, weights or code are others than those that this run has ``begun`` with."""
        accepted = self.experiment.checkpoint.accept_change
        self.identity = identity_of(self.experiment, self.stream, self.place.device)
        changes = check_identity(begun.get("identity"), self.identity, self.place, accepted)
        self.changes = [*begun.get("changes", []), *self.noted(changes)]

    def resume(self) -> dict[str, Any]:
        """Bring learner, position and search to the newest checkpoint, or to the start; gives what that one says."""
        found = checkpoint.load(self.experiment.folder)
        tensors, values = found or ({}, {})
        if found:
            self.position = Position.restored(values["position"], part(tensors, "position."))
            self.kept = self.position.task
            self.earlier = values["seconds"].pop("total")
            # Inside a task the optimiser has to be there to load its moments; begin_task would start the task anew.
            if self.position.step > 0:
                self.learner.select(self.stream.tasks[self.position.task])
            self.learner.load(tensors, values)
        # Also without a checkpoint: a search that outlived its workers has to be emptied.
        if self.search:
            self.search.expect(self.learner.method.levels.parts)
            self.search.load_state_dict(part(tensors, "search."))
        # Behind it, all workers have read what there is.
        self.place.barrier()
        self.pass_over(values)
        return values

    def pass_over(self, values: dict[str, Any]) -> None:
        """Keep newer checkpoints that are damaged aside, and note them in the result."""
        damaged: dict[str, str] = values.pop("damaged", {})
        if self.place.rank == 0:
            checkpoint.set_aside(self.experiment.folder, damaged)
        noted = self.noted(f"checkpoint {name} was damaged ({why})" for name, why in damaged.items())
        values["changes"] = [*values.get("changes", []), *noted]

    def noted(self, changes: Iterable[str]) -> list[dict[str, Any]]:
        """What has changed since the run began, with where it stands now."""
        return [{"task": self.position.task, "step": self.position.step, "what": change} for change in changes]

    def seconds(self) -> dict[str, float]:
        total = self.earlier + time.perf_counter() - self.started
        return self.learner.seconds | {"total": total}

    def save(self, position: Position) -> None:
        with self.learner.timed("checkpoint"):
            # On every worker, since shards are gathered for it; only the first one writes.
            tensors, values = self.learner.state(self.kept)
            if self.search:
                tensors |= {f"search.{k}": v for k, v in self.search.state_dict(self.kept).items()}
            tensors |= {f"position.{k}": v for k, v in position.rows(self.kept).items()}
            self.kept = position.task
            if self.place.rank == 0:
                values |= {"position": position.as_dict(), "seconds": self.seconds(), "stream": outline_of(self.stream)}
                values["finished"] = self.kept
                values |= {"identity": self.identity, "changes": self.changes}
                self.writer.save(tensors, values)

    def stepped(self, position: Position, steps: int) -> None:
        if time.monotonic() - self.written > PROGRESS_SECONDS:
            self.progress(steps)

    def learned(self, position: Position) -> None:
        # Written before it is reported: a scheduler may stop a trial at its report; a task that was reported and not
        # saved would be learned again.
        with self.learner.timed("checkpoint"):
            self.writer.wait()
        # The file first: a sweep's driver copies it to the record when the report arrives. The last report is run's.
        self.progress(steps=1)
        if position.task < len(self.stream.tasks):
            self.report(task_metrics(position, position.task - 1))

    def progress(self, steps: int) -> None:
        """Write progress.json, from which other processes show the progress and keep the MLflow record."""
        self.written = time.monotonic()
        if self.place.rank == 0:
            known = len(self.history)
            self.history += [task_metrics(self.position, task) for task in range(known, self.position.task)]
            now = {
                "task": self.position.task,
                "tasks": len(self.stream.tasks),
                "step": self.position.step,
                "steps": steps,
                "loss": self.position.loss,
                "history": self.history,
            }
            write_json(self.experiment.folder / "progress.json", now)

    def result(self, details: dict[str, Any] | None) -> dict[str, Any]:
        """The content of result.json."""
        experiment, position = self.experiment, self.position
        sizes = [len(task.test) for task in self.stream.tasks]
        return {
            "name": experiment.name,
            "method": experiment.method.name,
            "benchmark": experiment.benchmark.name,
            "seed": experiment.seed,
            "order_seed": experiment.order_seed,
            "config": experiment.model_dump(mode="json", exclude={"storage"}),  # a folder may be moved
            "task_names": [task.name for task in self.stream.tasks],
            "class_names": self.stream.class_names,
            "scenario": self.stream.scenario,
            "scores": [task.score for task in self.stream.tasks],
            "subset": experiment.subset,
            **self.identity,
            "code": code_digest(),
            "changes": self.changes,
            "prepared_rows": self.stream.fresh,
            "skipped": self.stream.skipped,
            "overview": overview(self.stream),
            "accuracy_matrix": position.test,
            "unmasked_matrix": position.unmasked,
            "validation_matrix": position.validation,
            "initial_accuracy": position.initial,
            **metrics.summary(position.test, position.initial, sizes),
            "seconds": self.seconds(),
            "peak_memory_bytes": peak_memory(self.place.device),
            "trainable_parameters": self.learner.trainable_parameters,
            "stored_parameters": self.learner.method.stored_parameters(),
            "method_report": details,
        }


def run_here(experiment: Experiment, report: Callable[[dict[str, Any]], None] = lambda metrics: None) -> None:
    """The whole run in this process; ``report`` gets the numbers after each task."""
    place = Place(device=device_here(experiment.device))
    Session(experiment, place, make_service(experiment), report).run()


def read_stream(experiment: Experiment) -> TaskStream:
    """The experiment's stream; UserError where the data is not usable."""
    try:
        stream = build_stream(experiment.benchmark, experiment.order_seed, input_format(experiment.backbone))
        return limited(stream, experiment.evaluate.limit) if experiment.evaluate.limit else stream
    except BenchmarkError as error:
        raise UserError(str(error)) from None


def stream_without_rows(experiment: Experiment) -> TaskStream:
    """The stream as the run's newest checkpoint has it, so that the data may be gone; read where it has none."""
    found = checkpoint.load(experiment.folder)
    outline = found[1].get("stream") if found else None  # checkpoints of earlier versions lack it
    return stream_of(outline) if outline else read_stream(experiment)


def task_metrics(position: Position, task: int) -> dict[str, Any]:
    """Numbers after ``task`` + 1 tasks: means over the tasks seen by then, None where these were not all scored."""
    seen = task + 1
    return {
        "task": seen,
        "test_accuracy": mean_of_seen(position.test, task),
        "validation_accuracy": mean_of_seen(position.validation, task),
        "anytime_validation_accuracy": metrics.average_anytime_accuracy(position.validation[:seen]),
        "loss": position.losses[task],
    }


def mean_of_seen(matrix: Matrix, task: int) -> float | None:
    return None if None in matrix[task][: task + 1] else metrics.seen_mean(matrix, task)
