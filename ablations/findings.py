"""Findings: the verdict on every published claim that a study's results can test, with the published figure beside it.

Called by `python -m ablations findings` and by notebooks. Verdicts speak of the world, the backbones and the budget of
the study.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from scipy import stats

from ablations.claims import CLAIMS, Claim, Contrast, Optimum, Part, Reached, Where, figure
from ablations.contrasts import effect, level
from ablations.factors import Level
from ablations.intervals import LEVEL, visible
from ablations.places import EXAMPLE_PREFIX
from ablations.significance import ALPHA, adjusted
from ablations.studies import Study, list_studies
from lvlm.errors import InputError

if TYPE_CHECKING:
    from ablations.table import Results

Verdict = Literal["supported", "contradicted", "within noise", "not judged", "no study run"]
Scope = Literal["languages like these", "these languages"]
METHOD = """\
Supported: every part of the claim lies in its region at p < 0.05, after Holm over the claims shown here. Contradicted:
a part lies outside of it. Within noise: neither. p inverts the 95 % interval, since exact tests over 5 seeds cannot
fall below 0.06: that of a difference is for {}, that of
a mean and of a best level for these languages. Behind ≥: the smallest true difference that such runs show with 80 %
power. Verdicts speak of this world, its backbones and its budgets alone."""
"""What the verdicts mean, to be completed with their scope."""


@dataclass(frozen=True)
class Measured:
    """One part of a claim as a study's results have it, in points (an optimum in percent of English).

    `supports` and `contradicts` are the p values of the two sides: how unlikely an estimate so far inside (outside) the
    claimed region would be if the truth lay at its nearest border. Both invert the 95 % interval, so that `supports` is
    below 0.05 exactly where the whole interval lies within the region. NaN where there is no interval, with the reason.
    `smallest` is the smallest true difference that a comparison with this noise shows with 80 % power.
    """

    part: Part
    name: str
    points: float
    low: float
    high: float
    n_seeds: int
    n_languages: int
    supports: float
    contradicts: float
    published: float | None
    smallest: float = math.nan
    reason: str = ""


@dataclass(frozen=True)
class Finding:
    """The verdict on a claim. `effect` is the part that decides it: of a supported claim the weakest, of a contradicted
    one the part that contradicts it most.

    `p` is that of the verdict's side and `p_adjusted` the same after Holm over the claims of one call. A claim is

    - supported where every part is: the largest `supports` counts, which needs no correction for the number of parts
      (an intersection-union test);
    - contradicted where any part is: the smallest `contradicts` counts, times the number of parts (Bonferroni);
    - within noise where neither is below 0.05 after Holm.
    """

    claim: Claim
    study: str
    verdict: Verdict
    effect: Measured | None
    parts: tuple[Measured, ...]
    published: float | None
    p: float
    p_adjusted: float
    note: str = ""

    @property
    def why(self) -> str:
        """What could explain a contradiction, where somebody has looked."""
        return self.claim.why if self.verdict == "contradicted" else ""

    def text(self) -> str:
        """`+29.3 points [+25.1, +33.5] ≥6.0, 5 seeds, 15 languages, p = 0.0004 (Holm 0.005); published +62.1`."""
        if self.effect is None:
            return self.note
        one = self.effect
        unit = "%" if isinstance(one.part, Reached) else "points"
        if isinstance(one.part, Optimum):
            unit = "% English" if one.part.than_group is None else "points of English"
        sign = "+" if "points" in unit else ""
        if np.isnan(one.points):
            measured = f"not measured ({one.reason})"
        else:
            bounds = f"[{one.low:{sign}.1f}, {one.high:{sign}.1f}]" if np.isfinite(one.low) else f"({one.reason})"
            bounds += f" ≥{one.smallest:.1f}" if np.isfinite(one.smallest) else ""
            seeds, languages = (
                f"{number} {noun}{'s' if number != 1 else ''}"
                for number, noun in ((one.n_seeds, "seed"), (one.n_languages, "language"))
            )
            measured = f"{one.points:{sign}.1f} {unit} {bounds}, {seeds}, {languages}"
        if np.isfinite(self.p):
            measured += f", p = {self.p:.2g} (Holm {self.p_adjusted:.2g})"
        return measured + ("" if one.published is None else f"; published {one.published:{sign}.1f}")


def verdicts(
    results: Results | Sequence[Results], *, claims: Sequence[Claim] = CLAIMS, scope: Scope = "languages like these"
) -> list[Finding]:
    """The claims that these results can test, in their order, each with its verdict; Holm runs over all of them.

    `scope` says what the intervals speak of. A tier of three languages says little of languages like them, and may say
    much of these three.
    """
    given = list(results) if isinstance(results, Sequence) else [results]
    found = [_finding(one, claim, scope) for claim in claims for one in given if can_test(one, claim)]
    return _adjusted(found)


def one_each(
    results: Iterable[Results], *, claims: Sequence[Claim] = CLAIMS, scope: Scope = "languages like these"
) -> list[Finding]:
    """Every claim once: on its own study where that has results, else on the first that can test it, else `no study
    run`. Holm runs over those that were judged."""
    given, found = list(results), list[Finding]()
    for claim in claims:
        able = [one for one in given if can_test(one, claim)]
        if able:
            chosen = min(able, key=lambda one: (one.name != claim.study, one.is_example))
            found.append(_finding(chosen, claim, scope))
            continue
        there = claim.study in list_studies()
        note = (
            f"no study run: python -m sweeps launch {claim.study}"
            if there
            else f"no study run: '{claim.study}' is not there yet"
        )
        found.append(Finding(claim, claim.study, "no study run", None, (), claim.size, math.nan, math.nan, note))
    return _adjusted(found)


def can_test(results: Results, claim: Claim) -> bool:
    """Whether a study has the levels and the tasks that a claim compares."""
    from ablations.response import FEWEST_LEVELS

    study = results.study
    if study is None or not claim.parts or results.is_searched:
        return False
    for part in claim.parts:
        if isinstance(part, Optimum):
            factor = next((factor for factor in study.factors if factor.path == part.path), None)
            if factor is None or results.arms()[factor.name].nunique() < FEWEST_LEVELS:
                return False
            continue
        sides = [part.arm] if isinstance(part, Reached) else [part.arm, part.against]
        if any(levels_of(study, side) is None for side in sides):
            return False
        if (task := part.group.rpartition("/")[0]) and task not in set(results.table["task"]):
            return False
    return True


def levels_of(study: Study, where: Where) -> dict[str, Level] | None:
    """The levels of a study's factors that a claim names by their fields; None where the study lacks one."""
    found: dict[str, Level] = {}
    for path, choice in where.items():
        factor = next((factor for factor in study.factors if factor.path == path), None)
        options = choice if isinstance(choice, tuple) else (choice,)
        if factor is None or not (known := [one for one in options if factor.has(one)]):
            return None
        found[factor.name] = known[0]
    return found


