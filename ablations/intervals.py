"""Confidence intervals that hold with few seeds. `contrasts` and `plots` call these; nothing else here computes one.

The unit of replication is the training run, one per seed. Languages are repeated measures inside a run: rows pooled
over seeds and languages cover 43 to 64 % where 95 % is promised, a bootstrap over 3 seeds 71 to 73 %.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

LEVEL = 0.95


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


def two_way(differences: ArrayLike, *, minus: ArrayLike | None = None, level: float = LEVEL) -> Interval:
    """Mean of paired differences for seeds and languages like these: two-way random effects, t with Satterthwaite's df.

    `differences` has shape (seeds, languages), complete, one row per seed. With `minus`, of shape (seeds, other
    languages) and the same seeds in the same order, the estimate is the difference of the two means: seeds stay paired,
    languages are two samples.

    V = MS_seed + MS_lang - MS_res; the squared standard error is max(V, MS_seed, MS_lang) / (S L) and df = V^2 /
    (MS_seed^2 / (S - 1) + MS_lang^2 / (L - 1) + MS_res^2 / ((S - 1)(L - 1))), or S - 1 where V <= 0. The floor keeps
    the interval from shrinking below that of either source of noise alone. df is never taken below min(S - 1, L - 1),
    the least that a sum of variances can have: V subtracts MS_res, and just above V = 0 the formula would give df near
    0 and an interval of any width. Simulated coverage with this bound: 0.95 to 0.98. One language leaves the t interval
    over seeds.
    """
    groups = [_matrix(differences)] + ([] if minus is None else [_matrix(minus)])
    seeds = groups[0].shape[0]
    if any(group.shape[0] != seeds for group in groups):
        raise ValueError(f"both groups need the same seeds, given {[group.shape[0] for group in groups]}")
    languages = sum(group.shape[1] for group in groups)
    by_seed = sum((sign * group.mean(axis=1) for sign, group in zip((1, -1), groups, strict=False)), np.zeros(seeds))
    estimate = float(by_seed.mean())
    crossed = [group for group in groups if group.shape[1] > 1]
    method = "two-way t over seeds and languages" if crossed else "t over seeds"
    if seeds < 2:
        return Interval(estimate, np.nan, np.nan, np.nan, seeds, languages, method, reason="one seed")
    # Each mean square, divided by S L of its group, is a variance of the estimate.
    seed_part = float(by_seed.var(ddof=1)) / seeds
    language_parts, residual_parts = [], []
    for group in crossed:
        count = group.shape[1]
        residual = group - group.mean(axis=1, keepdims=True) - group.mean(axis=0) + group.mean()
        language_parts.append((float(group.mean(axis=0).var(ddof=1)) / count, count - 1))
        df_residual = (seeds - 1) * (count - 1)
        residual_parts.append((float((residual**2).sum()) / df_residual / (seeds * count), df_residual))
    of_languages = sum(part for part, _ in language_parts)
    v = seed_part + of_languages - sum(part for part, _ in residual_parts)
    variance = max(v, seed_part, of_languages)
    parts = [(seed_part, seeds - 1), *language_parts, *residual_parts]
    least = min(n for _, n in parts)
    df = max(v**2 / sum(part**2 / n for part, n in parts), least) if v > 0 else float(seeds - 1)
    if variance < 1e-12:  # as where all runs are at the ceiling: an interval of width 0 would claim what nobody knows
        return Interval(estimate, np.nan, np.nan, np.nan, seeds, languages, method, reason="no variation")
    half = float(stats.t.ppf((1 + level) / 2, df)) * variance**0.5
    return Interval(estimate, estimate - half, estimate + half, df, seeds, languages, method)


def over_seeds(values: ArrayLike, *, level: float = LEVEL) -> Interval:
    """Mean over seeds with a t interval, df = seeds - 1: it speaks of these languages and tasks only."""
    return two_way(np.asarray(values, dtype=float)[:, None], level=level)


def _matrix(values: ArrayLike) -> NDArray[np.float64]:
    matrix = np.asarray(values, dtype=float)
    if matrix.ndim != 2 or matrix.size == 0:
        raise ValueError(
            f"differences are a matrix (seeds, languages) with at least one of each, not of shape {matrix.shape}"
        )
    if not np.isfinite(matrix).all():
        raise ValueError("differences must be complete: take out pairs with a missing side first")
    return matrix
