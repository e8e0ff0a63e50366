"""Published curves on the levels of a study's factor, and how far own results agree with them in rank. `plots` draws
them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

from ablations.factors import Factor, Level
from ablations.intervals import over_seeds
from ablations.outcomes import LETTERS, check_group
from ablations.pairing import in_group, values
from ablations.published.tables import cell, tables
from ablations.studies import Study, load_study
from lvlm.errors import InputError
from lvlm.languages import TIERS

if TYPE_CHECKING:
    from ablations.table import Results

Scale = Literal["published", "rescaled", "ranks"]
COLUMNS = ["level", "value", "source"]
PAPER = "Centurio (arXiv 2501.05122)"


@dataclass(frozen=True)
class _Curve:
    """Where the paper varied what a field of the run config sets."""

    tables: Mapping[str, str]
    """Own metric, or `METRIC/TASK` -> table."""
    arms: Mapping[Any, str]
    """Level here -> arm there; numbers are compared with the numbers of a study's own levels."""


_READING = {"score/reading": "rq4_smpqa_read"}
_CURVES = {
    "instruct.mix.languages": _Curve(
        {"score": "rq1a_all_tasks", "fidelity": "rq1b_xm3600_fidelity"},
        {"en": "English", "all": "L100", "L100": "L100"} | {name: name for name in ("T5", "T5-T4", "T5-T3", "T5-T2")},
    ),
    "instruct.mix.english_share": _Curve(
        {"score": "rq2"}, {share / 100: str(share) for share in (1, 10, 25, 50, 75, 90)}
    ),
    "pretrain.mix.english_share": _Curve(
        {"score": "rq3"},
        {"none": "no pre-training", "English only": "100", "half English": "50", "1% English": "1"}
        | {1.0: "100", 0.5: "50", 0.01: "1"},
    ),
    "instruct.mix.corpora": _Curve(
        _READING,
        {"none": "no OCR", "English only": "100% Eng.", "half English": "50% Eng.", "Latin down": "Latin down"},
    ),
    "instruct.train.tower": _Curve(_READING, {"full": "50% Eng.", "frozen": "50% (frozen)"}),
    "instruct.mix.allocation": _Curve(
        {"score": "t16"},
        {"uniform": "uniform", "inverse_tier": "stratified 1/tier", "inverse_exp_tier": "stratified 1/exp(tier)"},
    ),
}  # fmt: skip
"""Field of the run config -> where the paper varied it."""
_METRICS = {"rq1b_xm3600_fidelity": "language_fidelity", "rq4_smpqa_read": "accuracy"}


def curve(
    of: Study | str | Path | Factor, metric: str = "score", group: str = "multilingual", *, factor: str | None = None
) -> pd.DataFrame:
    """The published curve on our levels: a row for each level that the paper has too, in our order.

    `of` is a study (by name, file or itself; of several factors `factor` names the one) or a factor. Columns: level,
    value (percent), source. `multilingual` is the mean of the tiers' figures, in tables on reading that of Latin and
    other letters. Empty where the paper has no such curve.
    """
    found = of if isinstance(of, Factor) else _factor(of, factor)
    where = _place(found, metric, group)
    rows = [] if where is None else _rows(found, *where)
    return pd.DataFrame(rows, columns=COLUMNS)


def overlay(
    results: Results, factor: str, *, metric: str = "score", group: str = "multilingual", scale: Scale = "rescaled"
) -> pd.DataFrame:
    """The published curve ready to be drawn over own results: level, value, source.

    `published` leaves the figures as they are, which come from other tasks; `rescaled` gives them the mean and the
    standard deviation that our own means have at the same levels; `ranks` numbers them from 1, the lowest.
    """
    one = _factor(results.known_study("Its factors are needed to lay a curve over them."), factor)
    found = curve(one, metric, group)
    if scale == "published" or found.empty:
        return found
    if scale == "ranks":
        return found.assign(value=found["value"].rank())
    if scale != "rescaled":
        raise InputError(f"A published curve is drawn as published, rescaled or ranks, not as '{scale}'.")
    own = _by_level(results, one, metric, group).mean()
    shared = found["level"].isin(own.index)
    theirs, ours = found.loc[shared, "value"], own[found.loc[shared, "level"]]
    if len(theirs) < 2 or theirs.std() < 1e-9:
        return found.assign(value=found["value"] - theirs.mean() + ours.mean())
    return found.assign(value=ours.mean() + (found["value"] - theirs.mean()) * ours.std() / theirs.std())


