"""What an experiment is: every setting, its type and its range.

Values come from these defaults, then from ``configs/``, then from ``key=value`` on the command line, and from nowhere
else; ``compose.py`` brings them together.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, field_validator, model_validator

from benchmarks.dataset import StreamConfig
from benchmarks.models.config import BackboneConfig
from benchmarks.models.heads import HeadConfig
from methods import MethodConfig

Positive = Annotated[int, Field(gt=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Metric = Literal[
    "validation_accuracy", "anytime_validation_accuracy", "seconds", "stored_parameters", "peak_memory_bytes"
]
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
LONGEST_NAME = 100  # trials and temporary files add to it, and a file's name has 255 bytes


class Settings(BaseModel):
    """Frozen, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TrainConfig(Settings):
    """Settings ``train.<field>``."""

    epochs: Positive | tuple[Positive, ...] = Field(2, description="for every task, or a list with one for each")
    batch_size: int = Field(32, gt=0, description="examples in a step, over all workers")
    accumulate: int = Field(1, gt=0, description="parts that a step's batch goes through the model in")
    learning_rate: float = Field(1e-4, gt=0, allow_inf_nan=False, description="of the adapters")
    first_learning_rate: float | None = Field(
        1e-3,
        gt=0,
        allow_inf_nan=False,
        description="of the adapters in the first task; null, or where learning_rate alone is given: the same as later",
    )
    head_learning_rate: float = Field(5e-3, gt=0, allow_inf_nan=False)
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="of adam and adamw; sgd's momentum is the first")
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False)
    clip_norm: float | None = Field(1.0, gt=0, description="largest norm of the whole gradient; null: no limit")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 on a GPU that has it")
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass")
    compile: bool = Field(False, description="compile the blocks with torch.compile, in the first steps")
    evaluation_batch_size: int = Field(256, gt=0, description="examples in a batch without gradients, on each worker")

    @model_validator(mode="before")
    @classmethod
    def one_rate_is_every_tasks(cls, given: Any) -> Any:
        """Who gives one rate means all tasks: the first task's default rate would contradict it."""
        alone = isinstance(given, dict) and "learning_rate" in given and "first_learning_rate" not in given
        return given | {"first_learning_rate": None} if alone else given


class ScaleConfig(Settings):
    """Settings ``scale.<field>``: how many workers, and what they hold."""

    workers: int = Field(0, ge=0, description="Ray Train workers; 0 trains in this process, without a cluster")
    sharding: Literal["none", "ddp", "fsdp2"] = Field("fsdp2", description="how several workers share the model")
    gpus_per_worker: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        "auto", description="auto: one where there is one for each worker, else none"
    )
    max_failures: int = Field(3, ge=0, description="restarts of a lost worker group from its last checkpoint")


class CheckpointConfig(Settings):
    """Settings ``checkpoint.<field>``."""

    every: int = Field(50, gt=0, description="steps between checkpoints inside a task; one follows each task anyway")
    accept_change: bool = Field(
        False, description="go on where data, weights or code changed since the run began; the result says what"
    )


class EvaluateConfig(Settings):
    """Settings ``evaluate.<field>``: which tasks are scored when, and on how many rows."""

    every: int = Field(
        1, gt=0, description="tasks between evaluations of all seen ones; in between, the latest and the next alone"
    )
    limit: int | None = Field(None, gt=0, description="test rows of a task, and validation rows; default: all")


class TrackingConfig(Settings):
    """Settings ``tracking.<field>``."""

    enabled: bool = True
    uri: str | None = Field(None, description="MLflow server or database; default: MLFLOW_TRACKING_URI, else storage")
    experiment: str = "evergreen"


class BudgetConfig(Settings):
    """Settings ``sweep.budget.<field>``: when a search ends before it has tried all it could."""

    seconds: float | None = Field(None, gt=0, allow_inf_nan=False, description="no trial starts after so many seconds")
    trials: int | None = Field(None, gt=0, description="no trial starts after so many")


