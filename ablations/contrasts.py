"""Effects: paired differences between arms with their intervals, and the verdict on what a study expected.

`report` and the notebooks show them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ablations.factors import Factor, Level
from ablations.intervals import Interval, over_seeds, two_way
from ablations.outcomes import DERIVED, GROUP_ORDER, SUMMARISED
from ablations.studies import Expectation
from lvlm.errors import InputError
from lvlm.languages import table

if TYPE_CHECKING:
    from ablations.table import Results

Verdict = Literal["shown", "within noise", "contradicted", "not judged"]
By = Literal["tier", "task", "language"]

Change = tuple[str, Level, Level]
"""(factor, level, level that it is compared with)."""

PAIR = ["task", "language"]
CHOSEN = "a search chose these arms by their scores, which flatters them"
"""Why an effect of a searched study has no verdict."""


@dataclass(frozen=True)
class Effect:
    """What an arm changes against a baseline, in points, for one metric and group.

    `low` and `high` bound it for seeds and languages like these (95 %); `noise_units` is `points` over the standard
    deviation of the paired difference between seeds. `verdict` is about a change in any direction, or about the
    direction that an expectation declared. `n_combinations` counts the combinations of other factors that a main
    effect or an interaction is the mean of.
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

    def text(self) -> str:
        """`-12.3 points [-15.0, -9.6], 3 seeds: shown`; a verdict that needs its reason has it in brackets."""
        if np.isnan(self.points):
            return f"not measured ({self.reason})"
        bounds = f"[{self.low:+.1f}, {self.high:+.1f}]" if np.isfinite(self.low) else f"no interval: {self.reason}"
        seeds = f"{self.n_seeds} seed{'s' if self.n_seeds != 1 else ''}"
        why = f" ({self.reason})" if self.reason and np.isfinite(self.low) else ""
        return f"{self.points:+.1f} points {bounds}, {seeds}: {self.verdict}{why}"


def effects(
    results: Results,
    *,
    arms: Sequence[str | Mapping[str, Level]] | None = None,
    baseline: str | Mapping[str, Level] | None = None,
    metric: str = "score",
    by: By = "tier",
    task: str | None = None,
) -> list[Effect]:
    """Every arm against the baseline, in groups of (task, language) pairs: by tier, task or language.

    `task` narrows to one task.

    Pairs are of the same seed. A seed that one of the two arms lacks is left out, and so is a (task, language) pair
    whose value is unknown in any of the seeds that are left.
    """
    against = results.label(baseline)
    chosen = (
        [results.label(arm) for arm in arms] if arms is not None else [str(label) for label in results.arms().index]
    )
    names = groups(results, by=by, task=task)
    return [
        effect(results, arm, against, metric=metric, group=name) for arm in chosen if arm != against for name in names
    ]


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
    found = _measured(wide, metric=metric, group=group, than_group=than_group, arm=first, baseline=second)
    if np.isnan(found.points):
        return replace(found, reason=_why_empty(results, (first, second), wide))
    return _unless_chosen(results, found)


def _unless_chosen(results: Results, found: Effect) -> Effect:
    """The effect, without a verdict where its arms were chosen by their scores."""
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
    """Every expectation of the study, in its order, with the effect that decides it and its verdict."""
    if results.study is None:
        return []
    judged = []
    for expected in results.study.expectations:
        found = effect(
            results,
            expected.arm,
            expected.against,
            metric=expected.metric,
            group=expected.group,
            than_group=expected.than_group,
        )
        judged.append((expected, judge(found, expected)))
    return judged


def judge(found: Effect, expected: Expectation) -> Effect:
    """The effect with its verdict on an expected direction."""
    if np.isnan(found.points):
        return found
    bounds = Interval(found.points, found.low, found.high, found.df, found.n_seeds, found.n_languages, found.method)
    verdict, reason = _verdict(bounds, expected.direction, expected.margin), found.reason
    if expected.direction == "little" and verdict == "within noise":
        reason = f"the interval crosses the margin of ±{expected.margin:g} points"
    return replace(found, verdict=verdict, reason=reason)


def level(results: Results, arm: str | Mapping[str, Level] | None, *, metric: str, group: str) -> Interval:
    """Mean of an arm over a group, with the t interval over its seeds: it speaks of these languages and tasks."""
    label = results.label(arm)
    wide = values(results, metric)
    own = wide[wide.index.get_level_values("arm") == label].dropna(axis="columns")
    block = _by_language(own, group)
    if block.size == 0:
        nan = float("nan")
        return Interval(nan, nan, nan, nan, 0, 0, "t over seeds", f"no known value of '{label}' in this group")
    return replace(over_seeds(block.mean(axis=1)), n_languages=block.shape[1])


