"""Plants one fault at a time into a copy of the project and says whether the tests named for it fail.

    python -m tests.mutations           # all faults, some minutes
    python -m tests.mutations WORD ...  # only those with one of the words in their name

Ends with 1 if a fault survived, and with 2 if a named test fails without any fault. pytest does not collect this file.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import peft  # noqa: F401  imported once for all faults, like the others that take seconds
import pytest
import timm  # noqa: F401
import transformers  # noqa: F401

PROJECT = Path(__file__).resolve().parents[1]
PARTS = ("benchmarks", "configs", "methods", "orchestrator", "tests", "pyproject.toml", "README.md", "run.py")
SECONDS = 300  # a fault may also make a test wait for ever, which counts as caught


@dataclass(frozen=True)
class Fault:
    """``old`` stands once in ``file``; with ``new`` in its place some of ``tests``, files or names, must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str


TREE = "tests/methods/treelora"
GORP = "tests/methods/gorp"
STEPS = "tests/orchestrator/test_learner.py"
READOUTS = "tests/benchmarks/test_readouts.py"
METRICS = "tests/benchmarks/test_metrics.py"
STREAM = "tests/benchmarks/test_stream.py"
SWEEP = "tests/orchestrator/test_sweep.py"
FAULTS = [
    # TreeLoRA
    Fault(
        "the bound of the search lies above the mean",
        "methods/treelora/search/arms.py",
        "return total / count - confidence * math.sqrt((scale",
        "return total / count + confidence * math.sqrt((scale",
        f"{TREE}/test_search.py",
    ),
    Fault(
        "nodes remember their last loss alone",
        "methods/treelora/search/bandit.py",
        "total[node] += loss",
        "total[node] = loss",
        f"{TREE}/test_search.py",
    ),
    Fault(
        "bounds on the path are not refreshed",
        "methods/treelora/search/bandit.py",
        "self.refresh(path if",
        "self.refresh(path[:1] if",
        f"{TREE}/test_search.py",
    ),
    Fault(
        "parts of a sketch are added as they arrive",
        "methods/treelora/service.py",
        "for p in sorted(parts))",
        "for p in parts)",
        f"{TREE}/test_service.py",
    ),
    Fault(
        "a sketch hashes places in the shard",
        "methods/treelora/sketch.py",
        "bits = coordinate_hash(torch.arange(first, first + size)",
        "bits = coordinate_hash(torch.arange(size)",
        f"{TREE}/test_sketch.py",
    ),
    Fault(
        "the running mean forgets early steps",
        "methods/treelora/signature.py",
        "self.mean.lerp_(seen, 1 / self.count)",
        "self.mean.lerp_(seen, 1 / min(self.count, 10))",
        f"{TREE}/test_signature.py",
    ),
    Fault(
        "the regulariser pushes away",
        "methods/treelora/regulariser.py",
        "along_stored.append(-1 / (x * g)",
        "along_stored.append(1 / (x * g)",
        f"{TREE}/test_regulariser.py::test_values_and_gradients_equal_automatic_differentiation",
    ),
    Fault(
        "merged tasks count by halves",
        "methods/treelora/memory.py",
        "share = self.counts[dropped] / (self.counts[kept] + self.counts[dropped])",
        "share = 0.5",
        f"{TREE}/test_treelora_method.py {TREE}/test_task_memory.py",
    ),
    Fault(
        "a diameter is the smallest distance",
        "methods/treelora/tree/diameter.py",
        "pairs[a:b, a:b].max()",
        "pairs[a:b, a:b].min()",
        f"{TREE}/test_tree.py::test_a_diameter_bounds_all_distances_and_never_grows_downwards",
    ),
    Fault(
        "the smallest entries are kept",
        "methods/sparsity.py",
        "return gradients * (bins >= threshold",
        "return gradients * (bins <= threshold",
        "tests/methods/test_sparsity.py",
    ),
    # GORP, SD-LoRA and stacked layers
    Fault(
        "protection doubles what it should remove",
        "methods/gorp/space.py",
        "total(inside), alpha=-1)",
        "total(inside), alpha=1)",
        f"{GORP}/test_gorp_space.py",
    ),
    Fault(
        "protection is on the other side",
        "methods/gorp/compression.py",
        '        if self.free == "columns" and self.rank is None:\n            return protect',
        '        if self.free == "rows" and self.rank is None:\n            return protect',
        f"{GORP}/test_gorp_optimizer.py::test_no_update_moves_into_the_space",
    ),
    Fault(
        "moments are not rotated into the new basis",
        "methods/gorp/optimizer.py",
        'own.overlap(state["basis"], basis)',
        "own.overlap(basis, basis)",
        f"{GORP}/test_gorp_optimizer.py::test_moments_are_rotated_or_kept_at_a_refresh",
    ),
    Fault(
        "each rank judges a gradient for itself",
        "methods/gorp/optimizer.py",
        "            if process_group is not None:",
        "            if False:",
        f"{GORP}/test_gorp_split.py::test_ranks_agree_on_gradients_that_are_not_finite",
    ),
    Fault(
        "old magnitudes start anew",
        "methods/sdlora/method.py",
        'first = 0 if self.config.alpha_at_task_start == "reset" else count',
        "first = 0",
        "tests/methods/sdlora/test_sdlora.py::test_only_a_joint_norm_hands_over_what_was_learned",
    ),
    Fault(
        "a norm divides a direction and no magnitude grows",
        "methods/sdlora/method.py",
        "magnitudes[count - 1] *= self.directions",
        "magnitudes[count - 1] *= 1 + 0 * self.directions",
        "tests/methods/sdlora/test_sdlora.py::test_only_a_joint_norm_hands_over_what_was_learned",
    ),
    Fault(
        "a direction's gradient lacks its scale",
        "methods/stacked/product.py",
        "for_B = torch.stack(dense) * scales[:, None, stored:]",
        "for_B = torch.stack(dense)",
        "tests/methods/stacked/test_stacked.py::test_the_stack_is_the_loop_over_separate_adapters",
    ),
    Fault(
        "a folded weight stays folded",
        "methods/stacked/layer.py",
        "locals_of([self.base.weight])[0].copy_(self.unfolded)",
        "locals_of([self.base.weight])[0]",
        "tests/methods/stacked/test_stacked_fold.py::test_a_folded_layer_is_the_unfolded_one",
    ),
    # steps, workers and checkpoints
    Fault(
        "gradients are added over workers and not averaged",
        "orchestrator/run/sharding.py",
        "parameter.grad.copy_(self.total(parameter.grad) / self.world)",
        "parameter.grad.copy_(self.total(parameter.grad))",
        "tests/orchestrator/test_sharding.py",
    ),
    Fault(
        "the first worker's numbers are not sent",
        "orchestrator/run/sharding.py",
        "dist.broadcast(sent, 0)",
        "pass",
        "tests/orchestrator/test_sharding.py",
    ),
    Fault(
        "every worker sends the part of the first",
        "orchestrator/run/sharding.py",
        "0 if self.rank == 0 else None, 1)",
        "0, 1)",
        "tests/methods/test_levels.py::test_sketches_of_all_workers_add_up_to_that_of_one_process",
    ),
    Fault(
        "a worker without rows counts all the same",
        "orchestrator/run/learner.py",
        "weight = float(len(mine) > 0)",
        "weight = 1.0",
        "tests/orchestrator/test_sharding.py",
    ),
    Fault(
        "rows that fill up a share count in scores",
        "orchestrator/run/learner.py",
        "rows.clamp(max=count - 1), rows < count",
        "rows.clamp(max=count - 1), rows <= count",
        f"{STEPS}::test_two_workers_end_like_one[none]",
    ),
    Fault(
        "the first rate is that of all tasks",
        "orchestrator/run/learner.py",
        "settings.first_learning_rate if task.index == 0 else None",
        "settings.first_learning_rate",
        f"{STEPS}::test_the_first_learning_rate_is_that_of_the_first_task_alone",
    ),
    Fault(
        "all epochs have one order",
        "orchestrator/run/loop.py",
        "* 1_000_003 + epoch",
        "* 1_000_003",
        f"{STEPS}::test_epochs_are_a_number_or_one_for_each_task",
    ),
    Fault(
        "a resumed task repeats a step",
        "orchestrator/run/loop.py",
        "list(batches(task, learner))[position.step :]",
        "list(batches(task, learner))[max(0, position.step - 1) :]",
        "tests/orchestrator/test_run.py::test_a_stopped_run_ends_like_an_undisturbed_one[treelora-1-5]",
    ),
    Fault(
        "one checkpoint less is kept",
        "orchestrator/run/checkpoint.py",
        "KEEP = 2",
        "KEEP = 1",
        "tests/orchestrator/test_checkpoint.py",
    ),
    # heads, metrics and streams
    Fault(
        "ridge regression without its penalty",
        "benchmarks/models/readouts.py",
        "cholesky(matrix + ridge * torch.eye",
        "cholesky(matrix + rounding(matrix) * torch.eye",
        READOUTS,
    ),
    Fault(
        "the Gaussian head does not shrink",
        "benchmarks/models/readouts.py",
        "max(self.shrinkage * float(",
        "max(0 * float(",
        READOUTS,
    ),
    Fault(
        "forgetting is negative",
        "benchmarks/metrics.py",
        "best[j] - value(matrix, last, j)",
        "value(matrix, last, j) - best[j]",
        METRICS,
    ),
    Fault(
        "losses are clipped and not gains",
        "benchmarks/metrics.py",
        "min(gain, 0.0) if clipped",
        "max(gain, 0.0) if clipped",
        METRICS,
    ),
    Fault(
        "the seed of the order is ignored",
        "benchmarks/parts.py",
        "    if order_seed is None:",
        "    if True:",
        f"{STREAM}::test_order_seed_moves_classes_and_nothing_else",
    ),
    Fault(
        "validation rows are trained on",
        "benchmarks/stream.py",
        "kept = [rows[count:]",
        "kept = [rows[count - 1 :]",
        f"{STREAM}::test_split_digits_holds_each_of_the_1797_images_once",
    ),
    Fault(
        "validation comes out of test",
        "benchmarks/stream.py",
        "own_train, own_validation, own_test, part.options",
        "own_train, own_test, own_test, part.options",
        f"{STREAM}::test_split_digits_holds_each_of_the_1797_images_once",
    ),
    # Searches
    Fault(
        "the smallest accuracy wins a search",
        "orchestrator/search/objectives.py",
        'sign = -1 if DIRECTIONS[objective] == "max" else 1',
        'sign = 1 if DIRECTIONS[objective] == "max" else -1',
        f"{SWEEP}::test_the_choice_is_made_on_validation_and_test_scores_cannot_be_seen",
    ),
    Fault(
        "a search is told of test scores",
        "orchestrator/search/objectives.py",
        'matrix = result["validation_matrix"]',
        'matrix = result["accuracy_matrix"]',
        f"{SWEEP}::test_the_choice_is_made_on_validation_and_test_scores_cannot_be_seen",
    ),
    Fault(
        "trials that are equal at a rung stay so",
        "orchestrator/search/stopping.py",
        "for task in compared if task in other",
        "for task in compared[:1] if task in other",
        "tests/orchestrator/test_stopping.py",
    ),
    Fault(
        "the worst pass a rung",
        "orchestrator/search/stopping.py",
        "if value > mine[at])",
        "if value < mine[at])",
        "tests/orchestrator/test_stopping.py",
    ),
    Fault(
        "a trial that was cut off is left out when a search goes on",
        "orchestrator/search/search.py",
        'if not trial.over or trial.status == "failed":',
        'if trial.status == "failed":',
        f"{SWEEP}::test_a_search_that_is_killed_and_moved_ends_as_one_that_was_not",
    ),
    Fault(
        "changed data are taken for those of the run",
        "orchestrator/run/identity.py",
        "if old != new:",
        "if False:",
        "tests/orchestrator/test_identity.py",
    ),
]


