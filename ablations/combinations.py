"""The arms that a main effect or an interaction is a mean of: every corner of its changes, beside every combination of
the other factors. `contrasts` averages their differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import product
from typing import TYPE_CHECKING

import pandas as pd

from ablations.factors import Factor, Level
from ablations.pairing import PAIR, paired
from lvlm.errors import InputError

if TYPE_CHECKING:
    from ablations.table import Results

Change = tuple[str, Level, Level]
"""(factor, level, level that it is compared with)."""


def mean_difference(results: Results, sets: Sequence[tuple[str, ...]], metric: str) -> pd.DataFrame:
    """The mean over sets of arms of first minus second, or of (first minus third) minus (second minus fourth).

    One row per seed that all arms have, one column per (task, language) known in all of them.
    """
    parts = []
    for arms in sets:
        half = len(arms) // 2  # the first half has the level of the first change, the second half what it is against
        for sign, one, other in zip((1, -1), arms[:half], arms[half:], strict=False):
            parts.append((sign, paired(results, one, other, metric=metric)))
    if not parts:
        return pd.DataFrame(columns=pd.MultiIndex.from_tuples([], names=PAIR))
    seeds = reduce(pd.Index.intersection, (frame.index for _, frame in parts)).sort_values()
    columns = reduce(lambda left, right: left[left.isin(right)], (frame.columns for _, frame in parts))
    total = sum(sign * frame.loc[seeds, columns].to_numpy(dtype=float) for sign, frame in parts)
    return pd.DataFrame(total / len(sets), index=seeds, columns=columns)


def arms_beside(results: Results, changes: Sequence[Change]) -> list[tuple[str, ...]]:
    """Labels of the arms at each corner of the changes (level, level), (level, against), (against, level), (against,
    against), in every combination of the other factors where all levels of the changed ones have runs (of those that
    have any); each set of arms once."""
    study = results.known_study("Its factors are needed to combine arms: compare two arms by label.")
    names = [name for name, _, _ in changes]
    if len(set(names)) < len(names):
        raise InputError(f"An interaction is that of two different factors, not of '{names[0]}' with itself.")
    if same := [name for name, level, against in changes if level == against]:
        raise InputError(f"Factor '{same[0]}': give two different levels to compare.")
    others = [factor for factor in study.factors if factor.name not in names]
    changed = [factor for factor in study.factors if factor.name in names]
    corners = list(product(*(((name, level), (name, against)) for name, level, against in changes)))
    beside = _beside(results, others)
    every = [tuple(study.arm(dict((*levels, *corner))).label for corner in corners) for levels in beside]
    different = [arms for arms in every if len(set(arms)) == len(corners)]
    if not different:
        given = " and ".join(f"{name} ({level!r} against {against!r})" for name, level, against in changes)
        raise InputError(f"There is nothing to compare: one factor does not apply beside the other in {given}.")
    present = set(results.table["arm"].unique())
    seen = results.arms()
    run = [
        [(factor.name, level) for level in results.levels_of(factor) if (seen[factor.name] == level).any()]
        for factor in changed
    ]
    shared = {
        labels
        for labels, levels in zip(every, beside, strict=True)
        if present.issuperset(study.arm(dict((*levels, *corner))).label for corner in product(*run))
    }
    return [arms for arms in dict.fromkeys(different) if arms in shared and present.issuperset(arms)]


def _beside(results: Results, factors: Sequence[Factor]) -> list[tuple[tuple[str, Level], ...]]:
    """Every combination of levels of these factors, as (name, level) pairs; those with a range together as they have
    runs."""
    ranged = [factor.name for factor in factors if factor.is_continuous]
    runs = results.arms()[ranged].drop_duplicates().to_dict("records") if ranged else [{}]
    places = [tuple((str(name), level) for name, level in run.items() if pd.notna(level)) for run in runs]
    levels = [[(factor.name, level) for level in factor.levels] for factor in factors if not factor.is_continuous]
    return [(*place, *combination) for place, combination in product(dict.fromkeys(places), product(*levels))]
