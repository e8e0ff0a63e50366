"""Confidence intervals that hold with few seeds, and the smallest difference that such an interval tells from zero.
`contrasts`, `power` and `plots` call these.

The unit of replication is the training run, one per seed. Languages are repeated measures inside a run: rows pooled
over seeds and languages cover 43 to 64 % where 95 % is promised, a bootstrap over 3 seeds 71 to 73 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

LEVEL = 0.95
POWER = 0.8
FEWEST = 3
"""Seeds and languages from which an interval speaks of others like them."""
NO_VARIATION = 1e-12
"""Squared points. As where all runs are at the ceiling: an interval of width 0 would claim what nobody knows."""

Array = NDArray[np.float64]
Part = tuple[Array, float | Array]
"""A part of the variance of a mean, as a mean square over the number of values, and its degrees of freedom."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval. Bounds that cannot be computed are NaN, and `reason` says why."""

    estimate: float
    low: float
    high: float
    df: float
    n_seeds: int
    n_languages: int
    method: str
    reason: str = ""


@dataclass(frozen=True)
class Estimates:
    """Estimates of one or of many effects, arrays of one shape. `standard_error` and `df` are NaN where nothing tells
    the noise: one seed, or no variation at all."""

    mean: Array
    standard_error: Array
    df: Array

    def bounds(self, level: float = LEVEL) -> tuple[Array, Array]:
        """The ends of the t intervals."""
        half = special.stdtrit(self.df, (1 + level) / 2) * self.standard_error
        return self.mean - half, self.mean + half

    def smallest(self, power: float = POWER) -> Array:
        """The smallest true differences that such intervals, at 95 %, tell from zero with this power."""
        return visible(self.standard_error, self.df, power=power)


def crossed(differences: ArrayLike, minus: ArrayLike | None = None) -> Estimates:
    """Means of paired differences for seeds and languages like these: two-way random effects.

    `differences` has shape (..., seeds, languages), complete, one row per seed. With `minus`, of shape (..., seeds,
    other languages) and the same seeds in the same order, the estimate is the difference of the two means: seeds stay
    paired, languages are two samples.

    V = MS_seed + MS_lang - MS_res; the squared standard error is max(V, MS_seed, MS_lang) / (S L): the floor keeps the
    interval from shrinking below that of either source of noise alone. Its degrees of freedom: `combined`. Fewer than
    three seeds or three languages cannot speak of others: what is left is the t interval over seeds.

    Coverage by simulation (`tests/test_coverage.py`): 0.925 to 0.98 for 3 to 8 seeds, 3 to 40 languages and any ratio
    of the noise of seeds, languages and the rest, also where one of them has none.
    """
    groups = [_matrices(differences)] + ([] if minus is None else [_matrices(minus)])
    seeds = groups[0].shape[-2]
    if any(group.shape[-2] != seeds for group in groups):
        raise ValueError(f"both groups need the same seeds, given {[group.shape[-2] for group in groups]}")
    by_seed = groups[0].mean(axis=-1) - (groups[1].mean(axis=-1) if minus is not None else 0.0)
    mean = by_seed.mean(axis=-1)
    if seeds < 2:
        unknown = np.full(mean.shape, np.nan)
        return Estimates(mean, unknown, unknown)
    seed = (by_seed.var(axis=-1, ddof=1) / seeds, seeds - 1.0)
    languages, rest = [], []
    for group in groups:
        if is_crossed(seeds, count := group.shape[-1]):
            by_language = group.mean(axis=-2, keepdims=True)
            left = group - group.mean(axis=-1, keepdims=True) - by_language + group.mean(axis=(-2, -1), keepdims=True)
            languages.append((by_language[..., 0, :].var(axis=-1, ddof=1) / count, count - 1.0))
            rest.append((left**2).sum(axis=(-2, -1)) / ((seeds - 1) * (count - 1) * seeds * count))
    variance, df = combined(seed, languages, rest)
    flat = variance < NO_VARIATION
    return Estimates(mean, np.where(flat, np.nan, variance) ** 0.5, np.where(flat, np.nan, df))


def is_crossed(seeds: int, languages: int) -> bool:
    """Whether there are enough of both to speak of others like them."""
    return min(seeds, languages) >= FEWEST


