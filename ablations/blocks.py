"""Seed blocks: one outcome of every arm with every seed, as a complete matrix. `response`, `importance` and `pareto`
fit their numbers to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ablations.outcomes import DERIVED
from ablations.pairing import PAIR, in_group, values
from lvlm.errors import InputError
from lvlm.records import METRICS

if TYPE_CHECKING:
    from ablations.table import Results


@dataclass(frozen=True)
class Blocks:
    """Means over a group, in percent: `means` has one row per seed and one column per arm, none missing."""

    means: pd.DataFrame
    n_languages: int

    @property
    def array(self) -> NDArray[np.float64]:
        """Shape (seeds, arms)."""
        return self.means.to_numpy(dtype=float)


def blocks(results: Results, arms: Sequence[str], *, metric: str, group: str) -> Blocks:
    """The means of these arms over a group, for the seeds that all of them have.

    Each is the unweighted mean over the (task, language) pairs whose value is known in all of these runs, so that arms
    and seeds are compared over the same things.
    """
    wide = values(results, metric)
    own = wide[wide.index.get_level_values("arm").isin(arms)]
    count = own.groupby(level="seed").size()
    seeds = count.index[count == len(arms)]
    if seeds.empty:
        raise InputError(
            f"No seed of study '{results.name}' has all of the {len(arms)} arms that are compared here: let the sweep "
            f"go on (python -m sweeps launch {results.launch}), or use Results.mixed, which takes arms with gaps."
        )
    own = own[own.index.get_level_values("seed").isin(seeds)]
    members = in_group(own.columns, group)  # type: ignore[arg-type]
    own = own.iloc[:, np.flatnonzero(members)].dropna(axis="columns")
    if own.shape[1] == 0:
        raise InputError(f"No task and language of '{group}' has a known {metric} in all of these runs.")
    languages = own.columns.get_level_values(PAIR[1]).nunique()
    return Blocks(own.mean(axis=1).unstack("arm").loc[:, list(arms)].sort_index(), int(languages))


def outcome(name: str) -> tuple[str, str]:
    """Metric and group of an outcome's name: `fidelity/T1`, or a score by its group alone, `T1` or `reading/en`."""
    metric, slash, group = name.partition("/")
    return (metric, group) if slash and metric in (*METRICS, *DERIVED) else ("score", name)
