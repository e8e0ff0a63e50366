"""A study's factors as Optuna distributions, and one cell as a trial that waits. Used by `sweeps.queue`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from sweeps.plan import Plan, PlannedCell

RUNG = "completed_rung_"
"""Begins what Optuna's pruners keep of a trial: its score at each rung."""


def choice(level: Any) -> str | int | float | bool | None:
    """A level as Optuna can keep it: lists and mappings as JSON text."""
    return level if level is None or isinstance(level, str | int | float | bool) else json.dumps(level, sort_keys=True)


def distributions(plan: Plan) -> dict[str, BaseDistribution]:
    """For a factor with a range its numbers, for every other one and for the seed the categories that it has."""
    columns: dict[str, list[Any]] = {name: [] for name in (*plan.factors, "seed") if name not in plan.ranges}
    for name in columns:
        columns[name] += plan.factors.get(name, [])
    for cell in plan.cells:
        for name, level in {**cell.levels, "seed": cell.seed}.items():
            if name in columns and not any(known == level and type(known) is type(level) for known in columns[name]):
                columns[name].append(level)
    found: dict[str, BaseDistribution] = {
        name: CategoricalDistribution(tuple(choice(level) for level in levels)) for name, levels in columns.items()
    }
    for name, (low, high, log) in plan.ranges.items():
        kind = IntDistribution if isinstance(low, int) else FloatDistribution
        found[name] = kind(low, high, log=log)
    return {name: found[name] for name in (*plan.factors, "seed")}


def waiting_trial(
    cell: PlannedCell,
    *,
    attempt: int,
    space: Mapping[str, BaseDistribution],
    version: str,
    before: FrozenTrial | None = None,
) -> FrozenTrial:
    """Attempt number `attempt` (from 1) at `cell`, to be claimed by a worker. Where a factor with a range does not
    apply the trial has no parameter of its name. Scores that the attempt `before` reported while training are taken
    over, since this one goes on from its checkpoint."""
    levels = {**cell.levels, "seed": cell.seed}
    params = {
        name: choice(level)
        for name, level in levels.items()
        if level is not None or isinstance(space[name], CategoricalDistribution)
    }
    return optuna.trial.create_trial(
        state=TrialState.WAITING,
        params=params,
        distributions={name: space[name] for name in params},
        user_attrs={"cell_id": cell.id, "attempt": attempt, "arm": cell.arm, "version": version},
        system_attrs={**(rungs_of(before) if before else {}), "fixed_params": params},
        intermediate_values=dict(before.intermediate_values) if before else {},
    )


def rungs_of(trial: FrozenTrial) -> dict[str, Any]:
    """What a pruner keeps of a trial."""
    return {name: value for name, value in trial.system_attrs.items() if name.startswith(RUNG)}