def combined(seed: Part, languages: Sequence[Part], rest: Sequence[Array]) -> tuple[Array, Array]:
    """(variance of the mean, its degrees of freedom) from the mean squares of a two-way layout over S L.

    Satterthwaite's df of the variance W = max(V, MS_seed, MS_lang): W^2 / (a^2 / (S - 1) + b^2 / (L - 1)), where a is
    MS_seed min(1, MS_seed / MS_res)^2, and b the same of languages: a mean square below that of the rest shows no noise
    of its own, and its few degrees of freedom should not count. With V^2 above and MS_res^2 below the line, as the
    formula stands in books, intervals cover 99 to 100 % where seeds or languages have no noise of their own, which is
    common in real studies. Never below min(S - 1, L - 1), the least that a sum of variances has.
    """
    if not languages:
        return seed[0], np.broadcast_to(np.asarray(seed[1], dtype=float), seed[0].shape)
    of_languages, of_rest = np.add.reduce([part for part, _ in languages]), np.add.reduce(list(rest))
    variance = np.maximum(seed[0] + of_languages - of_rest, np.maximum(seed[0], of_languages))
    with np.errstate(divide="ignore", invalid="ignore"):
        pooled = of_languages**2 / sum(part**2 / n for part, n in languages)  # L - 1 where there is one group
        pooled = (
            np.where(of_languages > 0, pooled, min(n for _, n in languages)) if len(languages) > 1 else languages[0][1]
        )
        df = variance**2 / (_own(seed[0], of_rest) ** 2 / seed[1] + _own(of_languages, of_rest) ** 2 / pooled)
    return variance, np.clip(df, np.minimum(seed[1], pooled), (seed[1] + 1) * (pooled + 1) - 1)


def _own(part: Array, rest: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(part < rest, part * (part / rest) ** 2, part)


def visible(standard_error: ArrayLike, df: ArrayLike, *, power: float = POWER, level: float = LEVEL) -> Array:
    """The smallest true difference whose t interval excludes zero, on its side, with this power.

    The difference over its standard error is noncentral t: the noncentrality at which P(T > t_crit) = `power`, times
    the standard error. The interval that excludes zero on the wrong side is left out (at 80 % power below 0.001).
    """
    df = np.asarray(df, dtype=float)
    critical = special.stdtrit(df, (1 + level) / 2)
    return np.asarray(standard_error * special.nctdtrinc(df, 1 - power, critical))


def two_way(differences: ArrayLike, *, minus: ArrayLike | None = None, level: float = LEVEL) -> Interval:
    """One effect for seeds and languages like these, from (seeds, languages): `crossed`, t with Satterthwaite's df."""
    found = crossed(differences, minus)
    if found.mean.ndim:
        raise ValueError(f"differences are a matrix (seeds, languages), not of shape {np.shape(differences)}")
    shapes = [np.shape(group) for group in (differences, minus) if group is not None]
    low, high = found.bounds(level)
    seeds, languages = shapes[0][0], sum(shape[1] for shape in shapes)
    return Interval(
        float(found.mean), float(low), float(high), float(found.df), seeds, languages,
        method(seeds, [shape[1] for shape in shapes]), why_none(seeds, float(found.df)),
    )  # fmt: skip


def over_seeds(values: ArrayLike, *, level: float = LEVEL) -> Interval:
    """Mean over seeds with a t interval, df = seeds - 1: it speaks of these languages and tasks only."""
    return two_way(np.asarray(values, dtype=float)[:, None], level=level)


def method(seeds: int, languages: Sequence[int]) -> str:
    """What an interval over groups of so many languages is called."""
    return "two-way t over seeds and languages" if is_crossed(seeds, max(languages)) else "t over seeds"


def why_none(seeds: int, df: float) -> str:
    """Why there is no interval; empty where there is one."""
    return "one seed" if seeds < 2 else "no variation" if np.isnan(df) else ""


def _matrices(values: ArrayLike) -> Array:
    matrices = np.asarray(values, dtype=float)
    if matrices.ndim < 2 or matrices.size == 0:
        raise ValueError(
            f"differences are matrices (seeds, languages) with at least one of each, not of shape {matrices.shape}"
        )
    if not np.isfinite(matrices).all():
        raise ValueError("differences must be complete: take out pairs with a missing side first")
    return matrices
