"""Run a study: its cells wait as Optuna's trials, workers take them one by one, MLflow records them. `launch` is for
Jupyter and scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sweeps.launcher import Outcome, launch

__all__ = ["Outcome", "launch"]


def __getattr__(name: str) -> Any:
    # Loaded on first use, so that `python -m sweeps --help` imports nothing heavy. No name here may be that of a module
    # of this package: importing that module would put it in the name's place.
    if name in __all__:
        import importlib

        return getattr(importlib.import_module("sweeps.launcher"), name)
    raise AttributeError(f"module 'sweeps' has no attribute '{name}'")
