"""The shape of the house: imports point down, Ray and MLflow have one room each, and the loop knows no method."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from methods import method_names

PROJECT = Path(__file__).resolve().parents[1]
FLOORS = ("run", "orchestrator", "benchmarks", "methods")
WINGS = (
    "front door",
    "cluster",
    "records",
    "pages",
    "search",
    "run",
    "settings",
)  # of orchestrator, from top to bottom
HOMES = {"ray": Path("orchestrator/cluster"), "mlflow": Path("orchestrator/records")}
# What the engine is measured beside is made of bare Ray.
BARE = Path("benchmarks/speed/bare")
# benchmarks/speed measures methods beside their references, below everything that runs them
SPEED = Path("benchmarks/speed")


def source_files() -> list[Path]:
    found = [PROJECT / "run.py"]
    for floor in FLOORS[1:]:
        found += sorted((PROJECT / floor).rglob("*.py"))
    return [file.relative_to(PROJECT) for file in found]


def imported(source: str) -> Iterator[str]:
    """Dotted names of all imports, those inside functions and for type checkers included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def floor(parts: tuple[str, ...]) -> int | None:
    name = parts[0].removesuffix(".py")
    return FLOORS.index(name) if name in FLOORS else None


def wing(parts: tuple[str, ...]) -> int:
    """The room of ``orchestrator.<room>.…``; files beside the rooms are the front door."""
    return WINGS.index(parts[1]) if len(parts) > 1 and parts[1] in WINGS else 0


def wrong_arrows(file: Path, source: str) -> list[str]:
    """What ``file`` imports though it must not."""
    wrong = []
    for name in imported(source):
        there = tuple(name.split("."))
        home = HOMES.get(there[0])
        if home and home not in file.parents and not (there[0] == "ray" and BARE in file.parents):
            wrong.append(f"{file}: {there[0]} is imported outside {home}/")
        here_floor, there_floor = floor(file.parts), floor(there)
        if there_floor is None or here_floor is None:
            continue
        if there_floor < here_floor:
            wrong.append(f"{file}: {name} is a floor above")
        elif there[0] == "orchestrator" == file.parts[0] and wing(there) < wing(file.parts):
            wrong.append(f"{file}: {name} is a room above")
        elif there[0] == "methods" and file.parts[0] == "benchmarks" and SPEED not in file.parents:
            wrong.append(f"{file}: {name} belongs to methods; benchmarks/speed alone may know them")
    return wrong


def test_every_import_points_down() -> None:
    files = source_files()
    assert len(files) > 100
    assert [wrong for file in files for wrong in wrong_arrows(file, (PROJECT / file).read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("orchestrator/run/loop.py", "import ray"),
        ("orchestrator/launch.py", "from ray.train import report"),
        ("methods/lora.py", "def late():\n    import mlflow"),
        ("orchestrator/pages/console.py", "from orchestrator.records.tracking import Tracker"),
        ("orchestrator/run/session.py", "from orchestrator.cluster import sweep"),
        ("orchestrator/settings/compose.py", "from orchestrator import launch"),
        ("orchestrator/cluster/jobs.py", "import orchestrator.launch"),
        ("orchestrator/launch.py", "from run import main"),
        ("methods/base.py", "from benchmarks import metrics"),
        ("benchmarks/stream.py", "from orchestrator.settings.errors import UserError"),
        ("benchmarks/stream.py", "from methods import method_class"),
        ("benchmarks/speed/trials.py", "import ray"),
        ("benchmarks/speed/bare/steps.py", "import mlflow"),
    ],
)
def test_a_planted_arrow_is_found(file: str, line: str) -> None:
    assert len(wrong_arrows(Path(file), line)) == 1


def test_the_loop_names_no_method() -> None:
    source = (PROJECT / "orchestrator" / "run" / "loop.py").read_text(encoding="utf-8")
    words = {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
    assert not words & set(method_names())
    assert method_names()


def test_slow_libraries_wait_until_a_command_needs_them() -> None:
    """A refused setting pays for torch and Hydra, a run in this process not for Ray, MLflow, peft or transformers."""
    code = """
import sys
import orchestrator.settings.compose
print(*({"timm", "torchvision", "matplotlib", "torch.distributed.tensor"} & sys.modules.keys()))
import orchestrator.launch
print(*({"ray", "mlflow", "peft", "transformers", "sklearn", "pandas", "timm"} & sys.modules.keys()))
"""
    found = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert found.stdout == "\n\n"
