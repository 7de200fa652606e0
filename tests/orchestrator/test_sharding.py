"""What two workers tell each other: sums, the first one's numbers, and steps in which one of them has no row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from orchestrator.run.learner import Learner
from orchestrator.run.sharding import Place, device_here
from orchestrator.settings.errors import UserError
from tests.orchestrator.test_learner import TWO, learn, make_learner
from tests.support.experiments import small_experiment
from tests.support.pair import WORLD, Pair

SHARDINGS = ("none", "ddp", "fsdp2")
SETTINGS = [*TWO, "train.optimizer=sgd", "train.learning_rate=0.1", "train.head_learning_rate=0.1"]
SETTINGS += ["train.clip_norm=null"]  # a limit would hide gradients that are a multiple of the right ones


def told(process: int, folder: Path) -> None:
    """Each worker has numbers of its own, and the second one fewer of them."""
    place = Place(process, WORLD)
    numbers = [[], [3.5], [0.1, -2.0, 1e300]]
    found = [place.from_first(own if process == 0 else own[1:]) for own in numbers]
    total = place.total(torch.tensor([1.0, float(process)])).tolist()
    (folder / f"{process}.json").write_text(json.dumps({"numbers": found, "total": total}))


def test_the_first_workers_numbers_and_sums_reach_every_worker(pair: Pair, tmp_path: Path) -> None:
    pair.run(told, tmp_path)
    for process in range(WORLD):
        found = json.loads((tmp_path / f"{process}.json").read_text())
        assert found == {"numbers": [[], [3.5], [0.1, -2.0, 1e300]], "total": [2.0, 1.0]}


def test_one_process_keeps_its_own() -> None:
    assert Place().from_first([0.1, 2.0]) == [0.1, 2.0]
    assert Place().total(torch.tensor(3.0)) == 3.0


def of_single_rows(process: int, folder: Path) -> None:
    """Steps on one row, which the first worker has."""
    for sharding in SHARDINGS:
        learner = make_learner(small_experiment(folder, *SETTINGS), Place(process, WORLD, sharding))
        losses = learn(learner, steps=3, rows=1)
        torch.save((losses, trained(learner)), folder / f"{sharding}-{process}")


def trained(learner: Learner) -> dict[str, Tensor]:
    """Whole adapters and head, on the first worker."""
    return {name: value for name, value in learner.state()[0].items() if name.startswith("model.")}


@pytest.fixture(scope="module")
def single(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("single")
    pair.run(of_single_rows, folder)
    return folder


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_a_worker_without_a_row_adds_nothing(single: Path, sharding: str) -> None:
    alone = make_learner(small_experiment(single, *SETTINGS))
    before = {name: value.clone() for name, value in trained(alone).items()}
    losses, expected = learn(alone, steps=3, rows=1), trained(alone)
    (found, moved), (others, _) = (torch.load(single / f"{sharding}-{process}") for process in range(WORLD))
    assert found == others == pytest.approx(losses, abs=1e-5)
    assert moved.keys() == expected.keys() and max(float((expected[n] - before[n]).abs().max()) for n in before) > 1e-2
    for name, value in expected.items():
        torch.testing.assert_close(moved[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_a_run_computes_where_it_is_told_to() -> None:
    assert device_here("cpu") == torch.device("cpu")
    if torch.cuda.is_available():
        assert device_here("auto") == device_here("cuda") == torch.device("cuda")
        return
    assert device_here("auto") == torch.device("cpu")
    with pytest.raises(UserError, match=r"^device=cuda: torch finds no GPU here; say device=auto"):
        device_here("cuda")