def _finding(results: Results, claim: Claim, scope: Scope) -> Finding:
    name = results.folder.name
    parts = tuple(_measured(results, part, scope) for part in claim.parts)
    return _judged(claim, f"{EXAMPLE_PREFIX}{name}" if results.is_example else name, parts)


def _measured(results: Results, part: Part, scope: Scope) -> Measured:
    study = results.known_study("Claims name levels of its factors.")
    if isinstance(part, Optimum):
        return _optimum(results, study, part)
    arm = levels_of(study, part.arm)
    assert arm is not None
    if isinstance(part, Reached):
        found = level(results, arm, metric=part.metric, group=part.group)
        name = f"{part.metric} of {part.group}, {study.arm(arm).label}"
        return _with_sides(
            part, name, found.estimate, found.low, found.high, found.df, found.n_seeds, found.n_languages, found.reason
        )
    one = effect(
        results, arm, levels_of(study, part.against), metric=part.metric, group=part.group, than_group=part.than_group
    )
    name = f"{part.metric} of {one.group}, {one.arm} against {one.baseline}"
    bounds = (one.low, one.high, one.df)
    if scope == "these languages":
        bounds = (one.seeds_low, one.seeds_high, one.n_seeds - 1)
    return _with_sides(part, name, one.points, *bounds, one.n_seeds, one.n_languages, one.reason)