def values(results: Results, metric: str) -> pd.DataFrame:
    """Values of a metric in percent: one row per (arm, seed), one column per (task, language)."""
    if metric in results.wide:
        return results.wide[metric]
    if metric in DERIVED:
        whole, part = DERIVED[metric]
        return results.wide.setdefault(metric, values(results, whole) - values(results, part))
    rows = results.table[results.table["metric"] == metric]
    if rows.empty and metric in SUMMARISED and not results.table.empty:  # no task of the study has it
        score = results.table[results.table["metric"] == "score"]
        nothing = score.pivot(index=["arm", "seed"], columns=PAIR, values="value").astype(float)
        return results.wide.setdefault(metric, nothing * float("nan"))
    if rows.empty:
        known = sorted({*results.table["metric"], *DERIVED})
        raise InputError(f"There is no metric '{metric}' in {results.folder}; metrics: {', '.join(known)}.")
    return results.wide.setdefault(
        metric, rows.pivot(index=["arm", "seed"], columns=PAIR, values="value").astype(float)
    )


def paired(results: Results, arm: str, baseline: str, *, metric: str) -> pd.DataFrame:
    """Differences arm - baseline.

    One row per seed that both have, one column per (task, language) known in all of them.
    """
    key = f"{metric}: {arm} minus {baseline}"  # every group of an effect needs the same differences
    if key in results.wide:
        return results.wide[key]
    wide = values(results, metric)
    present = set(wide.index.get_level_values("arm"))
    sides: list[Any] = [
        wide.xs(label, level="arm") if label in present else wide.iloc[:0].droplevel("arm") for label in (arm, baseline)
    ]
    seeds = sides[0].index.intersection(sides[1].index).sort_values()
    differences: pd.DataFrame = sides[0].loc[seeds] - sides[1].loc[seeds]
    return results.wide.setdefault(key, differences.loc[:, differences.notna().all()])


def groups(results: Results, *, by: By = "tier", task: str | None = None) -> list[str]:
    """Names of the groups for which this table has rows, in the fixed order."""
    rows = results.table if task is None else results.table[results.table["task"] == task]
    if rows.empty:
        raise InputError(
            f"There is no task '{task}' in {results.folder}; tasks: {', '.join(sorted(set(results.table['task'])))}."
        )
    present = set(rows["tier"]) | ({"multilingual"} if (rows["language"] != "en").any() else set())
    prefix = f"{task}/" if task else ""
    if by == "tier":
        return [prefix + name for name in GROUP_ORDER if name in present]
    if by == "language":
        return [prefix + code for code in table() if code in set(rows["language"])]
    if by == "task":
        tasks = sorted(set(rows["task"]))
        return [f"{one}/{name}" for one in tasks for name in ("en", "multilingual") if name in present]
    raise InputError(f"Effects are grouped by tier, task or language, not by '{by}'.")


def in_group(columns: pd.MultiIndex, group: str) -> NDArray[np.bool_]:
    """Which (task, language) columns belong to a group.

    A tier, `en`, `multilingual` or a language code, within a task or over all.
    """
    task, _, name = group.rpartition("/")
    known = table()
    if name not in GROUP_ORDER and name not in known:
        raise InputError(
            f"'{group}' is no group: use {', '.join(GROUP_ORDER)} or a language code, after 'TASK/' for one task."
        )
    languages = [str(code) for code in columns.get_level_values("language")]
    of_task = np.array([not task or one == task for one in columns.get_level_values("task")], dtype=bool)
    if name == "multilingual":
        member = [code != "en" for code in languages]
    elif name in GROUP_ORDER:
        member = [known[code].tier == name for code in languages]
    else:
        member = [code == name for code in languages]
    return np.asarray(of_task & np.array(member, dtype=bool))


