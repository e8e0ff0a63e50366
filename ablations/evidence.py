"""What the published tables themselves can support, with one run per arm. Called by `python -m ablations findings
--published`.

A table without seeds says nothing of the noise between runs. What it does allow is an interval over languages, and the
question how large that noise may be before a difference could be chance; the noise of our own runs of the same
comparison stands beside it. Full-size runs may vary more or less than ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import stats

from ablations.claims import CLAIMS, INFINITE, Claim, Contrast, Optimum, Part, Reached, figure
from ablations.contrasts import effect
from ablations.findings import can_test, levels_of
from ablations.intervals import over_seeds
from ablations.published.tables import Cells, pairs

if TYPE_CHECKING:
    from ablations.table import Results

METHOD = """\
One run per arm: intervals are over languages alone, with no seed noise in them. Bearable: the standard deviation
between seeds up to which the figure could not be chance (1.96 of them fit between it and the border of the claim).
Within seed noise: one pair of runs strays as far here. Can support: it does not, and the languages agree."""
QUANTILE = float(stats.norm.ppf(0.975))


@dataclass(frozen=True)
class Noise:
    """How much a comparison varies between seeds here: the standard deviation of the paired difference, in points."""

    sd: float
    n_seeds: int
    study: str

    @property
    def reach(self) -> float:
        """How far one pair of runs strays from the truth in 95 % of pairs: sd times the t quantile of its seeds."""
        return self.sd * float(stats.t.ppf(0.975, self.n_seeds - 1))


@dataclass(frozen=True)
class Evidence:
    """What a published table says of one part of a claim, in points (an optimum in percent of English).

    `low` and `high` are a t interval over languages alone: there is no seed noise in it. `bearable` is the largest
    standard deviation between seeds with which the figure would still lie beyond the region's border by 1.96 of them.
    `judgement` follows this rule, in this order:

    - no figure: nothing is published;
    - speaks against: the figure lies outside of the claimed region;
    - languages disagree: the interval over languages crosses the region's border;
    - within seed noise: the figure lies no further inside than one pair of runs strays here (`Noise.reach`);
    - can support: further inside, and the interval over languages, where there is one, lies within the region;
    - cannot be judged: further inside than nothing, but no runs of our own tell the noise.
    """

    claim: Claim
    part: str
    points: float | None
    low: float
    high: float
    n_languages: int
    bearable: float
    noise: Noise | None
    judgement: str


def evidence(results: Sequence[Results] = (), *, claims: Sequence[Claim] = CLAIMS) -> list[Evidence]:
    """Every part of every claim on the published tables, beside the noise of our own results that have the same
    comparison (the claim's own study before others)."""
    return [_judged(claim, part, _noise(results, claim, part)) for claim in claims for part in claim.parts or (None,)]


def over_languages(cells: Cells) -> tuple[float, float, int]:
    """The 95 % t interval of a published difference over languages, and their number; NaN where none are published.

    Each (task, language) pair of the groups is differenced between the two arms, a language takes the mean of its
    pairs, and languages are the replicates, as if drawn at random.
    """
    first = _by_language(cells, cells.groups)
    if len(first) < 2:
        return math.nan, math.nan, len(first)
    if not cells.than_groups:
        found = over_seeds(first)  # the t interval of a mean: here over languages
        return found.low, found.high, len(first)
    second = _by_language(cells, cells.than_groups)
    if len(second) < 2:
        both = over_seeds(first - (float(second.mean()) if len(second) else math.nan))
        return both.low, both.high, len(first) + len(second)
    low, high = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    return float(low), float(high), len(first) + len(second)


def _by_language(cells: Cells, groups: Sequence[str]) -> np.ndarray:
    key = ["task", "language", "group"]
    arm = pairs(cells.table, cells.arm).set_index(key)["value"]
    if cells.against is not None:
        arm = (arm - pairs(cells.table, cells.against).set_index(key)["value"]).dropna()
    frame = arm.reset_index()
    return frame[frame["group"].isin(groups)].groupby("language")["value"].mean().to_numpy(dtype=float)


def _noise(results: Sequence[Results], claim: Claim, part: Part | None) -> Noise | None:
    """From the first results that have this comparison at two seeds or more."""
    if not isinstance(part, Contrast):
        return None
    for one in sorted(results, key=lambda each: each.name != claim.study):
        if one.study is None or not can_test(one, claim):
            continue
        found = effect(
            one,
            levels_of(one.study, part.arm),
            levels_of(one.study, part.against),
            metric=part.metric,
            group=part.group,
            than_group=part.than_group,
        )
        if found.n_seeds > 1 and np.isfinite(found.noise_units) and found.noise_units:
            return Noise(abs(found.points / found.noise_units), found.n_seeds, one.name)
    return None


def _judged(claim: Claim, part: Part | None, noise: Noise | None) -> Evidence:
    points = None if part is None else figure(part)
    if part is None or points is None:
        name = "" if part is None else _name(part)
        return Evidence(claim, name, None, math.nan, math.nan, 0, math.nan, noise, "no figure")
    low, high, languages = (math.nan, math.nan, 0)
    if not isinstance(part, Optimum) and part.published is not None:
        low, high, languages = over_languages(part.published)
    below, above = part.region
    inside = min(points - below, above - points)
    bearable = max(0.0, inside) / QUANTILE if not isinstance(part, Optimum) else math.nan
    if inside < 0:
        judgement = "speaks against"
    elif np.isfinite(low) and (low < below or high > above):
        judgement = "languages disagree"
    elif isinstance(part, Optimum) or noise is None:
        judgement = "cannot be judged"
    else:
        judgement = "can support" if inside > noise.reach else "within seed noise"
    return Evidence(claim, _name(part), points, low, high, languages, bearable, noise, judgement)


def _name(part: Part) -> str:
    def said(where: Mapping[str, object]) -> str:
        return ", ".join(str(one[0] if isinstance(one, tuple) else one) for one in where.values())

    if isinstance(part, Optimum):
        return f"best share for {part.group}" + (f" minus that for {part.than_group}" if part.than_group else "")
    group = (
        part.group if isinstance(part, Reached) or part.than_group is None else f"{part.group} minus {part.than_group}"
    )
    against = "" if isinstance(part, Reached) else f" against {said(part.against)}"
    return f"{part.metric} of {group}: {said(part.arm)}{against}"


def table(found: Sequence[Evidence]) -> pd.DataFrame:
    """Evidence as a table, a row for each part of each claim."""
    rows = [
        {
            "claim": one.claim.id,
            "comparison": one.part,
            "published": math.nan if one.points is None else one.points,
            "low (languages only)": one.low,
            "high (languages only)": one.high,
            "languages": one.n_languages,
            "bearable seed sd": one.bearable if one.bearable < INFINITE else math.nan,
            "seed sd here": one.noise.sd if one.noise else math.nan,
            "seeds here": one.noise.n_seeds if one.noise else 0,
            "study": one.noise.study if one.noise else "",
            "judgement": one.judgement,
        }
        for one in found
    ]
    return pd.DataFrame(rows)


def lines(found: Sequence[Evidence]) -> list[str]:
    """Evidence for a terminal: a line for each part of each claim, and how it was judged."""
    said = []
    for at, one in enumerate(found):
        if not at or one.claim is not found[at - 1].claim:
            said.append(f"{one.claim.id:<4} {one.claim.statement}")
        said.append(f"     {text(one)}")
    return [*said, "", METHOD]


def text(one: Evidence) -> str:
    """`score of T5: T5 against en: +5.5 [2.1, 8.9] over 6 languages; seed sd here 0.8, bearable 2.8: can support`."""
    if one.points is None:
        return f"{one.part}: {one.judgement}" if one.part else one.judgement
    bounds = f" [{one.low:+.1f}, {one.high:+.1f}] over {one.n_languages} languages" if np.isfinite(one.low) else ""
    here = f"seed sd here {one.noise.sd:.1f} ({one.noise.study}), " if one.noise else ""
    bears = f"; {here}bearable {one.bearable:.1f}" if np.isfinite(one.bearable) else ""
    points = f"{one.points:+z.1f}" if "against" in one.part or "minus" in one.part else f"{one.points:.1f}"
    return f"{one.part}: {points}{bounds}{bears}: {one.judgement}"
