"""A stream of a thousand tasks: it ends, what is written at a task stays the same, and a stop in it costs nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from benchmarks.speed.run_costs import arrays
from orchestrator.launch import train
from orchestrator.run import checkpoint
from tests.support.experiments import small_experiment
from tests.support.interruption import train_until

TASKS = 1000


@pytest.mark.slow
@pytest.mark.parametrize("method", ["treelora", "sdlora", "gorp"])
def test_a_thousand_tasks(tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two classes of eight images each; SD-LoRA's directions are 1 wide, that a step stays short."""
    file = arrays(tmp_path / "images.npz", 2 * TASKS)
    data = ["benchmark=array", f"benchmark.path={file}", f"benchmark.tasks={TASKS}", f"evaluate.every={TASKS}"]
    settings = [f"method={method}", "method.rank=1", "train.epochs=1", "name=long", "evaluate.limit=4"]
    experiment = small_experiment(tmp_path, *data, *settings)
    written: dict[int, int] = {}
    save = checkpoint.save

    def measured(run: Path, tensors: dict[str, Tensor], values: dict[str, Any]) -> Path:
        written[values["position"]["task"]] = sum(tensor.nbytes for tensor in tensors.values())
        return save(run, tensors, values)

    monkeypatch.setattr(checkpoint, "save", measured)
    train_until(experiment, TASKS // 2, 0)
    result = train(experiment)
    assert len(result["accuracy_matrix"]) == TASKS and None not in result["accuracy_matrix"][-1]
    assert list(written) == list(range(1, TASKS + 1)), "each task once"
    # A matrix row and a search's pulls have a number for each task.
    assert written[TASKS] - written[TASKS // 10] <= 100 * TASKS