def _optimum(results: Results, study: Study, part: Optimum) -> Measured:
    """The best level in percent, or how far two groups' best levels lie apart: see `ablations.response`.

    Other factors are held at the baseline, as they are in a difference of arms, wherever that leaves a curve. An
    optimum that is not shown to lie inside of the range supports nothing.
    """
    from ablations.response import optima_differ, response

    factor = next(factor for factor in study.factors if factor.path == part.path)
    at = _others_at_baseline(results, study, factor.name)
    name, inside = f"best {factor.name} of {part.group}", True
    if part.than_group is not None:
        name += f" minus that of {part.than_group}"
    try:
        if part.than_group is not None:
            found = optima_differ(results, factor.name, part.group, part.than_group, metric=part.metric, at=at)
            reason = found.reason
        else:
            whole = response(results, factor.name, metric=part.metric, group=part.group, at=at)
            found, inside = whole.optimum, whole.interior == "interior"
            reason = found.reason or whole.reason or ("" if inside else f"the optimum is {whole.interior}")
    except InputError as error:  # an unfinished sweep
        return _with_sides(part, name, math.nan, math.nan, math.nan, math.nan, 0, 0, str(error))
    measured = _with_sides(
        part, name, 100 * found.estimate, 100 * found.low, 100 * found.high, found.df, found.n_seeds,
        found.n_languages, reason,
    )  # fmt: skip
    if inside:
        return measured
    if found.low == found.high:  # at the edge: an interval without width, of which no more is known than its level
        beyond = not part.region[0] < measured.points < part.region[1]
        return replace(measured, supports=1.0, contradicts=ALPHA if beyond else 1.0)
    return measured if np.isnan(measured.supports) else replace(measured, supports=1.0)


def _others_at_baseline(results: Results, study: Study, factor: str) -> dict[str, Level]:
    """The baseline's levels of the factors beside this one; none where too few of its levels have runs there."""
    from ablations.response import FEWEST_LEVELS

    arms = results.arms()
    arms = arms[arms[factor].notna()]
    others = {name: study.baseline[name] for name in results.factors if name != factor}
    for name, choice in others.items():
        arms = arms[arms[name] == choice]
    return others if arms[factor].nunique() >= FEWEST_LEVELS else {}


def _with_sides(
    part: Part, name: str, points: float, low: float, high: float, df: float, seeds: int, languages: int, reason: str
) -> Measured:
    supports, contradicts = sides(points, low, high, df, part.region)
    error = (high - low) / 2 / stats.t.ppf((1 + LEVEL) / 2, df) if isinstance(part, Contrast) else math.nan
    smallest = float(visible(error, df))
    return Measured(
        part, name, points, low, high, seeds, languages, supports, contradicts, figure(part), smallest, reason
    )


