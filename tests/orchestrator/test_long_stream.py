"""Long streams: what is written at a task stays the same however many there were, and a stop costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from benchmarks.speed.run_costs import arrays
from orchestrator.launch import train
from orchestrator.run import checkpoint
from orchestrator.settings.config import Experiment
from tests.support.experiments import small_experiment
from tests.support.interruption import train_until

TASKS = 1000
every_method = pytest.mark.parametrize("method", ["treelora", "sdlora", "gorp"])


@contextmanager
def sizes() -> Iterator[dict[tuple[int, int], int]]:
    """Bytes of the tensors of each checkpoint that is written meanwhile, by task and step.

    Without SD-LoRA's inner products, a square of the number of tasks, which are written whole.
    """
    found: dict[tuple[int, int], int] = {}
    save = checkpoint.save

    def measured(run: Path, tensors: dict[str, Tensor], values: dict[str, Any]) -> Path:
        position = values["position"]
        counted = (tensor.nbytes for name, tensor in tensors.items() if name != "method.gram")
        found[position["task"], position["step"]] = sum(counted)
        return save(run, tensors, values)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(checkpoint, "save", measured)
        yield found


@every_method
def test_a_checkpoint_late_in_the_stream_costs_what_an_early_one_does(
    small: Callable[..., Experiment], method: str
) -> None:
    """Pairs, spaces, targets and sketches of finished tasks are in files apart."""
    experiment = small(f"method={method}", "name=a", "benchmark.tasks=5", "benchmark.classes=10", "checkpoint.every=1")
    with sizes() as written:
        train(experiment)
    assert written[4, 2] <= 1.05 * written[1, 2] and written[5, 0] <= 1.05 * written[1, 0]
    files = sorted((experiment.folder / "checkpoints" / "finished").iterdir())
    assert [file.stem for file in files] == [f"{task:06d}" for task in range(5)]
    assert files[0].stat().st_size == pytest.approx(files[4].stat().st_size, rel=0.2)


@pytest.mark.slow
@every_method
def test_a_thousand_tasks(tmp_path: Path, method: str) -> None:
    """Two classes of eight images each, and one direction a task, so that a step stays short."""
    file = arrays(tmp_path / "images.npz", 2 * TASKS)
    data = ["benchmark=array", f"benchmark.path={file}", f"benchmark.tasks={TASKS}", "benchmark.train_per_class=6"]
    rows = ["benchmark.test_per_class=2", f"evaluate.every={TASKS}"]
    experiment = small_experiment(
        tmp_path, f"method={method}", "method.rank=1", "train.epochs=1", "name=long", *data, *rows
    )
    with sizes() as written:
        train_until(experiment, TASKS // 2, 0)
        result = train(experiment)
    assert len(result["accuracy_matrix"]) == TASKS and None not in result["accuracy_matrix"][-1]
    assert [task for task, _ in written] == list(range(1, TASKS + 1)), "each task once"
    # A row of a matrix and a search's pulls have a number a task, SD-LoRA a norm and an offset in each projection.
    each = 300 if method == "sdlora" else 100
    assert written[TASKS, 0] - written[TASKS // 10, 0] <= each * TASKS
