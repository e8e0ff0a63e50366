"""Effects: paired differences between arms with their intervals, and the verdict on what a study expected.

`report` and the notebooks show them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ablations.combinations import Change as Change
from ablations.combinations import arms_beside, mean_difference
from ablations.factors import Level
from ablations.intervals import Interval, crossed, method, over_seeds, why_none
from ablations.pairing import By as By
from ablations.pairing import by_language, paired, sides
from ablations.pairing import groups as groups
from ablations.pairing import values as values
from ablations.resampling import seed_bootstrap
from ablations.significance import Equivalence, Method, adjusted, equivalent, floor_note, least_p, sign_flip
from ablations.studies import Expectation
from lvlm.errors import InputError

if TYPE_CHECKING:
    from ablations.table import Results

Verdict = Literal["shown", "within noise", "contradicted", "not judged"]

CHOSEN = "a search chose these arms by their scores, which flatters them"
"""Why an effect of a searched study has no verdict."""
NAN = float("nan")


@dataclass(frozen=True)
class Effect:
    """What an arm changes against a baseline, in points, for one metric and group.

    `low` and `high` bound it for seeds and languages like these (95 %), `seeds_low` and `seeds_high` for seeds like
    these and these very languages (t over seeds). `noise_units` is `points` over the standard deviation of the paired
    difference between seeds. `smallest` is the smallest true difference that this comparison would have shown in four
    of five repetitions (80 % power), as far as its own noise tells. `p` is of exact sign flips over seeds and cannot
    fall below `p_floor`; `adjust` gives `p_adjusted`. `verdict` is about a change in any direction, or about the
    direction that an expectation declared. `n_combinations` counts the combinations of other factors that a main effect
    or an interaction is the mean of.
    """

    metric: str
    group: str
    arm: str
    baseline: str
    points: float
    low: float
    high: float
    df: float
    n_seeds: int
    n_languages: int
    noise_units: float
    verdict: Verdict
    method: str
    reason: str = ""
    n_combinations: int = 1
    seeds_low: float = NAN
    seeds_high: float = NAN
    smallest: float = NAN
    p: float = NAN
    p_floor: float = NAN
    p_adjusted: float = NAN

    def text(self) -> str:
        """`-12.3 points [-15.0, -9.6], 3 seeds: shown`; a verdict that needs its reason has it in brackets."""
        if np.isnan(self.points):
            return f"not measured ({self.reason})"
        bounds = f"[{self.low:+.1f}, {self.high:+.1f}]" if np.isfinite(self.low) else f"no interval: {self.reason}"
        seeds = f"{self.n_seeds} seed{'s' if self.n_seeds != 1 else ''}"
        why = f" ({self.reason})" if self.reason and np.isfinite(self.low) else ""
        return f"{self.points:+z.1f} points {bounds}, {seeds}: {self.verdict}{why}"


def effects(
    results: Results,
    *,
    arms: Sequence[str | Mapping[str, Level]] | None = None,
    baseline: str | Mapping[str, Level] | None = None,
    metric: str = "score",
    by: By = "tier",
    task: str | None = None,
    draws: int = 0,
) -> list[Effect]:
    """Every arm against the baseline, in groups of (task, language) pairs: by tier, task, language, script or family.

    `task` narrows to one task. With `draws`, `seeds_low` and `seeds_high` are of so many resamples of the seeds instead
    of t, for values that are far from normal; that takes 10 seeds (`resampling.seed_bootstrap`).

    Pairs are of the same seed. A seed that one of the two arms lacks is left out, and so is a (task, language) pair
    whose value is unknown in any of the seeds that are left.
    """
    against = results.label(baseline)
    chosen = (
        [results.label(arm) for arm in arms] if arms is not None else [str(label) for label in results.arms().index]
    )
    names = groups(results, by=by, task=task)
    wide = {arm: paired(results, arm, against, metric=metric) for arm in chosen if arm != against}
    alike: dict[tuple[object, ...], list[str]] = {}  # arms with as many seeds and the same columns: computed together
    for arm, frame in wide.items():
        alike.setdefault((len(frame), *frame.columns), []).append(arm)
    found: dict[tuple[str, str], Effect] = {}
    for some in alike.values():
        stack = np.stack([wide[arm].to_numpy(dtype=float) for arm in some])
        for name in names:
            measured = _measured(
                stack, wide[some[0]].columns, metric=metric, group=name, arms=some, baseline=against, draws=draws
            )
            found |= {(one.arm, name): one for one in measured}
    return [_settled(results, found[arm, name], wide[arm]) for arm in wide for name in names]


def effect(
    results: Results,
    arm: str | Mapping[str, Level] | None,
    baseline: str | Mapping[str, Level] | None = None,
    *,
    metric: str,
    group: str,
    than_group: str | None = None,
) -> Effect:
    """One effect; with `than_group`, how much larger it is in `group` than in `than_group`."""
    first, second = results.label(arm), results.label(baseline)
    wide = paired(results, first, second, metric=metric)
    (found,) = _measured(
        wide.to_numpy(dtype=float)[None], wide.columns, metric=metric, group=group, than_group=than_group,
        arms=[first], baseline=second,
    )  # fmt: skip
    return _settled(results, found, wide)


def _settled(results: Results, found: Effect, wide: pd.DataFrame) -> Effect:
    """The effect with the reason why there is none; without a verdict where its arms were chosen by their scores."""
    if np.isnan(found.points):
        present = values(results, found.metric).index.unique("arm")
        if absent := [arm for arm in (found.arm, found.baseline) if arm not in present]:
            return replace(found, reason=f"no run of '{absent[0]}' yet")
        return replace(
            found, reason="no seed with both arms yet" if wide.index.empty else "no known value in this group"
        )
    return _unless_chosen(results, found)


def _unless_chosen(results: Results, found: Effect) -> Effect:
    return replace(found, verdict="not judged", reason=CHOSEN) if results.is_searched else found


def main_effect(results: Results, factor: str, level: Level, against: Level, *, metric: str, group: str) -> Effect:
    """What a level of a factor changes against another one, whatever the other factors are.

    The mean of the paired differences over all combinations of the other factors in which every level of this one has
    runs, so that the levels of a factor are all compared beside the same things; its interval is as for a single pair.
    It uses the seeds that all these arms have. An arm to which a factor does not apply stands beside every level of it:
    English only, which has no share of English, is compared with each share.
    """
    return _over_combinations(results, [(factor, level, against)], metric=metric, group=group)


def interaction(results: Results, first: Change, second: Change, *, metric: str, group: str) -> Effect:
    """How much larger the effect of the first change is with the second one than without it.

    `first` and `second` are (factor, level, against). The difference of differences, over all combinations of the
    remaining factors in which all levels of these two have runs; 0 where the two effects add up.
    """
    return _over_combinations(results, [first, second], metric=metric, group=group)


def verdicts(results: Results) -> list[tuple[Expectation, Effect]]:
    """Every expectation of the study, in its order, with the effect that decides it and its verdict; p is adjusted for
    their number (Holm)."""
    if results.study is None:
        return []
    expected = results.study.expectations
    found = [
        effect(results, one.arm, one.against, metric=one.metric, group=one.group, than_group=one.than_group)
        for one in expected
    ]
    return [(one, judge(each, one)) for one, each in zip(expected, adjust(found), strict=True)]


def judge(found: Effect, expected: Expectation) -> Effect:
    """The effect with its verdict on an expected direction."""
    if np.isnan(found.points):
        return found
    verdict, reason = _verdict(found.low, found.high, expected.direction, expected.margin), found.reason
    if expected.direction == "little" and verdict == "within noise":
        reason = f"the interval crosses the margin of ±{expected.margin:g} points"
    return replace(found, verdict=verdict, reason=reason)


def adjust(found: Sequence[Effect], method: Method = "holm") -> list[Effect]:
    """The effects with p adjusted for their number: `holm` for claims, `bh` (Benjamini-Hochberg) for exploration. Those
    that were not measured do not count."""
    p = adjusted([one.p for one in found], method)
    return [replace(one, p_adjusted=float(value)) for one, value in zip(found, p, strict=True)]


def equivalence(
    results: Results,
    arm: str | Mapping[str, Level] | None,
    baseline: str | Mapping[str, Level] | None = None,
    *,
    metric: str = "score",
    group: str = "en",
    margin: float,
) -> Equivalence:
    """Whether an arm changes a group by less than `margin` points either way, such as "does not hurt English".

    Two one-sided t tests of the paired differences by seed: it speaks of these languages.
    """
    if not margin > 0:
        raise InputError(f"Equivalence needs a positive margin in points, not {margin:g}.")
    first, second = results.label(arm), results.label(baseline)
    wide = paired(results, first, second, metric=metric)
    block = by_language(wide.to_numpy(dtype=float), wide.columns, group)  # type: ignore[arg-type]
    if block.size == 0:
        reason = "no seed with both arms yet" if wide.index.empty else "no known value in this group"
        found = Equivalence(NAN, NAN, NAN, NAN, margin, False, 0, reason=reason)
    else:
        found = equivalent(block.mean(axis=-1), margin)
    return replace(found, metric=metric, group=group, arm=first, baseline=second)


def level(results: Results, arm: str | Mapping[str, Level] | None, *, metric: str, group: str) -> Interval:
    """Mean of an arm over a group, with the t interval over its seeds: it speaks of these languages and tasks."""
    label = results.label(arm)
    own, _ = sides(results, label, label, metric=metric)
    block = by_language(own.to_numpy(dtype=float), own.columns, group)  # type: ignore[arg-type]
    if block.size == 0:
        return Interval(NAN, NAN, NAN, NAN, 0, 0, "t over seeds", f"no known value of '{label}' in this group")
    return replace(over_seeds(block.mean(axis=-1)), n_languages=block.shape[-1])


def _measured(
    stack: NDArray[np.float64],
    columns: pd.Index,
    *,
    metric: str,
    group: str,
    arms: Sequence[str],
    baseline: str,
    than_group: str | None = None,
    draws: int = 0,
) -> list[Effect]:
    """The effects of arms in their differences (arms, seeds, pairs), the pairs being (task, language) columns; NaN
    where a group is empty."""
    name = group if than_group is None else f"{group} minus {than_group}"
    blocks = [by_language(stack, columns, one) for one in (group, than_group) if one is not None]  # type: ignore[arg-type]
    if any(block.size == 0 for block in blocks):
        return [Effect(metric, name, arm, baseline, NAN, NAN, NAN, NAN, 0, 0, NAN, "not judged", "") for arm in arms]
    wanted = crossed(*blocks)
    by_seed = blocks[0].mean(axis=-1) - (blocks[1].mean(axis=-1) if than_group is not None else 0.0)
    seeds, languages = by_seed.shape[-1], [block.shape[-1] for block in blocks]
    here = crossed(by_seed[..., None])
    noise = here.standard_error * seeds**0.5
    numbers = np.stack([
        wanted.mean, *wanted.bounds(), wanted.df, wanted.mean / np.where(noise > 1e-9, noise, np.nan),
        *(seed_bootstrap(by_seed, draws=draws) if draws else here.bounds()), wanted.smallest(), sign_flip(by_seed),
    ])  # fmt: skip
    return [
        Effect(
            metric=metric,
            group=name,
            arm=arm,
            baseline=baseline,
            points=points,
            low=low,
            high=high,
            df=df,
            n_seeds=seeds,
            n_languages=sum(languages),
            noise_units=noise_units,
            verdict=_verdict(low, high),
            method=method(seeds, languages),
            reason=why_none(seeds, df),
            seeds_low=seeds_low,
            seeds_high=seeds_high,
            smallest=smallest,
            p=p,
            p_floor=least_p(seeds),
        )
        for arm, (points, low, high, df, noise_units, seeds_low, seeds_high, smallest, p) in zip(
            arms, numbers.T.tolist(), strict=True
        )
    ]


def _over_combinations(results: Results, changes: Sequence[Change], *, metric: str, group: str) -> Effect:
    """Mean over the combinations of all other factors of one difference, or of one difference of differences."""
    sets = arms_beside(results, changes)
    key = f"{metric}: {changes!r}"  # as in `paired`
    if key not in results.wide:
        results.wide[key] = mean_difference(results, sets, metric)
    wide = results.wide[key]
    known = {factor.name: factor for factor in results.study.factors} if results.study else {}
    arm, baseline = (" · ".join(known[change[0]].label(change[side]) for change in changes) for side in (1, 2))
    (found,) = _measured(
        wide.to_numpy(dtype=float)[None], wide.columns, metric=metric, group=group, arms=[arm], baseline=baseline
    )
    found = replace(found, n_combinations=len(sets))
    if not np.isnan(found.points):
        return _unless_chosen(results, found)
    if not sets:
        return replace(found, reason="no combination of the other factors has runs of all arms yet")
    return replace(found, reason="no seed with all arms yet" if wide.index.empty else "no known value in this group")


def _verdict(low: float, high: float, direction: str | None = None, margin: float | None = None) -> Verdict:
    if not np.isfinite(low):
        return "not judged"
    if direction == "little" and margin is not None:
        inside, outside = -margin < low and high < margin, low > margin or high < -margin
        return "shown" if inside else "contradicted" if outside else "within noise"
    if low <= 0 <= high:
        return "within noise"
    return "contradicted" if (direction == "higher" and high < 0) or (direction == "lower" and low > 0) else "shown"


def as_table(found: Sequence[Effect]) -> pd.DataFrame:
    """Effects as a table, one row each; points and bounds in percentage points."""
    return pd.DataFrame([vars(one) for one in found], columns=list(Effect.__dataclass_fields__))


def as_matrix(found: Sequence[Effect], results: Results) -> pd.DataFrame:
    """Effects for reading: a row per arm, a column per group, cells such as `-12.3 [-15.0, -9.6] * ≥3.1`.

    `*` where the interval excludes 0; behind `≥` the smallest difference that would be seen with 80 % power.
    """
    cells: dict[str, dict[str, str]] = {}
    for one in found:
        cells.setdefault(results.short_label(one.arm), {})[one.group] = cell(one)
    return pd.DataFrame.from_dict(cells, orient="index")


def verdict_table(judged: Sequence[tuple[Expectation, Effect]]) -> pd.DataFrame:
    """Expectations with effect, interval, smallest visible difference, noise units, p of sign flips (`least` where it
    cannot be lower with these seeds) as it is and after Holm's correction, verdict and, where it needs one, its reason;
    one row each. `attrs["note"]` says what so few seeds make impossible."""
    rows = [
        {
            "expected": expected.claim,
            "metric": found.metric,
            "group": found.group,
            "points": _or_dash(found.points, "+.1f"),
            "95 % interval": _bounds(found) if np.isfinite(found.low) else "–",
            "smallest visible": _or_dash(found.smallest, ".1f"),
            "seeds": found.n_seeds,
            "languages": found.n_languages,
            "in seed sd": _or_dash(found.noise_units, "+.1f"),
            "p": _or_dash(found.p, ".2g") + (" (least)" if found.p <= found.p_floor * 1.001 else ""),
            "p, Holm": _or_dash(found.p_adjusted, ".2g"),
            "verdict": found.verdict,
            "reason": found.reason,
        }
        for expected, found in judged
    ]
    frame = pd.DataFrame(rows)
    tested = [found for _, found in judged if not np.isnan(found.p)]
    frame.attrs["note"] = floor_note(max((one.n_seeds for one in tested), default=0), len(tested))
    return frame


def _or_dash(value: float, form: str) -> str:
    return "–" if np.isnan(value) else f"{value:{form}}"


def _bounds(one: Effect) -> str:
    return f"[{one.low:+.1f}, {one.high:+.1f}]"


def cell(one: Effect) -> str:
    """`-12.3 [-15.0, -9.6] * ≥3.1`; `*` where the interval excludes 0, behind `≥` the smallest difference that this
    comparison would have seen with 80 % power."""
    if np.isnan(one.points):
        return "–"
    if not np.isfinite(one.low):
        return f"{one.points:+z.1f} ({one.reason})"
    return f"{one.points:+z.1f} {_bounds(one)}{' *' if one.verdict == 'shown' else ''} ≥{one.smallest:.1f}"
