"""Run the suite, or one case of it: a line for each value on stderr, the records as JSON on stdout or in a file."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable

from benchmarks.speed import gorp, run_costs, sdlora, training, treelora_step
from benchmarks.speed.evaluation import evaluation
from benchmarks.speed.measure import Measurement, pin
from benchmarks.speed.memory import loading_peak, worker_memory
from benchmarks.speed.page import measuring, page, put, writable_file
from benchmarks.speed.sketching import sketch
from benchmarks.speed.startup import startup
from benchmarks.speed.tree_scale import tree_scale
from benchmarks.speed.tree_service import tree_service
from benchmarks.speed.trials import early_stopping, sweep_overhead, trial_overhead

CASES: dict[str, Callable[[bool], list[Measurement]]] = {
    "tree-scale": tree_scale,
    "treelora-step-vitb": treelora_step.vit_base,
    "treelora-step-7b": treelora_step.seven_billion,
    "sdlora-step": sdlora.step,
    "sdlora-growth": sdlora.growth,
    "sdlora-fold": sdlora.fold,
    "gorp-step": gorp.step,
    "gorp-refresh": gorp.refresh,
    "gorp-leak": gorp.leak,
    "evaluation": evaluation,
    "sketch": sketch,
    "treelora-training": training.treelora_training,
    "compile": training.compiled,
    "workers": training.workers,
    "tree-actor": training.tree_actor,
    "tree-service": tree_service,
    "checkpoint": run_costs.checkpoint,
    "loader": run_costs.loader,
    "stream-growth": run_costs.growth,
    "startup": startup,
    "loading-peak": loading_peak,
    "worker-memory": worker_memory,
    "sweep-overhead": sweep_overhead,
    "trial-overhead": trial_overhead,
    "early-stopping": early_stopping,
}


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    options = parser().parse_args(arguments)
    pin()
    records = []
    for name in options.only or CASES:
        for measurement in CASES[name](options.toy):
            records.append(measurement.record())
            print(line(records[-1]), file=sys.stderr, flush=True)
    if options.page:
        put(page(records), options.page)
    put(json.dumps(records, indent=2) + "\n", options.json)


def parser() -> argparse.ArgumentParser:
    result = measuring("benchmarks.speed", "Figures measured beside their reference.")
    result.add_argument("--only", choices=CASES, nargs="+", metavar="CASE", help=f"some of {', '.join(CASES)}")
    result.add_argument(
        "--json", type=writable_file, metavar="FILE", help="write the records there instead of printing them"
    )
    return result


def line(record: dict[str, object]) -> str:
    holds = "holds" if record["holds"] else "FAILS"
    return f"{record['case']}: {record['value']:.3g} (reach {record['reach']:g}) {holds} {record['detail']}"


if __name__ == "__main__":
    main()