def _measured(
    wide: pd.DataFrame, *, metric: str, group: str, arm: str, baseline: str, than_group: str | None = None
) -> Effect:
    """The effect in differences of one row per seed and one column per (task, language); NaN where a group is empty."""
    name = group if than_group is None else f"{group} minus {than_group}"
    blocks = [_by_language(wide, one) for one in (group, than_group) if one is not None]
    if any(block.size == 0 for block in blocks):
        nan = float("nan")
        return Effect(metric, name, arm, baseline, nan, nan, nan, nan, 0, 0, nan, "not judged", "")
    interval = two_way(blocks[0], minus=blocks[1] if than_group is not None else None)
    by_seed = blocks[0].mean(axis=1) - (blocks[1].mean(axis=1) if than_group is not None else 0.0)
    noise = float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else float("nan")
    return Effect(
        metric=metric,
        group=name,
        arm=arm,
        baseline=baseline,
        points=interval.estimate,
        low=interval.low,
        high=interval.high,
        df=interval.df,
        n_seeds=interval.n_seeds,
        n_languages=interval.n_languages,
        noise_units=interval.estimate / noise if noise > 1e-9 else float("nan"),
        verdict=_verdict(interval, None, None),
        method=interval.method,
        reason=interval.reason,
    )


def _over_combinations(results: Results, changes: Sequence[Change], *, metric: str, group: str) -> Effect:
    """Mean over the combinations of all other factors of one difference, or of one difference of differences."""
    sets = _arms_beside(results, changes)
    key = f"{metric}: {changes!r}"  # as in `paired`
    wide = results.wide[key] if key in results.wide else results.wide.setdefault(key, _mean(results, sets, metric))
    known = {factor.name: factor for factor in results.study.factors} if results.study else {}
    arm, baseline = (" · ".join(known[change[0]].label(change[side]) for change in changes) for side in (1, 2))
    found = replace(_measured(wide, metric=metric, group=group, arm=arm, baseline=baseline), n_combinations=len(sets))
    if not np.isnan(found.points):
        return _unless_chosen(results, found)
    if not sets:
        return replace(found, reason="no combination of the other factors has runs of all arms yet")
    return replace(found, reason="no seed with all arms yet" if wide.index.empty else "no known value in this group")


def _mean(results: Results, sets: Sequence[tuple[str, ...]], metric: str) -> pd.DataFrame:
    """The mean over sets of arms of first minus second, or of (first minus third) minus (second minus fourth).

    One row per seed that all arms have, one column per (task, language) known in all of them.
    """
    parts = []
    for arms in sets:
        half = len(arms) // 2  # the first half has the level of the first change, the second half what it is against
        for sign, one, other in zip((1, -1), arms[:half], arms[half:], strict=False):
            parts.append((sign, paired(results, one, other, metric=metric)))
    if not parts:
        return pd.DataFrame(columns=pd.MultiIndex.from_tuples([], names=PAIR))
    seeds = reduce(pd.Index.intersection, (frame.index for _, frame in parts)).sort_values()
    columns = reduce(lambda left, right: left[left.isin(right)], (frame.columns for _, frame in parts))
    total = sum(sign * frame.loc[seeds, columns].to_numpy(dtype=float) for sign, frame in parts)
    return pd.DataFrame(total / len(sets), index=seeds, columns=columns)


def _arms_beside(results: Results, changes: Sequence[Change]) -> list[tuple[str, ...]]:
    """Labels of the arms at each corner of the changes (level, level), (level, against), (against, level), (against,
    against), in every combination of the other factors where all levels of the changed ones have runs (of those that
    have any); each set of arms once."""
    study = results.known_study("Its factors are needed to combine arms: compare two arms by label.")
    names = [name for name, _, _ in changes]
    if len(set(names)) < len(names):
        raise InputError(f"An interaction is that of two different factors, not of '{names[0]}' with itself.")
    if same := [name for name, level, against in changes if level == against]:
        raise InputError(f"Factor '{same[0]}': give two different levels to compare.")
    others = [factor for factor in study.factors if factor.name not in names]
    changed = [factor for factor in study.factors if factor.name in names]
    corners = list(product(*(((name, level), (name, against)) for name, level, against in changes)))
    beside = _beside(results, others)
    every = [tuple(study.arm(dict((*levels, *corner))).label for corner in corners) for levels in beside]
    different = [arms for arms in every if len(set(arms)) == len(corners)]
    if not different:
        given = " and ".join(f"{name} ({level!r} against {against!r})" for name, level, against in changes)
        raise InputError(f"There is nothing to compare: one factor does not apply beside the other in {given}.")
    present = set(results.table["arm"].unique())
    seen = results.arms()
    run = [
        [(factor.name, level) for level in results.levels_of(factor) if (seen[factor.name] == level).any()]
        for factor in changed
    ]
    shared = {
        labels
        for labels, levels in zip(every, beside, strict=True)
        if present.issuperset(study.arm(dict((*levels, *corner))).label for corner in product(*run))
    }
    return [arms for arms in dict.fromkeys(different) if arms in shared and present.issuperset(arms)]


