"""What trials cost beside the same ones with bare Ray and plain torch, and what stopping the weak ones saves.

All from start to end of the commands. For the overhead a trial learns two tasks of eight images; start of Ray, record,
page and registered model are all in ours; what ``bare/`` does is told in its files.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.speed.measure import Measurement, all_cores, once
from benchmarks.speed.startup import TINY

# Seeds are the one dimension: every trial does the same work.
SWEEP = ("sweep", "benchmark=split_digits", "method=lora", "sweep.confirm=0", "name=overhead", *TINY[1:])


def sweep_overhead(toy: bool) -> list[Measurement]:
    """Hundred trials in processes that are used again, as many at a time as there are CPUs.

    Besides the whole: what a trial adds to its own work, in seconds of one core.
    """
    trials = 3 if toy else 100
    with tempfile.TemporaryDirectory() as folder, all_cores() as cores:
        bare = once([sys.executable, "-m", "benchmarks.speed.bare.tune_sweep", str(trials)])
        ours = once(sweep(Path(folder), trials))
        work = work_in(Path(folder), trials)
    detail = {"trials": trials, "bare": bare, "ours": ours, "work_of_a_trial": work, "cores": cores}
    beyond = ours * cores / trials - work
    return [
        Measurement("sweep-overhead", ours / bare, 1.25, {"unit": "bare Tune"} | detail),
        Measurement("sweep-overhead", beyond, 1.0, {"unit": "seconds of a core a trial beyond its work"} | detail),
    ]


def trial_overhead(toy: bool) -> list[Measurement]:
    """A trial of two FSDP2 workers, one at a time: the difference between sweeps of one and of five such trials."""
    fewer, more = (1, 2) if toy else (1, 5)
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, all_cores():
        for trials, sign in ((fewer, -1), (more, 1)):
            bare = [sys.executable, "-m", "benchmarks.speed.bare.train_driver", str(trials)]
            ours = [*sweep(Path(folder) / str(trials), trials), "scale=two_shards", "sweep.concurrent=1"]
            for name, command in (("bare", bare), ("ours", ours)):
                seconds[name] = seconds.get(name, 0.0) + sign * once(command) / (more - fewer)
    return [Measurement("trial-overhead", seconds["ours"] / seconds["bare"], 1.15, {"unit": "a bare trial"} | seconds)]


def early_stopping(toy: bool) -> list[Measurement]:
    """The same random trials with ASHA and without, over seeds of the search: the time, and the best that is found."""
    whole, stopped, lost = 0.0, 0.0, []
    with tempfile.TemporaryDirectory() as folder, all_cores():
        for seed in range(1 if toy else 3):
            found = {}
            for scheduler in ("none", "asha"):
                storage = Path(folder) / f"{scheduler}{seed}"
                command = searched(storage, scheduler, 3 if toy else 24, seed)
                seconds = once([*command, *TINY[1:]] if toy else command)
                whole, stopped = (whole + seconds, stopped) if scheduler == "none" else (whole, stopped + seconds)
                found[scheduler] = best_accuracy(storage / "search" / "sweep.json")
            lost.append(100 * (found["none"] - found["asha"]))
    detail: dict[str, Any] = {"seconds": {"none": whole, "asha": stopped}, "points_lost_by_seed": lost}
    return [
        Measurement("early-stopping", stopped / whole, 0.6, {"unit": "of the time without"} | detail),
        Measurement("early-stopping", max(lost), 1.0, {"unit": "points of validation accuracy lost"} | detail),
    ]


def searched(storage: Path, scheduler: str, trials: int, seed: int) -> list[str]:
    """With a trained head and one rate for all tasks: a closed-form one learns the first digits whatever the rate."""
    space = ["sweep.space.train.learning_rate={loguniform: [1e-5, 1e-1]}", "sweep.space.method.rank=[2,4,8]"]
    space += ["head=linear", "train.first_learning_rate=null", "train.epochs=1"]
    search = ["sweep.searcher=random", f"sweep.trials={trials}", f"sweep.scheduler={scheduler}", "sweep.confirm=0"]
    names = ["name=search", f"seed={seed}", f"storage={storage}", "tracking.enabled=false"]
    return [sys.executable, "run.py", "sweep", "benchmark=split_digits", "method=lora", *names, *search, *space]


def best_accuracy(sweep: Path) -> float:
    """Validation accuracy of the trial that a sweep chose."""
    read = json.loads(sweep.read_text())
    (best,) = (trial for trial in read["trials"] if trial["id"] == read["best"])
    return float(best["values"]["validation_accuracy"])


def sweep(storage: Path, trials: int) -> list[str]:
    seeds = json.dumps(list(range(trials)))
    return [sys.executable, "run.py", *SWEEP, f"sweep.space.seed={seeds}", f"storage={storage}"]


def work_in(storage: Path, trials: int) -> float:
    """Mean seconds that the runs themselves took, by their results."""
    results = sorted(storage.glob("overhead/trials/*/result.json"))
    if len(results) != trials:
        raise RuntimeError(f"{storage}: {len(results)} of {trials} trials have a result")
    return sum(json.loads(file.read_text())["seconds"]["total"] for file in results) / trials
