"""The parts of a report that look at all arms at once: the curve along a number, the importance of factors, what is
bought with what, and what so many runs can see. Each stands where the design of the study allows it, and is about the
study's primary outcome."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from ablations import plots
from ablations.blocks import outcome
from ablations.contrasts import groups
from ablations.factors import Factor, Level
from ablations.intervals import FEWEST
from ablations.markup import picture, table
from ablations.plots.curves import best_said, level_form
from ablations.plots.style import group_title, metric_title, phrase
from ablations.power import MOST
from ablations.report.frame import Section
from ablations.response import FEWEST_LEVELS, Response, optima_differ
from ablations.table import Results
from lvlm.errors import InputError

POINT = 1.0
"""The difference, in points, that the section on noise asks for: what the field reads as a finding."""

HOW_CURVE = (
    "How to read it: the bar at the foot of a panel is the 95 % interval of the best level; <em>interior</em>: it lies "
    "inside the range that was run; <em>at the edge</em>: the best level is the lowest or highest one that was run; "
    "<em>not told apart</em>: neither is shown."
)
HOW_IMPORTANCE = (
    "How to read it: the share of the variance between runs that goes with a factor, over the levels that were run; "
    "what explains no more than <em>seed</em>, which all arms of a seed share, or has an interval that reaches 0, may "
    "matter nothing."
)
HOW_FRONT = (
    "How to read it: no arm has a higher mean than a filled one both in English and in the other languages; a hollow "
    "one is not shown to be beaten in both by any arm, a grey one is."
)
HOW_NOISE = (
    "How to read it: a true difference below the curve, at the number of seeds of this study (grey line), is missed by "
    "more than one study in five; <em>languages like these</em> also reckons with arms that move languages unequally, "
    "which more seeds do not mend."
)
SILENT = "Not told of {}: every difference from the baseline is the same in all seeds there, which tells no noise."


def curves(results: Results) -> list[Section]:
    """The response to every factor of numbers that was declared with enough levels for a curve."""
    return [
        Section(f"Along {_along(factor)}", _or_why_not(_curve, results, factor))
        for factor in (results.study.factors if results.study else ())
        if _is_curve(factor)
    ]


def importance(results: Results) -> list[Section]:
    """How much each factor and pair explains, of studies in which several vary."""
    arms = results.arms()
    if results.study is None or sum(arms[name].nunique() > 1 for name in results.factors) < 2:
        return []
    return [Section("What explains the differences", _or_why_not(_importance, results))]


def front(results: Results) -> list[Section]:
    """English against the other languages, and the cheapest of the best arms, where there are two arms."""
    if len(results.arms()) < 2:
        return []
    said = _or_why_not(_front, results) + "<h3>The cheapest arm within noise of the best</h3>"
    return [Section("What is bought with what", said + _or_why_not(_cheapest, results))]


def noise(results: Results) -> list[Section]:
    """The smallest differences that these runs, and more seeds, can see, where a baseline tells the noise."""
    if results.study is None or len(results.arms()) < 2:
        return []
    return [Section("What these runs can see", _or_why_not(_noise, results))]


def _primary(results: Results) -> tuple[str, str, list[str]]:
    """Metric and group of the study's primary outcome, and the tiers of its task."""
    metric, group = outcome(results.known_study("Its primary outcome is needed.").primary)
    task = group.rpartition("/")[0] or None
    return metric, group, groups(results, by="tier", task=task)


def _or_why_not(part: Callable[..., str], *given: object) -> str:
    """A part, or in one paragraph why these runs do not give it."""
    try:
        return part(*given)
    except InputError as error:
        return f"<p class='note'>{html.escape(str(error))}</p>"


def _is_curve(factor: Factor) -> bool:
    if factor.is_continuous:
        return True
    numbers = [isinstance(one, int | float) and not isinstance(one, bool) for one in factor.levels]
    return all(numbers) and len(numbers) >= FEWEST_LEVELS


def _along(factor: Factor) -> str:
    return f"the {phrase(factor.name)}" if factor.name.endswith("share") else phrase(factor.name)


def _curve(results: Results, factor: Factor) -> str:
    return _curve_at(results, factor, {}) + "".join(
        f"<h3>With {html.escape(other.label(one))}</h3>" + _curve_at(results, factor, {other.name: one})
        for other, one in _held(results, factor)
    )


def _held(results: Results, factor: Factor) -> list[tuple[Factor, Level]]:
    """The levels of every other factor that this one is crossed with: at two levels of it or more there is a curve."""
    found = []
    for other in results.study.factors if results.study else ():
        own = [(other, one) for one in results.levels_of(other) if _has_curve(results, factor, {other.name: one})]
        found += own if len(own) > 1 else []
    return found


def _has_curve(results: Results, factor: Factor, at: Mapping[str, Level]) -> bool:
    try:
        results.response(factor.name, at=at)
    except InputError:
        return False
    return True


