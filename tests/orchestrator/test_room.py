"""How many runs fit on a cluster at a time, and what is said where none does."""

from __future__ import annotations

import pytest

from orchestrator.cluster.room import check_room, room
from orchestrator.settings.compose import load_experiment
from orchestrator.settings.errors import UserError

SMALL, LARGE = {"CPU": 2.0}, {"CPU": 8.0, "GPU": 1.0}

FITTING = {
    "one CPU each": ([], [SMALL, SMALL], 4),
    "a part of a CPU": (["sweep.cpus=0.5"], [SMALL], 4),
    "a trial is never spread": (["sweep.cpus=3"], [SMALL, LARGE], 2),
    "parts of a GPU": (["sweep.gpus=0.25"], [SMALL, LARGE], 4),
    "CPUs run out before GPUs": (["sweep.cpus=4", "sweep.gpus=0.25"], [LARGE], 2),
    "workers are spread": (["scale.workers=3"], [SMALL, SMALL], 1),
    "workers with GPUs": (["scale.workers=1", "scale.gpus_per_worker=1"], [SMALL, LARGE], 1),
    "a GPU for each worker that there is": (["scale.workers=1"], [SMALL, LARGE], 1),
    "no GPU where one worker would have none": (["scale.workers=2"], [SMALL, LARGE], 5),
    "no GPU where the CPU is asked for": (["scale.workers=1", "device=cpu"], [SMALL, LARGE], 10),
}

REFUSED = {
    "too many workers": (["scale.workers=5"], "scale.workers=5: there are 4 CPUs, one for each worker; set scale.wor"),
    "workers without GPUs": (
        ["scale.workers=1", "scale.gpus_per_worker=1"],
        "scale.workers=1: there are 4 CPUs and 0 GPUs, one and 1 GPUs for each worker; set scale.gpus_per_worker=0",
    ),
    "a trial larger than a node": (["sweep.cpus=3"], "sweep.cpus=3: no node has room for one trial; at most 2"),
    "no GPU": (["sweep.gpus=0.5"], "sweep.gpus=0.5: no node has room for one trial; at most 0"),
    "too many at a time": (["sweep.concurrent=5"], "sweep.concurrent=5: there is room for 4 at a time; set it to that"),
    "too many with workers": (["scale.workers=2", "sweep.concurrent=3"], "sweep.concurrent=3: there is room for 2"),
}


@pytest.mark.parametrize("case", FITTING)
def test_runs_at_a_time(case: str) -> None:
    settings, nodes, expected = FITTING[case]
    experiment = load_experiment(settings)
    assert room(experiment, nodes) == expected
    check_room(load_experiment([*settings, f"sweep.concurrent={expected}"]), nodes)


@pytest.mark.parametrize("case", REFUSED)
def test_what_could_never_start_is_refused(case: str) -> None:
    settings, expected = REFUSED[case]
    with pytest.raises(UserError) as caught:
        check_room(load_experiment(settings), [SMALL, SMALL])
    assert str(caught.value).startswith(expected)
