"""Tests over seeds: exact sign flips with their floor, corrections for many tests, and equivalence within a margin.
`contrasts` calls these.

They speak of these languages. What holds for languages like these stands in the two-way interval of an effect.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, log2
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from ablations.intervals import over_seeds

Method = Literal["holm", "bh"]

ALPHA = 0.05
EXACT_UP_TO = 14
"""Seeds up to which all signs are tried; with more, as many at random as `RANDOM_SIGNS`."""
RANDOM_SIGNS = 9_999


@dataclass(frozen=True)
class Equivalence:
    """Whether an effect lies within a margin, in points: two one-sided t tests over seeds, for these languages.

    `equivalent` where `p` < 0.05, which is where the 90 % interval lies within the margin on both sides. False says
    that it was not shown, not that there is a difference.
    """

    points: float
    low90: float
    high90: float
    p: float
    margin: float
    equivalent: bool
    n_seeds: int
    metric: str = ""
    group: str = ""
    arm: str = ""
    baseline: str = ""
    reason: str = ""

    def text(self) -> str:
        """`+0.3 points, 90 % [-0.4, 1.0] within ±2: equivalent (p = 0.004), 5 seeds`."""
        if np.isnan(self.p):
            return f"not tested ({self.reason})"
        word = "equivalent" if self.equivalent else "not shown to be equivalent"
        where = "within" if self.equivalent else "against"
        bounds = f"90 % [{self.low90:+.1f}, {self.high90:+.1f}] {where} ±{self.margin:g}"
        return f"{self.points:+z.1f} points, {bounds}: {word} (p = {self.p:.2g}), {self.n_seeds} seeds"


def sign_flip(by_seed: ArrayLike) -> NDArray[np.float64]:
    """Two-sided p of paired differences by seed, of shape (..., seeds) -> (...): the share of all choices of signs
    whose mean is at least as far from 0.

    Exact where a difference is as likely to be -d as d if the arms do not differ, whatever its distribution (Fisher's
    randomisation test; `scipy.stats.permutation_test(permutation_type="samples")` gives the same). It cannot fall below
    `least_p`. With more than 14 seeds 9,999 signs are drawn, always the same ones, and the data count as one more. NaN
    where a difference is unknown.
    """
    values = np.asarray(by_seed, dtype=float)
    flat = values.reshape(-1, values.shape[-1])
    signs = _signs(flat.shape[1])
    exact = flat.shape[1] <= EXACT_UP_TO
    enough = np.abs(flat.sum(axis=1)) - 1e-9 * np.abs(flat).sum(axis=1)  # sums in another order differ in the last bits
    p, rows = np.empty(len(flat)), max(1, 20_000_000 // len(signs))
    for start in range(0, len(flat), rows):
        part = slice(start, start + rows)
        extreme = (np.abs(flat[part] @ signs.T) >= enough[part, None]).sum(axis=1)
        p[part] = extreme / len(signs) if exact else (extreme + 1) / (len(signs) + 1)
    p[np.isnan(enough)] = np.nan
    return p.reshape(values.shape[:-1])


@lru_cache(maxsize=8)
def _signs(seeds: int) -> NDArray[np.float64]:
    """Signs (choices, seeds); of a choice and its opposite, which are equally far from 0, one."""
    if seeds > EXACT_UP_TO:
        return np.random.default_rng(0).choice((-1.0, 1.0), size=(RANDOM_SIGNS, seeds))
    bits = np.arange(2 ** (seeds - 1))[:, None] >> np.arange(seeds) & 1
    return np.asarray(1.0 - 2.0 * bits, dtype=np.float64)


def least_p(n_seeds: int) -> float:
    """The p below which `sign_flip` cannot fall: 2 of 2^S choices of signs are always as extreme as the data."""
    return 2.0 / 2**n_seeds if n_seeds <= EXACT_UP_TO else 1.0 / (RANDOM_SIGNS + 1)


def seeds_needed(n_tests: int = 1, *, alpha: float = ALPHA) -> int:
    """The fewest seeds with which a sign-flip test can be below `alpha` after a Holm correction for so many tests."""
    return ceil(1 + log2(max(1, n_tests) / alpha))


def floor_note(n_seeds: int, n_tests: int) -> str:
    """What the floor of p makes impossible, in a sentence; empty where it leaves room."""
    if n_seeds < 1 or least_p(n_seeds) * max(1, n_tests) < ALPHA:
        return ""
    seeds = f"{n_seeds} seed{'s' if n_seeds != 1 else ''}"
    alone = (
        f"no sign-flip p can be below {ALPHA}, however large the effect"
        if least_p(n_seeds) >= ALPHA
        else f"none of {n_tests} claims can be below {ALPHA} after Holm's correction, however large the effect"
    )
    for_all = f" and {seeds_needed(n_tests)} for the first of {n_tests} claims after Holm's correction"
    return (
        f"With {seeds} p is at least {least_p(n_seeds):.2g}, so {alone}: that takes {seeds_needed()} seeds for a "
        f"single claim{for_all if n_tests > 1 else ''}. Verdicts rest on the intervals."
    )


def adjusted(p_values: ArrayLike, method: Method) -> NDArray[np.float64]:
    """p corrected for their number, along the last axis: `holm` holds the chance of any false finding, for claims; `bh`
    (Benjamini and Hochberg) the expected share of false ones among the findings, for exploration. Equal to those of
    `statsmodels.stats.multitest.multipletests`, which takes 70 ms. NaN stays NaN and counts as no test."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, axis=-1)  # NaN last
    ranked = np.take_along_axis(p, order, axis=-1)
    rank, count = np.arange(1, p.shape[-1] + 1), (~np.isnan(p)).sum(axis=-1, keepdims=True)
    if method == "holm":
        ranked = np.maximum.accumulate(ranked * np.maximum(count - rank + 1, 1), axis=-1)
    else:
        scaled = np.where(np.isnan(ranked), np.inf, ranked * count / rank)
        ranked = np.minimum.accumulate(scaled[..., ::-1], axis=-1)[..., ::-1]
    found = np.empty_like(p)
    np.put_along_axis(found, order, np.minimum(ranked, 1.0), axis=-1)
    return np.where(np.isnan(p), np.nan, found)


def two_one_sided(by_seed: ArrayLike, margin: float) -> NDArray[np.float64]:
    """p of equivalence from (..., seeds) -> (...): the larger one of two one-sided t tests, against -margin and against
    +margin (Schuirmann 1987). Equal to `statsmodels.stats.weightstats.ttost_paired`."""
    values = np.asarray(by_seed, dtype=float)
    seeds = values.shape[-1]
    error = values.std(axis=-1, ddof=1) / seeds**0.5
    return np.asarray(special.stdtr(seeds - 1, (np.abs(values.mean(axis=-1)) - margin) / error), dtype=np.float64)


def equivalent(by_seed: ArrayLike, margin: float) -> Equivalence:
    """Whether paired differences by seed show an effect within the margin: `two_one_sided`."""
    values = np.asarray(by_seed, dtype=float)
    interval = over_seeds(values, level=0.9)
    if interval.reason:
        nan = float("nan")
        return Equivalence(interval.estimate, nan, nan, nan, margin, False, len(values), reason=interval.reason)
    p = float(two_one_sided(values, margin))
    return Equivalence(interval.estimate, interval.low, interval.high, p, margin, p < ALPHA, len(values))
