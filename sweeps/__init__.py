"""Run a study: its cells wait as Optuna's trials, workers take them one by one, MLflow records them. `launch` and
`watch` are for Jupyter and scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sweeps.launcher import Outcome, launch
    from sweeps.panel import watch

__all__ = ["Outcome", "launch", "watch"]
MODULES = {"Outcome": "sweeps.launcher", "launch": "sweeps.launcher", "watch": "sweeps.panel"}


def __getattr__(name: str) -> Any:
    # Loaded on first use, so that `python -m sweeps --help` imports nothing heavy. No name here may be that of a module
    # of this package: importing that module would put it in the name's place.
    if name in MODULES:
        import importlib

        return getattr(importlib.import_module(MODULES[name]), name)
    raise AttributeError(f"module 'sweeps' has no attribute '{name}'")