def main() -> int:
    chosen = [fault for fault in FAULTS if not sys.argv[1:] or any(word in fault.name for word in sys.argv[1:])]
    with tempfile.TemporaryDirectory() as folder:
        copy = copied(Path(folder) / "project")
        if not passes(copy, list(dict.fromkeys(test for fault in chosen for test in fault.tests.split()))):
            print("one of the named tests fails without any fault: mend it first")
            return 2
        survived = [fault.name for fault in chosen if not caught(copy, fault)]
    print(f"{len(chosen) - len(survived)} of {len(chosen)} faults caught")
    return 1 if survived else 0


def copied(target: Path) -> Path:
    target.mkdir()
    for name in PARTS:
        source = PROJECT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target / name)
    return target


def caught(copy: Path, fault: Fault) -> bool:
    """Whether the tests fail with the fault; the copy is whole again afterwards."""
    file = copy / fault.file
    before = file.read_text()
    if before.count(fault.old) != 1:
        raise SystemExit(f"{fault.file}: {fault.old!r} stands there {before.count(fault.old)} times; mend this list")
    file.write_text(before.replace(fault.old, fault.new))
    found = not passes(copy, fault.tests.split())
    file.write_text(before)
    print(f"{'caught  ' if found else 'SURVIVED'}  {fault.name}", flush=True)
    return found


def passes(copy: Path, tests: list[str]) -> bool:
    """Run them in a process of its own, which has not imported the project yet."""
    process = get_context("fork").Process(target=run, args=(copy, tests))
    process.start()
    process.join(SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # with the workers that it started
    process.join()
    return process.exitcode == 0


def run(copy: Path, tests: list[str]) -> None:
    """The copy takes the project's place."""
    os.setsid()
    os.chdir(copy)
    sys.path[:] = [str(copy), *(place for place in sys.path if place not in ("", str(PROJECT)))]
    for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
        del sys.modules[name]
    sys.dont_write_bytecode = True  # its age is told in whole seconds, so that a fault could outlive its run
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
        code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-n", "0", *tests])
    sys.exit(int(code))


if __name__ == "__main__":
    sys.exit(main())
