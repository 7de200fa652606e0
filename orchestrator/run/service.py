"""The central search of a run; apart from the model, which the tree actor must not have to import."""

from __future__ import annotations

from methods import method_class
from methods.base import Service
from orchestrator.settings.config import Experiment


def make_service(experiment: Experiment) -> Service | None:
    """The central search of the experiment's method, where it has one."""
    return method_class(experiment.method.name)(experiment.method).service(experiment.seed)
