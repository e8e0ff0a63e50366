"""How much of the differences between runs each factor and pair of factors explains. Notebooks, `report` and `plots`
call it.

Never PED-ANOVA, which asks what the best tenth of the runs have in common: with moderate noise it put an inert seed
above a real factor in half of the simulated studies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import optimize, special

from ablations.blocks import blocks
from ablations.factors import Factor, Level
from ablations.intervals import LEVEL
from lvlm.errors import InputError

if TYPE_CHECKING:
    from ablations.table import Results

Floats = NDArray[np.float64]

SEED = "seed"
COLUMNS = ["factors", "omega2", "partial_omega2", "low", "high", "method", "n_runs", "note"]
TYPE_II = "omega-squared, type II"
MARGINS = "omega-squared, margins"
FANOVA = "fANOVA, {} forests"
FORESTS = 8


@dataclass(frozen=True)
class Source:
    """A factor, a pair or the seed in an analysis of variance.

    `ss` over `df` is its mean square; its mean squared effect is (ss - df error) / `n_runs`.
    `own_error`, with `own_df`, is what the effect varies by from seed to seed.
    """

    name: str
    ss: float
    df: int
    n_runs: int
    own_error: float = 0.0
    own_df: int = 0


@dataclass(frozen=True)
class Decomposition:
    """An analysis of variance of runs: its sources, the mean square of what is left, and the variance of all runs."""

    sources: tuple[Source, ...]
    error: float
    df: int
    total: float


def importance(
    results: Results, *, metric: str = "score", group: str = "multilingual", pairs: bool = True
) -> pd.DataFrame:
    """Shares of the variance of run means by factor, pair of factors and seed, the largest first.

    Columns: `factors` (a name, or `A x B`), `omega2`, its 95 % bounds `low` and `high`, `partial_omega2` (of what
    is left when the other sources are taken out), `method`, `n_runs` and a `note`. The seed stands
    among them as the measure of what nothing but chance explains. A share a little below 0 is one of nothing.

    A grid, or a fraction of one: omega-squared of a type-II analysis of variance of run means with the seed as a block,
    (SS - df MS_error) / (SS_total + MS_error). Arms to which a factor does not apply are left out; so are pairs, where
    the arms cannot tell them apart; a factor with a range is a quadratic. One factor at a time: the same along each
    factor's own arms, each level counted once, as if effects added up. Arms that a search chose: fANOVA over several
    forests, where `low` and `high` are the lowest and highest forest and `omega2` is the share itself.

    The interval turns the noncentral F around (Steiger, 2004), against the larger of two errors: that of the model, and
    what the effect itself varies by from seed to seed; the other sources are held at their estimates. Simulated on
    3 x 5 x 3 and 2 x 2 x 2 grids with 3 and 5 seeds, 400 studies each, with and without effects that differ between
    seeds: it covers 93 to 99 % (the error of the model alone 81 to 99 %, resampling of seed blocks 60 to 97 %).

    On 3 x 5 x 3 grids of 3 seeds that do nothing, with noise of 2 points, the seed ranked above a real factor in 10 %
    of 1,000 studies (fANOVA: 17 % of 60), and the smallest factor on top in 1 % (fANOVA: in none).
    """
    study = results.known_study("Which factors its arms differ in has to be known.")
    if results.is_searched:
        return _searched(results, study.factors, metric, group, pairs)
    arms = results.arms()
    varied = [factor for factor in study.factors if arms[factor.name].nunique() > 1]
    if not varied:
        raise InputError(f"No factor of study '{results.name}' has two levels with runs yet.")
    if len(varied) > 1 and _one_at_a_time(arms, study.baseline):
        return _from_margins(results, varied, metric, group)
    return _type_two(results, varied, metric, group, pairs)


def decompose(block: Floats, columns: Mapping[tuple[str, ...], Floats]) -> Decomposition | None:
    """Type-II analysis of variance of runs, shape (seeds, arms), by terms: factors or pairs -> columns (arms, n).

    Every arm has every seed, so seeds are at right angles to all terms. The sum of squares of a term is what it adds to
    all terms that do not contain it, as in `anova_lm(typ=2)` of statsmodels. None where a term adds fewer dimensions
    than it has: these arms cannot tell it apart from the others.
    """
    seeds, arms = block.shape
    mean = block.mean(axis=0)
    sources = []
    for name, own in columns.items():
        others = [part for other, part in columns.items() if other != name and not set(name) < set(other)]
        without = _basis(np.column_stack([np.ones(arms), *others]))
        left = own - without @ (without.T @ own)
        extra = _basis(left)
        if extra.shape[1] < np.linalg.matrix_rank(own - own.mean(axis=0)):
            return None
        ss = seeds * float(((mean @ extra) ** 2).sum())
        own_ss = float(((block @ extra) ** 2).sum()) - ss
        n, df = extra.shape[1], extra.shape[1] * (seeds - 1)
        sources.append(Source(" x ".join(name), ss, n, seeds * arms, own_ss / df if df else np.nan, df))
    every = _basis(np.column_stack([np.ones(arms), *columns.values()]))
    total = float(((block - block.mean()) ** 2).sum())
    of_seeds = arms * float(((block.mean(axis=1) - block.mean()) ** 2).sum())
    fitted = seeds * float(((mean @ every) ** 2).sum() - arms * mean.mean() ** 2)
    df = seeds * arms - (seeds - 1) - every.shape[1]
    error = (total - of_seeds - fitted) / df if df else np.nan
    if seeds > 1:
        sources.append(Source(SEED, of_seeds, seeds - 1, seeds * arms, error, df))
    return Decomposition(tuple(sources), error, df, (total + error) / (seeds * arms))


def noncentrality(f: float, df: int, df_error: int) -> tuple[float, float]:
    """95 % bounds of the noncentrality of an F value, by turning its distribution around (Steiger, 2004)."""

    def excess(at: float, share: float) -> float:
        return float(special.ncfdtr(df, df_error, at, f)) - share

    found = []
    for share in ((1 + LEVEL) / 2, (1 - LEVEL) / 2):
        if excess(0.0, share) <= 0:
            found.append(0.0)
            continue
        high = max(1.0, f * df)
        while excess(high, share) > 0:
            high *= 2
        found.append(float(optimize.brentq(excess, 0.0, high, args=(share,))))
    return found[0], found[1]


def _bounds(source: Source, found: Decomposition) -> tuple[float, float]:
    """95 % bounds of omega-squared; NaN where no error is known."""
    if not found.df or not found.error > 0:
        return np.nan, np.nan
    error, df = max((found.error, found.df), (source.own_error, source.own_df))
    rest = found.total - (source.ss - source.df * found.error) / source.n_runs
    both = noncentrality(source.ss / source.df / error, source.df, df)
    low, high = (one * error / source.n_runs for one in both)
    return low / (low + rest), high / (high + rest)


def _table(found: Decomposition, *, method: str, n_runs: int, notes: Sequence[str]) -> pd.DataFrame:
    """One row per source, the largest first."""
    rows = []
    for one in found.sources:
        explained = one.ss - one.df * found.error
        low, high = _bounds(one, found)
        rows.append(
            {
                "factors": one.name,
                "omega2": explained / one.n_runs / found.total,
                "partial_omega2": explained / (explained + one.n_runs * found.error),
                "low": low,
                "high": high,
                "method": method,
                "n_runs": n_runs,
                "note": "; ".join([*(["block: what all arms of a seed share"] if one.name == SEED else []), *notes]),
            }
        )
    frame = pd.DataFrame(rows, columns=COLUMNS)
    return frame.sort_values("omega2", ascending=False, ignore_index=True, kind="stable")


def _type_two(results: Results, varied: Sequence[Factor], metric: str, group: str, pairs: bool) -> pd.DataFrame:
    arms = results.arms()
    applies = arms[[factor.name for factor in varied]].notna().all(axis=1)
    kept, notes = arms[applies], []
    if not applies.all():
        absent = [factor.name for factor in varied if arms[factor.name].isna().any()]
        notes.append(f"without the {(~applies).sum()} arms to which {', '.join(absent)} does not apply")
        varied = [factor for factor in varied if kept[factor.name].nunique() > 1]
    columns: dict[tuple[str, ...], Floats] = {(one.name,): _columns(one, kept[one.name]) for one in varied}
    together = {
        (a.name, b.name): _products(_linear(a, columns), _linear(b, columns)) for a, b in combinations(varied, 2)
    }
    found = blocks(results, [str(label) for label in kept.index], metric=metric, group=group)
    decomposed = decompose(found.array, columns | together) if pairs and together else None
    if decomposed is None:
        if pairs and together:
            notes.append("pairs left out: these arms cannot tell all of them apart")
        decomposed = decompose(found.array, columns)
    if decomposed is None:
        raise InputError(
            f"The arms of study '{results.name}' that have runs cannot tell apart the effects of "
            f"{', '.join(factor.name for factor in varied)}: see python -m sweeps plan {results.name}."
        )
    if not decomposed.df:
        notes.append("one run per combination: nothing tells noise from effects")
    return _table(decomposed, method=TYPE_II, n_runs=found.array.size, notes=notes)


def _from_margins(results: Results, varied: Sequence[Factor], metric: str, group: str) -> pd.DataFrame:
    """Every factor along its own arms beside the baseline, as if effects added up: what one factor at a time can say.

    A factor's variance is that of its levels, each counted once; the error is what is left of all these arms when arm
    and seed are taken out.
    """
    margins = {factor.name: results.margin(factor.name) for factor in varied}
    margins = {name: arms for name, arms in margins.items() if len(arms) > 1}
    every = list(dict.fromkeys(label for arms in margins.values() for label in arms))
    found = blocks(results, every, metric=metric, group=group)
    block, (seeds, count) = found.array, found.array.shape
    residual = block - block.mean(axis=1, keepdims=True) - block.mean(axis=0) + block.mean()
    df = (seeds - 1) * (count - 1)
    error = float((residual**2).sum()) / df if df else np.nan
    sources = []
    for name, arms in margins.items():
        means = found.means[arms].mean().to_numpy(dtype=float)
        ss = seeds * float(((means - means.mean()) ** 2).sum())
        sources.append(Source(name, ss, len(arms) - 1, seeds * len(arms)))
    if seeds > 1:
        by_seed = block.mean(axis=1)
        ss = count * float(((by_seed - by_seed.mean()) ** 2).sum())
        sources.append(Source(SEED, ss, seeds - 1, block.size))
    total = error + sum((one.ss - one.df * error) / one.n_runs for one in sources)
    notes = ["one factor at a time: shares as if effects added up, pairs are not seen"]
    if not df:
        notes.append("one seed: nothing tells noise from effects")
    return _table(Decomposition(tuple(sources), error, df, total), method=MARGINS, n_runs=block.size, notes=notes)


def _searched(results: Results, factors: Sequence[Factor], metric: str, group: str, pairs: bool) -> pd.DataFrame:
    """fANOVA over several forests: mean share, with the lowest and the highest."""
    from ablations.fanova import Axis, forest_shares

    arms = results.arms()
    found = blocks(results, [str(label) for label in arms.index], metric=metric, group=group)
    varied = [factor for factor in factors if arms[factor.name].nunique() > 1]
    names, axes, codes = [], [], []
    for factor in varied:
        base = results.known_study("").baseline[factor.name]
        levels = [base if pd.isna(level) else level for level in arms[factor.name]]
        names.append(factor.name)
        axes.append(Axis(span=(-1.0, 1.0)) if factor.is_continuous else Axis(levels=len(factor.levels)))
        codes.append([_code(factor, level) for level in levels])
    seeds, count = found.array.shape
    x = np.column_stack([np.tile(np.array(codes).T, (seeds, 1)), np.repeat(np.arange(seeds), count)])
    if seeds > 1:
        names.append(SEED)
        axes.append(Axis(levels=seeds))
    else:
        x = x[:, :-1]
    together = list(combinations(range(len(varied)), 2)) if pairs else []
    shares = [forest_shares(x, found.array.ravel(), axes, together, seed=seed) for seed in range(FORESTS)]
    note = "share of a forest's variance; bounds are the lowest and highest of the forests, not of new runs"
    rows = []
    for name in shares[0]:
        own = [one[name] for one in shares]
        rows.append(
            {
                "factors": " x ".join(names[number] for number in name),
                "omega2": float(np.mean(own)),
                "partial_omega2": np.nan,
                "low": min(own),
                "high": max(own),
                "method": FANOVA.format(FORESTS),
                "n_runs": found.array.size,
                "note": note,
            }
        )
    frame = pd.DataFrame(rows, columns=COLUMNS)
    return frame.sort_values("omega2", ascending=False, ignore_index=True, kind="stable")


def _code(factor: Factor, level: Level) -> float:
    if factor.is_continuous:
        return factor.scaled(float(level))  # type: ignore[arg-type]
    return float(factor.levels.index(level))


def _columns(factor: Factor, levels: pd.Series[Any]) -> Floats:
    """Columns (arms, n) of a main effect: indicators of all levels but one, or x and x² of a factor with a range."""
    if factor.is_continuous:
        at = np.array([factor.scaled(float(level)) for level in levels])
        return np.column_stack([at, at**2])
    present = [level for level in factor.levels if (levels == level).any()]
    return np.column_stack([(levels == level).to_numpy(dtype=float) for level in present[1:]])


def _linear(factor: Factor, columns: Mapping[tuple[str, ...], Floats]) -> Floats:
    """What a factor brings into a pair: of one with a range the linear column alone."""
    own = columns[factor.name,]
    return own[:, :1] if factor.is_continuous else own


def _products(first: Floats, second: Floats) -> Floats:
    return np.asarray((first[:, :, None] * second[:, None, :]).reshape(len(first), -1))


def _basis(columns: Floats) -> Floats:
    """An orthonormal basis of what the columns span."""
    left, size, _ = np.linalg.svd(columns, full_matrices=False)
    return np.asarray(left[:, size > 1e-9 * max(1.0, size.max(initial=0.0))])


def _one_at_a_time(arms: pd.DataFrame, baseline: Mapping[str, Level]) -> bool:
    """Whether no arm differs from the baseline in more than one factor that applies to it."""
    changed = [[bool(pd.notna(one)) and one != base for one in arms[name]] for name, base in baseline.items()]
    return all(sum(row) < 2 for row in zip(*changed, strict=True))
