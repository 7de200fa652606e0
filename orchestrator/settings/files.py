"""Where the named sets of settings lie; apart from what reads them, so that a shell's completion imports no torch."""

from __future__ import annotations

from pathlib import Path

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
GROUPS = ("method", "benchmark", "backbone", "head", "scale", "sweep", "paper")