def sides(points: float, low: float, high: float, df: float, region: tuple[float, float]) -> tuple[float, float]:
    """The p values for and against a region, from an estimate and its 95 % interval; NaN without an interval.

    For: twice the larger of the two one-sided p values against the region's borders, as in TOST. Against: twice the
    smaller of those beyond them. The standard error on either side of the estimate is the interval's reach there over
    the t quantile, or the normal one where there are no degrees of freedom, as after resampling.
    """
    if not (np.isfinite(low) and np.isfinite(high)) or high - low < 1e-12:
        return math.nan, math.nan
    t = stats.t(df) if np.isfinite(df) else stats.norm()
    quantile = float(t.ppf(0.975))

    def above(border: float) -> float:
        """One-sided p of: the truth lies above the border."""
        reach = (points - low if border <= points else high - points) / quantile
        return float(t.sf((points - border) / max(reach, 1e-12)))

    below_, above_ = region
    supports = max(0.0 if math.isinf(below_) else above(below_), 0.0 if math.isinf(above_) else 1 - above(above_))
    outside = [1.0 if math.isinf(above_) else above(above_), 1.0 if math.isinf(below_) else 1 - above(below_)]
    return min(1.0, 2 * supports), min(1.0, 2 * min(outside))


def _judged(claim: Claim, study: str, parts: tuple[Measured, ...]) -> Finding:
    """A finding before Holm: its side and its p."""
    known = [one for one in parts if np.isfinite(one.supports)]
    if not known:
        return Finding(claim, study, "not judged", parts[0], parts, claim.size, math.nan, math.nan, parts[0].reason)
    weakest = max(known, key=lambda one: one.supports)
    worst = min(known, key=lambda one: one.contradicts)
    supports = weakest.supports if len(known) == len(parts) else 1.0
    contradicts = min(1.0, worst.contradicts * len(parts))
    for_it = supports <= contradicts
    decisive, p = (weakest, supports) if for_it else (worst, contradicts)
    missing = [one for one in parts if one not in known]
    note = f"{missing[0].name}: {missing[0].reason or 'not measured'}" if missing else decisive.reason
    verdict: Verdict = "supported" if for_it else "contradicted"
    return Finding(claim, study, verdict, decisive, parts, decisive.published, p, math.nan, note)


def _adjusted(found: Sequence[Finding]) -> list[Finding]:
    """The findings with Holm's p values and the verdicts that follow."""
    after = adjusted([one.p for one in found], "holm")
    tested = int(np.isfinite(after).sum())
    result = []
    for one, p in zip(found, after.tolist(), strict=True):
        if math.isnan(p):
            result.append(one)
            continue
        note = one.note
        if one.p < ALPHA <= p:
            note = "; ".join(filter(None, (note, f"{one.verdict} if tested alone, not among {tested} claims")))
        result.append(replace(one, verdict=one.verdict if p < ALPHA else "within noise", p_adjusted=p, note=note))
    return result


def table(found: Sequence[Finding]) -> pd.DataFrame:
    """Findings as a table, a row each; points and bounds in percentage points."""
    rows = []
    for one in found:
        part = one.effect
        rows.append(
            {
                "claim": one.claim.id,
                "statement": one.claim.statement,
                "source": one.claim.source,
                "study": one.study,
                "verdict": one.verdict,
                "decided by": "" if part is None else part.name,
                "points": math.nan if part is None else part.points,
                "low": math.nan if part is None else part.low,
                "high": math.nan if part is None else part.high,
                "smallest visible": math.nan if part is None else part.smallest,
                "seeds": 0 if part is None else part.n_seeds,
                "languages": 0 if part is None else part.n_languages,
                "p": one.p,
                "p (Holm)": one.p_adjusted,
                "published": math.nan if one.published is None else one.published,
                "margin": math.nan if one.claim.margin is None else one.claim.margin,
                "note": one.note,
                "why": one.why,
            }
        )
    return pd.DataFrame(rows)


def lines(found: Sequence[Finding]) -> list[str]:
    """Findings for a terminal: two lines for each claim, and what it rests on where there is something to say."""
    said = []
    for one in found:
        said.append(f"{one.claim.id:<4} {one.verdict.upper()}: {one.claim.statement}")
        rests = f"{one.effect.name}: {one.text()}" if one.effect else one.text()
        said.append(f"     {rests} [{one.study}]" if one.effect else f"     {rests}")
        said += [f"     {text}" for text in (one.note if one.effect else "", one.why) if text]
    return said
