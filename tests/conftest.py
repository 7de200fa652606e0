"""Settings of all tests: nothing is downloaded, and torch forms its sums in one order."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from xdist.scheduler import LoadScopeScheduling

os.environ["HF_HUB_OFFLINE"] = "1"

from orchestrator.settings import compose
from orchestrator.settings.config import Experiment
from tests.support.experiments import small_experiment
from tests.support.pair import Pair, two_processes
from tests.support.tiny import MODELS, tiny_model
from tests.support.two_nodes import Cluster, two_node_cluster

SETTINGS = ("test_compose.py", "test_papers.py", "test_study.py")  # compose most of the files of configs


class ByGroup(LoadScopeScheduling):
    """For pytest-xdist: a file's tests share its fixtures in one process, and so do files that share more.

    Its own groups by mark have no effect with pytest 9.2.
    """

    def _split_scope(self, nodeid: str) -> str:
        return group_of(self.config.rootpath / nodeid.split("::")[0])


@functools.cache
def group_of(file: Path) -> str:
    if file.name in SETTINGS:
        return "settings"
    return "workers" if "pair: Pair" in file.read_text() else str(file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByGroup:
    return ByGroup(config, log)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _files_composed_once() -> Iterator[None]:
    """Reading the same files again takes Hydra half a second and gives the same."""
    known: dict[tuple[Any, ...], Any] = {}
    compose_files = compose.composed_files

    def composed_files(chosen: dict[str, str]) -> Any:
        key = (compose.CONFIGS, *chosen.items())
        if key not in known:
            known[key] = compose_files(chosen)
        return copy.deepcopy(known[key])  # settings are written into it

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(compose, "composed_files", composed_files)
        yield


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., Experiment]:
    """Small experiments in this test's folder: ``small("name=a", "seed=1")``."""
    return functools.partial(small_experiment, tmp_path)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each kind of tiny transformers model."""
    return {kind: tiny_model(tmp_path_factory.mktemp("models") / kind, kind) for kind in MODELS}


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """One pair of worker processes for all tests."""
    with two_processes(tmp_path_factory.mktemp("pair")) as made:
        yield made


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own for what it decodes and tokenises."""
    monkeypatch.setenv("EVERGREEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One cluster of two nodes for all tests, since its start takes most of a minute."""
    with two_node_cluster(tmp_path_factory.mktemp("cluster")) as made:
        yield made


@pytest.fixture(scope="session")
def user(cluster: Cluster) -> Iterator[ProcessPoolExecutor]:
    """One process of a user of the cluster for all tests."""
    with cluster.user() as process:
        yield process
