"""Values by run and (task, language), paired differences of arms, and the groups that these are averaged in.
`contrasts` and `power` read effects from them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ablations.outcomes import DERIVED, SUMMARISED, group_names, members
from lvlm.errors import InputError

if TYPE_CHECKING:
    from ablations.table import Results

By = Literal["tier", "task", "language", "script", "family"]

PAIR = ["task", "language"]


def values(results: Results, metric: str) -> pd.DataFrame:
    """Values of a metric in percent: one row per (arm, seed), one column per (task, language)."""
    if metric in results.wide:
        return results.wide[metric]
    if metric in DERIVED:
        whole, part = DERIVED[metric]
        return results.wide.setdefault(metric, values(results, whole) - values(results, part))
    rows = results.table[results.table["metric"] == metric]
    if rows.empty and metric in SUMMARISED and not results.table.empty:  # no task of the study has it
        score = results.table[results.table["metric"] == "score"]
        nothing = score.pivot(index=["arm", "seed"], columns=PAIR, values="value").astype(float)
        return results.wide.setdefault(metric, nothing * float("nan"))
    if rows.empty:
        known = sorted({*results.table["metric"], *DERIVED})
        raise InputError(f"There is no metric '{metric}' in {results.folder}; metrics: {', '.join(known)}.")
    return results.wide.setdefault(
        metric, rows.pivot(index=["arm", "seed"], columns=PAIR, values="value").astype(float)
    )


def paired(results: Results, arm: str, baseline: str, *, metric: str) -> pd.DataFrame:
    """Differences arm - baseline.

    One row per seed that both have, one column per (task, language) known in all of them.
    """
    key = f"{metric}: {arm} minus {baseline}"  # every group of an effect needs the same differences
    if key in results.wide:
        return results.wide[key]
    first, second = sides(results, arm, baseline, metric=metric)
    return results.wide.setdefault(key, first - second)


def sides(results: Results, arm: str, baseline: str, *, metric: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The values of two arms in the seeds that both have and the (task, language) pairs known in all of them."""
    wide = values(results, metric)
    present = wide.index.unique("arm")
    found: list[Any] = [
        wide.xs(label, level="arm") if label in present else wide.iloc[:0].droplevel("arm") for label in (arm, baseline)
    ]
    seeds = found[0].index.intersection(found[1].index).sort_values()
    first, second = (side.loc[seeds] for side in found)
    known = (first.notna() & second.notna()).all()
    return first.loc[:, known], second.loc[:, known]


def groups(results: Results, *, by: By = "tier", task: str | None = None) -> list[str]:
    """Names of the groups for which this table has rows, in the fixed order. English is in no script and no family, as
    it is in no tier."""
    rows = results.table if task is None else results.table[results.table["task"] == task]
    if rows.empty:
        raise InputError(
            f"There is no task '{task}' in {results.folder}; tasks: {', '.join(sorted(set(results.table['task'])))}."
        )
    codes = set(rows["language"].unique())
    if by == "task":
        halves = [name for name in ("en", "multilingual") if not members(name).isdisjoint(codes)]
        return [f"{one}/{name}" for one in sorted(rows["task"].unique()) for name in halves]
    return [f"{task}/{name}" if task else name for name in group_names(codes, by)]


def in_group(columns: pd.MultiIndex, group: str) -> NDArray[np.bool_]:
    """Which (task, language) columns belong to a group: one of `outcomes.members`, within a task or over all."""
    task, _, name = group.rpartition("/")
    of_task = columns.get_level_values("task") == task if task else np.ones(len(columns), dtype=bool)
    return np.asarray(of_task & columns.get_level_values("language").isin(list(members(name))))


def by_language(differences: NDArray[np.float64], columns: pd.MultiIndex, group: str) -> NDArray[np.float64]:
    """Matrices (..., seeds, languages) whose means are the unweighted means over all (task, language) pairs of a group,
    from (..., seeds, pairs).

    Where every language has the same tasks this is the mean over tasks. Else a language with k of K pairs is weighted
    by k: its deviation from the group's mean is scaled by k L / K, the linearised ratio estimator.
    """
    member = in_group(columns, group)
    block = differences[..., member]
    if block.size == 0:
        return np.empty((*differences.shape[:-2], 0, 0))
    codes, position, pairs = np.unique(
        columns.get_level_values("language").to_numpy(dtype=str)[member], return_inverse=True, return_counts=True
    )
    if len(codes) == len(position):
        return np.asarray(block)
    totals = block @ (position[:, None] == np.arange(len(codes)))
    mean = block.mean(axis=(-2, -1), keepdims=True)
    return np.asarray(mean + (totals / pairs - mean) * pairs * len(codes) / pairs.sum())
