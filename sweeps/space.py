"""A study's factors as Optuna distributions, and one cell as a trial that waits. Used by `sweeps.queue`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from sweeps.plan import Plan, PlannedCell


def choice(level: Any) -> str | int | float | bool | None:
    """A level as Optuna can keep it: lists and mappings as JSON text."""
    return level if level is None or isinstance(level, str | int | float | bool) else json.dumps(level, sort_keys=True)


def distributions(plan: Plan) -> dict[str, CategoricalDistribution]:
    """One categorical distribution per factor, and one for the seed."""
    columns: dict[str, list[Any]] = {name: [] for name in (*plan.factors, "seed")}
    for name, levels in plan.factors.items():
        columns[name] += levels
    for cell in plan.cells:
        for name, level in {**cell.levels, "seed": cell.seed}.items():
            if not any(known == level and type(known) is type(level) for known in columns[name]):
                columns[name].append(level)
    return {name: CategoricalDistribution(tuple(choice(level) for level in levels)) for name, levels in columns.items()}


def waiting_trial(
    cell: PlannedCell, *, attempt: int, space: Mapping[str, CategoricalDistribution], version: str
) -> FrozenTrial:
    """Attempt number `attempt` (from 1) at `cell`, to be claimed by a worker."""
    params = {name: choice(level) for name, level in {**cell.levels, "seed": cell.seed}.items()}
    return optuna.trial.create_trial(
        state=TrialState.WAITING,
        params=params,
        distributions={name: space[name] for name in params},
        user_attrs={"cell_id": cell.id, "attempt": attempt, "arm": cell.arm, "version": version},
        system_attrs={"fixed_params": params},
    )