class SweepConfig(Settings):
    """Settings ``sweep.<field>``."""

    trials: int | None = Field(
        None, gt=0, description="trials in all; default: one for each point of the grid, or 8 where there is none"
    )
    searcher: Literal["grid", "random", "optuna"] = Field(
        "random", description="all points; lists as a grid and the rest drawn; TPE, which learns from earlier trials"
    )
    objectives: tuple[Metric, ...] = Field(
        ("validation_accuracy",), min_length=1, description="what is searched for; several give a Pareto front"
    )
    scheduler: Literal["none", "asha", "median", "hyperband"] = Field(
        "none", description="stops weak trials; they are compared after equal numbers of tasks"
    )
    grace: int = Field(1, gt=0, description="tasks that every trial learns before a scheduler may stop it")
    reduction: int = Field(3, ge=2, description="asha and hyperband let one trial in so many pass a rung")
    protocol: Literal["stream", "first_tasks", "transfer"] = Field(
        "stream", description="tuned on all tasks, on the first ones, or on this stream to report on another"
    )
    first_tasks: int = Field(3, gt=0, description="tasks of a trial under protocol first_tasks")
    transfer: tuple[str, ...] = Field((), description="settings of the other stream, as in '[\"benchmark=omniglot\"]'")
    confirm: int = Field(3, ge=0, description="fresh seeds that the chosen settings are run with at the end")
    concurrent: int | None = Field(None, gt=0, description="trials at a time; default: what the resources allow")
    cpus: float = Field(1.0, gt=0, allow_inf_nan=False, description="of a trial in one process; fractions allowed")
    gpus: float = Field(0.0, ge=0, allow_inf_nan=False, description="of a trial in one process; fractions allowed")
    retries: int = Field(1, ge=0, description="new attempts of a trial whose process or node was lost")
    budget: BudgetConfig = BudgetConfig()
    space: dict[str, Any] = Field(
        default_factory=dict,
        description="setting: [a, b] for a grid, {choice: […]}, {uniform: [a, b]}, and further forms",
    )

    @field_validator("objectives")
    @classmethod
    def each_once(cls, objectives: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(objectives)) < len(objectives):
            raise ValueError("name each one once")
        return objectives

    @model_validator(mode="after")
    def transfer_has_a_stream(self) -> SweepConfig:
        if (self.protocol == "transfer") != bool(self.transfer):
            raise ValueError("sweep.transfer names the other stream and belongs to protocol transfer; set both or none")
        if self.protocol == "transfer" and not self.confirm:
            raise ValueError("sweep.confirm=0: protocol transfer reports the runs on the other stream; set 1 or more")
        return self

    def search(self) -> dict[str, Any]:
        """The settings that make two searches the same one; resources and budgets may change when one goes on."""
        return self.model_dump(mode="json", exclude={"concurrent", "cpus", "gpus", "retries", "budget"})


class Experiment(Settings):
    """One run, or with ``sweep`` the runs around it."""

    name: str = Field(description="names the run's folder below storage")
    seed: int = Field(0, ge=0, lt=2**31, description="initial weights and batch order")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where a run in one process computes; auto: on a GPU where there is one"
    )
    order_seed: int | None = Field(None, ge=0, lt=2**31, description="order of the classes; null keeps the natural one")
    storage: Path = Field(Path("runs"), validate_default=True, description="folder of all runs, shared by all nodes")
    # pydantic would write the fields of MethodConfig alone, and lose each method's own.
    method: SerializeAsAny[MethodConfig]
    benchmark: StreamConfig
    backbone: BackboneConfig = BackboneConfig()
    head: HeadConfig = HeadConfig()
    train: TrainConfig = TrainConfig()
    scale: ScaleConfig = ScaleConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()
    sweep: SweepConfig = SweepConfig()

    @model_validator(mode="after")
    def computes_in_what_it_stores(self) -> Experiment:
        if self.backbone.dtype == "bf16" and self.train.precision == "fp32":
            raise ValueError("backbone.dtype=bf16 computes in bf16; leave out train.precision=fp32, or say float32")
        return self

    @field_validator("name")
    @classmethod
    def stays_in_folder(cls, name: str) -> str:
        if not SAFE_NAME.fullmatch(name) or len(name) > LONGEST_NAME:
            raise ValueError("use letters, digits, '.', '_' and '-' (at most 100), starting with a letter or digit")
        return name

    @field_validator("storage")
    @classmethod
    def absolute(cls, storage: Path) -> Path:
        # Ray's workers start in another folder, where a relative one would be another place.
        storage = storage.expanduser().absolute()
        try:
            str(storage).encode()
        except UnicodeEncodeError:
            raise ValueError("its name is not UTF-8, which the record's database cannot have; choose another") from None
        return storage

    @property
    def folder(self) -> Path:
        return self.storage / self.name

    @property
    def subset(self) -> dict[str, int]:
        """The settings by which data are left out, where there are any."""
        limit = {"evaluation_rows": self.evaluate.limit} if self.evaluate.limit else {}
        return self.benchmark.subset | limit

    def identity(self) -> dict[str, Any]:
        """The settings that make two runs the same run; where records go, and how often, is not among them.

        Neither is the device, which stands with what else makes numbers, in ``run/identity.py``.
        """
        return self.model_dump(mode="json", exclude={"name", "storage", "checkpoint", "tracking", "sweep", "device"})
