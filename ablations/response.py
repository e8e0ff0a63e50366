"""How an outcome follows a factor that is a number, such as the share of English: a smooth curve with its band, and
where it is highest, with an interval. Notebooks, `findings` and `plots` call it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from ablations.blocks import blocks
from ablations.contrasts import CHOSEN
from ablations.intervals import LEVEL, Interval, over_seeds
from lvlm.errors import InputError

if TYPE_CHECKING:
    from ablations.factors import Level
    from ablations.table import Results

Place = Literal["interior", "at the edge", "not told apart"]
Floats = NDArray[np.float64]

FEWEST_LEVELS = 4
KNOTS = 5
POINTS = 101
"""Points of a curve: an optimum is known to a hundredth of the range."""
LOG_FROM = 10.0
"""A factor whose largest level is so many times its smallest is fitted in the logarithm, unless it is a share."""
BETWEEN, BETWEEN_FEW = 1 / 8, 1 / 2
"""How far towards the next level the interval of an optimum reaches on, with five levels or more and with fewer."""
METHOD = "natural cubic spline per seed, t over seeds"


@dataclass(frozen=True)
class Response:
    """A curve fitted to every seed block, in percent; bounds are 95 % and speak of these languages.

    `grid`, `estimate`, `low` and `high` have shape (points,): the mean curve and its band. `shape_low` and `shape_high`
    are the band of the same curve when every seed's own mean is taken out: what all arms of a seed share says nothing
    of the factor, so a rise or a fall is judged by this one. `points` has a row per level, with its t interval over
    seeds. `optimum` is where the curve is highest within the range that was run.
    """

    factor: str
    metric: str
    group: str
    grid: Floats
    estimate: Floats
    low: Floats
    high: Floats
    shape_low: Floats
    shape_high: Floats
    points: pd.DataFrame
    optimum: Interval
    interior: Place
    n_seeds: int
    method: str
    reason: str = ""
    beside: str = ""
    """What was done about other factors that vary, for a reader; empty where there are none."""

    def text(self) -> str:
        """`highest at 0.42 [0.25, 0.6], 5 seeds: interior`."""
        one = self.optimum
        if np.isnan(one.estimate):
            return f"highest nowhere ({self.reason})"
        bounds = f"[{one.low:.3g}, {one.high:.3g}]" if np.isfinite(one.low) else f"(no interval: {self.reason})"
        seeds = f"{self.n_seeds} seed{'s' if self.n_seeds != 1 else ''}"
        return f"highest at {one.estimate:.3g} {bounds}, {seeds}: {self.interior}"

    def table(self) -> pd.DataFrame:
        """The levels, and the optimum below them, for reading."""
        own = self.points
        rows = {
            self.factor: [f"{one:g}" for one in own["level"]],
            self.metric: [f"{one:.1f}" for one in own["mean"]],
            "95 % interval": [
                f"[{low:.1f}, {high:.1f}]" if np.isfinite(low) else "–"
                for low, high in zip(own["low"], own["high"], strict=True)
            ],
        }
        return pd.DataFrame(rows)

    def _repr_html_(self) -> str:
        return f"<p>{self.metric}, {self.group}: {self.text()}</p>{self.table().to_html(index=False, border=0)}"


@dataclass(frozen=True)
class _Curves:
    """What was fitted, shape (seeds, levels), and the curves, shape (seeds, points)."""

    seeds: pd.Index
    levels: Floats
    at_levels: Floats
    grid: Floats
    by_seed: Floats
    n_languages: int
    beside: str


def response(
    results: Results,
    factor: str,
    *,
    metric: str = "score",
    group: str = "multilingual",
    at: Mapping[str, Level] | None = None,
) -> Response:
    """The curve of a metric along a factor of numbers that has runs at four levels or more.

    `at` holds other factors at a level: `at={"mistakes": 0.5}`. Beside those that are left it is the mean over those
    combinations of them in which every level has runs, as in `contrasts.main_effect`; where none has, as with a range,
    they are taken out as if effects added up.

    The curve of each seed is a natural cubic spline with knots at five quantiles of the levels, in the angle
    arcsin(sqrt(share)) of a share, in the logarithm where levels span a factor of ten, else as it is. The band is the t
    interval over the seeds' curves at each point.

    Chosen by simulation, with 3 and 5 seeds and 6 shares of English (1 to 90 %), for eight shapes of 1 to 4 points
    (parabolas, sums of power laws, one rise, one fall, a kink), noise between runs of 0.25 and 0.6 points, with and
    without slopes that differ between seeds; 400 to 1,500 studies each. The band covers 94 to 96 % at the levels, and
    between them wherever the shape is smooth (71 % at worst: between 1 and 10 %, where a power law bends). The interval
    of the optimum covers 93 to 99 %, one at the end of the range up to 100 %, and 88 % at worst where
    noise is 0.08 points and the spline is what errs; with five levels 94 to 99 %, with four 97
    to 100 %. A parabola has intervals half as wide and covers 0 to 97 %: it is right where the truth is a parabola; the
    logit of a share does no better, a cubic 26 to 99 %. A flat curve is given an interior optimum in 1 to 3 %.
    """
    found = _curves(results, factor, metric, group, at)
    low, high = _band(found.by_seed)
    own = found.at_levels.mean(axis=1, keepdims=True)
    shape_low, shape_high = _band(found.by_seed - own + own.mean())
    optimum, place = highest(found.grid, found.by_seed, levels=found.levels, n_languages=found.n_languages)
    if results.is_searched:
        optimum, place = _without_bounds(optimum, CHOSEN), "not told apart"
    means = [over_seeds(column) for column in found.at_levels.T]
    points = pd.DataFrame(
        {
            "level": found.levels,
            "mean": [one.estimate for one in means],
            "low": [one.low for one in means],
            "high": [one.high for one in means],
            "n_seeds": len(found.seeds),
        }
    )
    return Response(
        factor, metric, group, found.grid, found.by_seed.mean(axis=0), low, high, shape_low, shape_high, points,
        optimum, place, len(found.seeds), METHOD, optimum.reason, found.beside,
    )  # fmt: skip


def optima_differ(
    results: Results,
    factor: str,
    first_group: str,
    second_group: str,
    *,
    metric: str = "score",
    at: Mapping[str, Level] | None = None,
) -> Interval:
    """How much higher the factor's best value is in the first group than in the second, over the seeds of both; `at`
    as in `response`.

    Its bounds combine the distances from each optimum to its own bounds as the root of their squares (Zou and Donner,
    2008), which keeps intervals that are not symmetric; where a bound is the end of the range, as their sum. In 600
    studies each of seven pairs of shapes, with 3 and 5 seeds that both groups share, it covered 91 to 99.8 %: wide
    where the two groups move together, as the correlation of two optima cannot be learnt from so few seeds. The t
    interval over the differences of each seed's own optima covered 59 to 97 %, a jackknife 73 to 92 %.
    """
    sides = [_curves(results, factor, metric, group, at) for group in (first_group, second_group)]
    seeds = sides[0].seeds.intersection(sides[1].seeds)
    found = [
        highest(one.grid, one.by_seed[one.seeds.isin(seeds)], levels=one.levels, n_languages=one.n_languages)[0]
        for one in sides
    ]
    combined = minus(*found, span=(float(sides[0].grid[0]), float(sides[0].grid[-1])))
    return _without_bounds(combined, CHOSEN) if results.is_searched else combined


def highest(
    grid: Floats, curves: Floats, *, levels: Floats | None = None, n_languages: int = 1
) -> tuple[Interval, Place]:
    """Where the mean of curves, shape (seeds, points), is highest, and between which points that may be.

    A point is out where another point of the curve is shown to be higher: by the difference between the two, paired by
    seed, at 2.5 % one-sided. For points side by side that tests the slope, which for a parabola is the interval of
    Fieller (1954) for its top; points further off bring in the ends of the range, and curves with several tops. The
    interval goes from the first to the last point that is left. What lies between `levels` is the spline's guess, so it
    reaches on for an eighth of the way to the next level, with fewer than five levels for half of it. A flat curve is
    highest nowhere: NaN.
    """
    seeds = len(curves)
    mean = curves.mean(axis=0)
    estimate = float(grid[mean.argmax()])
    bare = Interval(estimate, np.nan, np.nan, np.nan, seeds, n_languages, METHOD)
    if seeds < 2:
        return _without_bounds(bare, "one seed"), "not told apart"
    if np.ptp(mean) < 1e-9:
        return _without_bounds(replace(bare, estimate=np.nan), "no variation"), "not told apart"
    covariance = np.cov(curves, rowvar=False)
    variance = covariance.diagonal()[:, None] + covariance.diagonal() - 2 * covariance
    reach = stats.t.ppf((1 + LEVEL) / 2, seeds - 1) * np.sqrt(np.clip(variance, 0.0, None) / seeds)
    left = np.flatnonzero(~(mean - mean[:, None] > reach + 1e-9).any(axis=1))
    low, high = float(grid[left[0]]), float(grid[left[-1]])
    if low == high and left[0] in (0, len(grid) - 1):
        return Interval(estimate, low, high, float(seeds - 1), seeds, n_languages, METHOD), "at the edge"
    if levels is not None:
        part = BETWEEN if len(levels) >= KNOTS else BETWEEN_FEW
        low = max(low - part * _gap(levels, low, "left"), float(grid[0]))
        high = min(high + part * _gap(levels, high, "right"), float(grid[-1]))
    if low > grid[0] and high < grid[-1]:
        return Interval(estimate, low, high, float(seeds - 1), seeds, n_languages, METHOD), "interior"
    return Interval(estimate, low, high, float(seeds - 1), seeds, n_languages, METHOD), "not told apart"


def _gap(levels: Floats, at: float, side: Literal["left", "right"]) -> float:
    """How far apart the two levels are that lie around a point; at a level the two on the given side of it."""
    ordered = np.unique(levels)
    after = int(np.searchsorted(ordered, at, side=side).clip(1, len(ordered) - 1))
    return float(ordered[after] - ordered[after - 1])


def minus(first: Interval, second: Interval, *, span: tuple[float, float]) -> Interval:
    """First minus second optimum within a range `span`; see `optima_differ`."""
    method = "difference of two optima, from the interval of each"
    seeds, languages = min(first.n_seeds, second.n_seeds), first.n_languages + second.n_languages
    estimate = first.estimate - second.estimate
    reason = first.reason or second.reason
    if reason:
        return Interval(estimate, np.nan, np.nan, np.nan, seeds, languages, method, reason)

    def reach(one: float, other: float, *, ends: bool) -> float:
        return one + other if ends else float(np.hypot(one, other))

    low_end, high_end = (first.low <= span[0], second.high >= span[1]), (first.high >= span[1], second.low <= span[0])
    down = reach(first.estimate - first.low, second.high - second.estimate, ends=any(low_end))
    up = reach(first.high - first.estimate, second.estimate - second.low, ends=any(high_end))
    return Interval(estimate, estimate - down, estimate + up, float(seeds - 1), seeds, languages, method)


def smoother(levels: Floats, grid: Floats, *, log: bool = False) -> Floats:
    """Matrix (points, levels) that takes values at the levels to the spline fitted to them by least squares."""
    return np.asarray(_spline(levels, grid, log) @ np.linalg.pinv(_spline(levels, levels, log)))


def _spline(levels: Floats, at: Floats, log: bool) -> Floats:
    """The basis of the curve along these levels, at other points: shape (points, knots)."""
    scale = _scale(levels, log)
    distinct = np.unique(scale(levels))
    knots = np.quantile(distinct, np.linspace(0, 1, min(KNOTS, len(distinct))))
    return _natural_spline(scale(at), knots)


def _scale(levels: Floats, log: bool) -> Callable[[Floats], Floats]:
    """The scale a factor is fitted on; see `response`."""
    low, high = float(levels.min()), float(levels.max())
    if low > 0 and (log or (high > 1 and high >= LOG_FROM * low)):
        return np.log
    if low >= 0 and high <= 1:
        return lambda share: np.arcsin(np.sqrt(share))
    return lambda number: number


def _natural_spline(x: Floats, knots: Floats) -> Floats:
    """Basis (points, knots) of cubic splines that are straight lines beyond the outer knots (Hastie, Tibshirani and
    Friedman, 2009, equation 5.4)."""
    last = knots[-1]

    def bend(knot: float) -> Floats:
        cubes = np.clip(x - knot, 0, None) ** 3 - np.clip(x - last, 0, None) ** 3
        return np.asarray(cubes / (last - knot))

    return np.column_stack([np.ones_like(x), x, *(bend(knot) - bend(knots[-2]) for knot in knots[:-2])])


def _band(curves: Floats) -> tuple[Floats, Floats]:
    """t intervals over seeds at every point; NaN with one seed."""
    seeds, mean = len(curves), curves.mean(axis=0)
    if seeds < 2:
        return np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    half = stats.t.ppf((1 + LEVEL) / 2, seeds - 1) * curves.std(axis=0, ddof=1) / seeds**0.5
    return mean - half, mean + half


def _without_bounds(one: Interval, reason: str) -> Interval:
    return Interval(one.estimate, np.nan, np.nan, np.nan, one.n_seeds, one.n_languages, one.method, reason)


def _curves(results: Results, factor: str, metric: str, group: str, at: Mapping[str, Level] | None = None) -> _Curves:
    if factor not in results.factors:
        raise InputError(
            f"'{factor}' is not a factor of study '{results.name}'; factors: {', '.join(results.factors)}."
        )
    arms = results.arms()
    arms = arms[arms[factor].notna()]
    for name, level in (at or {}).items():
        if name == factor or name not in results.factors or level not in set(arms[name]):
            raise InputError(
                f"at={dict(at or {})}: '{name}' is not another factor of study '{results.name}' that has runs at "
                f"{level}."
            )
        arms = arms[arms[name] == level]
    if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in arms[factor]):
        raise InputError(f"Factor '{factor}' has levels that are no numbers, so there is no curve along it.")
    levels = np.unique(arms[factor].to_numpy(dtype=float))
    if len(levels) < FEWEST_LEVELS:
        raise InputError(
            f"A curve takes {FEWEST_LEVELS} levels of '{factor}' with runs, and there are {len(levels)}. Compare "
            "levels with Results.effects."
        )
    grid, log = _grid(results, factor, levels)
    others = [name for name in results.factors if name != factor and arms[name].nunique(dropna=False) > 1]
    matched = _matched(arms, factor, others, levels)
    if matched:
        labels = [label for column in matched for label in column]
        found = blocks(results, labels, metric=metric, group=group)
        at_levels = found.array.reshape(len(found.array), len(matched), len(levels)).mean(axis=1)
        by_seed = at_levels @ smoother(levels, grid, log=log).T
        said = f"mean over the levels of {_said(others)}" if others else ""
        if others and len(matched) == 1:
            said = f"{_levels_said(results, matched[0][0], others)} alone"
        return _Curves(found.means.index, levels, at_levels, grid, by_seed, found.n_languages, said)
    return _adjusted(results, arms, factor, others, grid, log, metric, group)


def _said(names: Sequence[str]) -> str:
    return " and ".join(name.replace("_", " ") for name in names)


def _levels_said(results: Results, arm: str, names: Sequence[str]) -> str:
    held = results.arms().loc[arm, list(names)].dropna()
    return " and ".join(results.level_label(str(name), level) for name, level in held.to_dict().items())


def _grid(results: Results, factor: str, levels: Floats) -> tuple[Floats, bool]:
    """Points between the lowest and the highest level with runs, and whether the factor asks for the logarithm."""
    known = {one.name: one for one in results.study.factors} if results.study else {}
    log = factor in known and known[factor].log
    if _scale(levels, log) is np.log:
        return np.geomspace(levels[0], levels[-1], POINTS), log
    return np.linspace(levels[0], levels[-1], POINTS), log


def _matched(arms: pd.DataFrame, factor: str, others: Sequence[str], levels: Floats) -> list[list[str]]:
    """Labels of the arms by level, for every combination of the other factors in which all levels have runs."""
    by_combination: dict[tuple[str, ...], dict[float, str]] = {}
    for label, row in arms.iterrows():
        key = tuple("" if pd.isna(row[name]) else repr(row[name]) for name in others)
        by_combination.setdefault(key, {})[float(row[factor])] = str(label)
    return [[own[level] for level in levels] for own in by_combination.values() if len(own) == len(levels)]


def _adjusted(
    results: Results, arms: pd.DataFrame, factor: str, others: Sequence[str], grid: Floats, log: bool, metric: str,
    group: str,
) -> _Curves:  # fmt: skip
    """Curves from arms that differ in other factors too, as with points in a range: these are taken out by least
    squares, as x and x² of numbers and indicators of other levels."""
    columns = [column for name in others for column in _columns(arms[name])]
    beside = np.column_stack([np.empty((len(arms), 0)), *columns])
    x = arms[factor].to_numpy(dtype=float)
    least = KNOTS + beside.shape[1] + 1
    if len(arms) < least or np.linalg.matrix_rank(beside) < beside.shape[1]:
        raise InputError(
            f"The arms with runs cannot tell a curve along '{factor}' from the effects of {', '.join(others)}: no "
            f"combination of these has all its levels, and taking them out needs {least} arms of their own "
            f"(there are {len(arms)})."
        )
    found = blocks(results, [str(label) for label in arms.index], metric=metric, group=group)
    own = _spline(x, x, log)
    fitted = found.array @ np.linalg.pinv(np.column_stack([own, beside])).T
    by_seed = fitted[:, : own.shape[1]] @ _spline(x, grid, log).T
    without_others = found.array - fitted[:, own.shape[1] :] @ beside.T
    order = np.argsort(x)
    said = f"{_said(others)} taken out, as if effects added up" if others else ""
    return _Curves(found.means.index, x[order], without_others[:, order], grid, by_seed, found.n_languages, said)


def _columns(levels: pd.Series[Any]) -> list[Floats]:
    """Centred columns of a factor that is taken out."""
    numbers = pd.to_numeric(levels, errors="coerce")
    if numbers.notna().all() and levels.nunique() > FEWEST_LEVELS:
        scaled = ((numbers - numbers.mean()) / numbers.std()).to_numpy(dtype=float)
        return [scaled, scaled**2 - (scaled**2).mean()]
    made = pd.get_dummies(levels.astype(str), dtype=float).to_numpy()[:, 1:]
    return list((made - made.mean(axis=0)).T)