@dataclass(frozen=True)
class Agreement:
    """Rank correlation between own and published values over the levels of a factor.

    `rho` is the mean over seeds of Spearman's correlation in each, with its t interval over seeds cut at -1 and 1;
    `of_means` is that of the means over seeds. With few levels it can be high by chance: with 3, one order in six is
    the published one.
    """

    factor: str
    metric: str
    group: str
    rho: float
    low: float
    high: float
    of_means: float
    n_levels: int
    n_seeds: int
    reason: str = ""

    def text(self) -> str:
        """`rank correlation 0.83 [0.60, 1.00] over 6 levels, 5 seeds`."""
        if np.isnan(self.rho):
            return f"no rank correlation ({self.reason})"
        bounds = f" [{self.low:.2f}, {self.high:.2f}]" if np.isfinite(self.low) else f" (no interval: {self.reason})"
        return f"rank correlation {self.rho:.2f}{bounds} over {self.n_levels} levels, {self.n_seeds} seeds"


def agreement(results: Results, factor: str, *, metric: str = "score", group: str = "multilingual") -> Agreement:
    """How far the levels of a factor stand in the published order, with an interval over seeds."""
    one = _factor(results.known_study("Its factors are needed to compare them."), factor)
    theirs = curve(one, metric, group).set_index("level")["value"]
    own = _by_level(results, one, metric, group)
    shared = [level for level in own.columns if level in theirs.index]
    nan = float("nan")

    def without(reason: str) -> Agreement:
        return Agreement(factor, metric, group, nan, nan, nan, nan, len(shared), len(own), reason)

    if len(shared) < 3:
        return without(f"{len(shared)} of the levels are published, and ranks say something from three on")
    if own.empty:
        return without("no seed has all of these levels yet")
    by_seed = [_spearman(own.loc[seed, shared], theirs[shared]) for seed in own.index]
    known = [rho for rho in by_seed if np.isfinite(rho)]
    if not known:
        return without("all levels have the same value")
    found = over_seeds(known)
    return Agreement(
        factor,
        metric,
        group,
        found.estimate,
        max(-1.0, found.low) if np.isfinite(found.low) else nan,
        min(1.0, found.high) if np.isfinite(found.high) else nan,
        _spearman(own[shared].mean(), theirs[shared]),
        len(shared),
        len(known),
        found.reason,
    )


def _spearman(first: pd.Series[float], second: pd.Series[float]) -> float:
    if first.nunique() < 2 or second.nunique() < 2:
        return float("nan")
    return float(stats.spearmanr(first.to_numpy(), second.to_numpy()).statistic)


def _by_level(results: Results, factor: Factor, metric: str, group: str) -> pd.DataFrame:
    """Own means: a row for each seed that has all arms, a column for each level, the other factors at the baseline."""
    study = results.known_study("Its factors are needed to compare arms by level.")
    every = values(results, metric)
    wide = every[every.columns[in_group(every.columns, group)]]  # type: ignore[arg-type]
    present = set(wide.index.get_level_values("arm"))
    labels = {level: study.arm({factor.name: level}).label for level in results.levels_of(factor)}
    arms = {level: wide.xs(label, level="arm") for level, label in labels.items() if label in present}
    if not arms:
        return pd.DataFrame()
    known = pd.concat(arms, axis="index").dropna(axis="columns").mean(axis="columns")
    return known.unstack(0).loc[:, list(arms)].dropna()


def _factor(of: Study | str | Path, name: str | None) -> Factor:
    study = of if isinstance(of, Study) else load_study(of)
    if name is None and len(study.factors) == 1:
        return study.factors[0]
    known = {factor.name: factor for factor in study.factors}
    if name not in known:
        raise InputError(f"Study '{study.name}' has the factors {', '.join(known)}: name one of them, not {name!r}.")
    return known[name]


def _place(factor: Factor, metric: str, group: str) -> tuple[str, str, tuple[str, ...]] | None:
    """Table, metric and groups there; None where the paper has no such curve."""
    check_group(group)
    of_path = _CURVES.get(factor.path)
    task, _, name = group.rpartition("/")
    table = of_path.tables.get(f"{metric}/{task}" if task else metric) if of_path else None
    if table is None:
        return None
    known = set(tables().query("table == @table")["group"])
    parts = (LETTERS if set(LETTERS) <= known else TIERS) if name == "multilingual" else (name,)
    return (table, _METRICS.get(table, metric), parts) if known.issuperset(parts) else None


def _rows(factor: Factor, table: str, metric: str, groups: tuple[str, ...]) -> list[tuple[Level, float, str]]:
    found: list[tuple[Level, float, str]] = []
    theirs = _CURVES[factor.path].arms
    levels = [level for level in theirs if factor.has(level)] if factor.range is not None else factor.levels
    for level in levels:
        if level in theirs:
            points = float(np.mean([cell(table, theirs[level], metric, group) for group in groups]))
            found.append((level, points, f"{PAPER}, {table}"))
    return found