def _curve_at(results: Results, factor: Factor, at: Mapping[str, Level]) -> str:
    metric, _, names = _primary(results)
    tiers = [name for name in names if name.rpartition("/")[2] not in ("en", "multilingual")]
    first, rows = tiers[0] if tiers else None, []
    for name in names:
        one = results.response(factor.name, metric=metric, group=name, at=at)
        best, bounds = best_said(one)
        row = {"group": group_title(name), "best level": best, "95 % interval": bounds or "–", "where": one.interior}
        if first and len(tiers) > 1:
            row[f"best, minus that of {group_title(first)}"] = _apart(results, factor, one, first, at)
        rows.append(row | {"seeds": one.n_seeds})
    caption = f"The {phrase(factor.name)} with the highest {phrase(metric)}, by tier"
    return (
        picture(plots.response, results, factor.name, metric=metric, in_groups=names, at=at)
        + ("" if at else f"<p>{HOW_CURVE}</p>")
        + table(pd.DataFrame(rows), caption, sortable=True)
    )


def _apart(results: Results, factor: Factor, one: Response, first: str, at: Mapping[str, Level]) -> str:
    """By how much the best level of a group is above that of the first tier; `*` where the interval excludes 0."""
    if one.group == first or one.group.endswith("multilingual"):
        return "–"
    found = optima_differ(results, factor.name, one.group, first, metric=one.metric, at=at)
    if np.isnan(found.estimate):
        return f"– ({found.reason})"
    form = level_form(one)
    scale, form, unit = (100, "+z.0f", " points") if form.endswith("%") else (1, f"+{form}", "")
    said = f"{scale * found.estimate:{form}}{unit}"
    if not np.isfinite(found.low):
        return f"{said} ({found.reason})"
    star = " *" if found.low > 0 or found.high < 0 else ""
    return f"{said} [{scale * found.low:{form}}, {scale * found.high:{form}}]{star}"


def _importance(results: Results) -> str:
    metric, group, _ = _primary(results)
    found = results.importance(metric=metric, group=group)
    shares = 100 * found[["omega2", "low", "high", "partial_omega2"]]
    bounds = [
        f"[{low:.0f}, {high:.0f}]" if np.isfinite(low) else "–"
        for low, high in zip(shares["low"], shares["high"], strict=True)
    ]
    frame = pd.DataFrame(
        {
            "factor": [" x ".join(map(phrase, str(name).split(" x "))) for name in found["factors"]],
            "share (%)": shares["omega2"].round(1),
            "95 % interval": bounds,
            "share beside the noise alone (%)": shares["partial_omega2"].round(1),
        }
    )
    caption = f"Shares of the variance between {int(found['n_runs'].max())} runs: {found['method'].iloc[0]}"
    return (
        picture(plots.importance, results, metric=metric, group=group)
        + f"<p>{HOW_IMPORTANCE}</p>"
        + table(frame.dropna(axis="columns", how="all"), caption, sortable=True)
    )


def _front(results: Results) -> str:
    found = results.pareto()
    frame = pd.DataFrame({"arm": [results.short_label(arm) for arm in found["arm"]]})
    for column, name in (("x", "English"), ("y", "multilingual")):
        frame[f"{name} (%)"] = [
            f"{value:.1f}" + (f" [{low:.1f}, {high:.1f}]" if np.isfinite(low) else "")
            for value, low, high in zip(found[column], found[f"{column}_low"], found[f"{column}_high"], strict=True)
        ]
    frame["in both"] = [
        "on the front" if row.on_front else "within noise of it" if row.reaches_front
        else f"beaten by {results.short_label(str(row.beaten_by))}"
        for row in found.itertuples()
    ]  # fmt: skip
    caption = "English and the other languages: means with 95 % t intervals over seeds"
    return picture(plots.pareto, results) + f"<p>{HOW_FRONT}</p>" + table(frame, caption, sortable=True)


def _cheapest(results: Results) -> str:
    found = results.cheapest()
    found = replace(found, arm=results.short_label(found.arm), best=results.short_label(found.best))
    frame = found.table()
    frame["arm"] = [results.short_label(arm) for arm in frame["arm"]]
    caption = "Cost, and how far the multilingual score is below that of the best arm, paired by seed"
    return f"<p>{html.escape(found.text())}.</p>" + table(frame, caption, sortable=True)


def _noise(results: Results) -> str:
    metric, group, names = _primary(results)
    rows, silent = [], []
    for name in names:
        try:
            found = results.power(POINT, metric=metric, group=name)
        except InputError:  # of a group whose differences are the same in every seed nothing tells the noise
            silent.append(group_title(name))
            continue
        own = found.curve[found.curve["seeds"] == found.n_seeds].iloc[0]
        like_these = own["languages_like_these"]
        rows.append(
            {
                "group": group_title(name),
                "seeds": found.n_seeds,
                "smallest visible": f"{own['these_languages']:.1f}",
                "smallest, languages like these": f"{like_these:.1f}" if np.isfinite(like_these) else "–",
                f"seeds to see {POINT:g} point": _enough(found.seeds_here),
                "seeds, languages like these": _enough(found.seeds) if found.n_languages >= FEWEST else "–",
            }
        )
    caption = (
        f"{metric_title(metric)}, points: the smallest visible difference from the baseline (80 % power), for these "
        f"languages and for languages like these, and the seeds that {POINT:g} point takes"
    )
    return (
        picture(plots.power, results, difference=POINT, metric=metric, group=group)
        + f"<p>{HOW_NOISE}</p>"
        + table(pd.DataFrame(rows), caption, sortable=True)
        + (f"<p class='note'>{html.escape(SILENT.format(', '.join(silent)))}</p>" if silent else "")
    )


def _enough(seeds: int | None) -> str:
    return str(seeds) if seeds else f"> {MOST}"