def _beside(results: Results, factors: Sequence[Factor]) -> list[tuple[tuple[str, Level], ...]]:
    """Every combination of levels of these factors, as (name, level) pairs; those with a range together as they have
    runs."""
    ranged = [factor.name for factor in factors if factor.is_continuous]
    runs = results.arms()[ranged].drop_duplicates().to_dict("records") if ranged else [{}]
    places = [tuple((str(name), level) for name, level in run.items() if pd.notna(level)) for run in runs]
    levels = [[(factor.name, level) for level in factor.levels] for factor in factors if not factor.is_continuous]
    return [(*place, *combination) for place, combination in product(dict.fromkeys(places), product(*levels))]


def _by_language(wide: pd.DataFrame, group: str) -> NDArray[np.float64]:
    """Matrix (seeds, languages) whose mean is the unweighted mean over all (task, language) pairs of the group.

    Where every language has the same tasks this is the mean over tasks. Else a language with k of K pairs is weighted
    by k: its deviation from the group's mean is scaled by k L / K, the linearised ratio estimator.
    """
    member = in_group(wide.columns, group)  # type: ignore[arg-type]
    block = wide.to_numpy(dtype=float)[:, member]
    if block.size == 0:
        return np.empty((0, 0))
    codes, position, pairs = np.unique(
        wide.columns.get_level_values("language").to_numpy(dtype=str)[member], return_inverse=True, return_counts=True
    )
    by_language = np.zeros((len(block), len(codes)))
    np.add.at(by_language.T, position, block.T)
    mean = float(block.mean())
    return np.asarray(mean + (by_language / pairs - mean) * pairs * len(codes) / pairs.sum())


def _verdict(interval: Interval, direction: str | None, margin: float | None) -> Verdict:
    low, high = interval.low, interval.high
    if not np.isfinite(low):
        return "not judged"
    if direction == "little" and margin is not None:
        inside, outside = -margin < low and high < margin, low > margin or high < -margin
        return "shown" if inside else "contradicted" if outside else "within noise"
    if low <= 0 <= high:
        return "within noise"
    return "contradicted" if (direction == "higher" and high < 0) or (direction == "lower" and low > 0) else "shown"


def _why_empty(results: Results, arms: tuple[str, str], wide: pd.DataFrame) -> str:
    present = set(results.table["arm"])
    if absent := [arm for arm in arms if arm not in present]:
        return f"no run of '{absent[0]}' yet"
    return "no seed with both arms yet" if wide.index.empty else "no known value in this group"


def as_table(found: Sequence[Effect]) -> pd.DataFrame:
    """Effects as a table, one row each; points and bounds in percentage points."""
    return pd.DataFrame([vars(one) for one in found], columns=list(Effect.__dataclass_fields__))


def as_matrix(found: Sequence[Effect], results: Results) -> pd.DataFrame:
    """Effects for reading: a row per arm, a column per group, cells such as `-12.3 [-15.0, -9.6]`.

    `*` where the interval excludes 0.
    """
    cells: dict[str, dict[str, str]] = {}
    for one in found:
        cells.setdefault(results.short_label(one.arm), {})[one.group] = cell(one)
    return pd.DataFrame.from_dict(cells, orient="index")


def verdict_table(judged: Sequence[tuple[Expectation, Effect]]) -> pd.DataFrame:
    """Expectations with effect, interval, noise units, verdict and, where it needs one, its reason; one row each."""
    rows = [
        {
            "expected": expected.claim,
            "metric": found.metric,
            "group": found.group,
            "points": "–" if np.isnan(found.points) else f"{found.points:+.1f}",
            "95 % interval": _bounds(found) if np.isfinite(found.low) else "–",
            "seeds": found.n_seeds,
            "languages": found.n_languages,
            "in seed sd": "–" if np.isnan(found.noise_units) else f"{found.noise_units:+.1f}",
            "verdict": found.verdict,
            "reason": found.reason,
        }
        for expected, found in judged
    ]
    return pd.DataFrame(rows)


def _bounds(one: Effect) -> str:
    return f"[{one.low:+.1f}, {one.high:+.1f}]"


def cell(one: Effect) -> str:
    """`-12.3 [-15.0, -9.6] *`; `*` where the interval excludes 0."""
    if np.isnan(one.points):
        return "–"
    if not np.isfinite(one.low):
        return f"{one.points:+.1f} ({one.reason})"
    return f"{one.points:+.1f} {_bounds(one)}{' *' if one.verdict == 'shown' else ''}"
