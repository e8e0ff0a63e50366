"""The parts of a report: verdicts, effects, costs, notebooks, and how to read the numbers. `ablations.report` puts them
on a page."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from itertools import product

import pandas as pd

from ablations.contrasts import Effect, cell, interaction, main_effect
from ablations.factors import Factor, Level
from ablations.markup import picture, table
from ablations.notebooks import NOTEBOOKS, first_error, run_notebooks, to_html
from ablations.outcomes import GROUP_ORDER
from ablations.plots import english_against_multilingual, expected, interaction_map, language_map, one_factor_arms
from ablations.report.frame import Section
from ablations.table import Results

EQUAL = 0.01
"""Arms whose amounts differ by no more than this share were held equal."""

METHOD = """
An effect is the mean difference between two arms, paired by seed: both share samples, their order, the initial weights
and the test items, except for what the factor changes. Its 95 % interval is a t interval for seeds <em>and</em>
languages like these (two-way random effects, Satterthwaite's degrees of freedom); where there are fewer than three
seeds, or a group holds fewer than three languages, as English alone, it is a t interval over seeds and speaks of these
languages. The unit of replication is the training run; languages are repeated
measures inside it. <em>Shown</em>: the interval lies on the expected side of zero (or within the stated margin).
<em>Contradicted</em>: it lies on the other side. <em>Within noise</em>: neither. <em>Not judged</em>: there are fewer
than two seeds with both arms, or their difference is the same everywhere, so that nothing tells its noise. Where little
change is expected the margin stands for zero: <em>shown</em> if the whole interval lies within it,
<em>contradicted</em> if the whole interval lies outside, and <em>within noise</em> if the interval crosses the margin,
whether or not it holds zero: these data do not tell a small change from a larger one. The figure shows the margin as a
light band. <em>In seed sd</em>: the effect over the standard deviation of the paired difference between seeds. All runs
answer the same test items, so the intervals hold for these items and do not speak of others. Each interval stands for
itself and is not adjusted for their number: where nothing has an effect, one starred interval in twenty is to be
expected. <em>Smallest visible</em>, in cells behind <code>≥</code>: the smallest true difference that this comparison
would have shown in four of five repetitions (80 % power), as far as its own noise tells; what is smaller may be there
unseen. <em>p</em>: exact sign flips of the paired differences of seeds, for these languages; with S seeds it cannot
fall below 2 / 2<sup>S</sup> (<em>least</em>). <em>p, Holm</em>: adjusted for the number of expectations. Verdicts speak
of the world, the backbones and the budget of this study.
"""


def headlines(results: Results) -> list[str]:
    """The first three expectations of the study with effect, interval and verdict.

    Where there are none, why.
    """
    judged = results.verdicts()[:3]
    if not judged:
        return [f"No headline effects. {_no_expectations(results)}"]
    return [f"{expectation.claim}: {found.text()}" for expectation, found in judged]


def _no_expectations(results: Results) -> str:
    return "The study declares no expectations." if results.study else f"{results.unknown}."


def unfinished(results: Results) -> str:
    """Which runs are missing or failed."""
    if not results.missing:
        return ""
    arms = sorted({arm for arm, _ in results.missing})
    retry = " --retry-failed" if results.failed else ""
    errors = "".join(
        f"<li>{html.escape(arm)}, seed {seed}: {html.escape(why)}</li>" for (arm, seed), why in results.failed.items()
    )
    failed = f"<p class='warning'>Failed, and in no effect:</p><ul>{errors}</ul>" if errors else ""
    return (
        "<p class='warning'>This sweep is unfinished: "
        f"{len(results.missing)} of {len(results.planned)} planned runs are missing (in {len(arms)} arms). "
        "What follows uses the seeds that both arms of a comparison have. "
        f"Go on with <code>python -m sweeps launch {html.escape(results.launch)}{retry}</code>.</p>{failed}"
    )


def searched(results: Results) -> str:
    """What to know of arms that a search chose."""
    if not results.is_searched:
        return ""
    rows = "".join(f"<li>{html.escape(arm)}, seed {seed}</li>" for arm, seed in results.pruned)
    pruned = f"<details><summary>Pruned, and in no effect: {len(results.pruned)}</summary><ul>{rows}</ul></details>"
    return (
        "<p class='warning'>The arms of this study were chosen by their scores: levels that happened to do well were "
        "tried more often, and the best arm looks better than it is. The differences below are described and not "
        "judged; for a claim, run the arms that were found in a study with a design and new seeds.</p>"
        f"{pruned if results.pruned else ''}"
    )


def origin(results: Results) -> str:
    """What was launched, and of which code."""
    if results.origin is None:
        return "<p class='note'>Budget, overrides and code of these runs are not recorded beside the table.</p>"
    rows = (
        f"<tr><th scope='row'>{html.escape(title)}</th><td>{html.escape(text)}</td></tr>"
        for title, text in results.origin.lines()
    )
    title = "Where these results come from"
    return (
        f"<div class='wide' role='region' tabindex='0' aria-label='{title}'><table><caption>{title}</caption>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def expectations(results: Results) -> list[Section]:
    """What was declared beforehand, with effects and verdicts."""
    judged = results.verdicts()
    if not judged:
        return [Section("Expectations", f"<p>{html.escape(_no_expectations(results))}</p>")]
    open_ends = [
        f"<li>{html.escape(expectation.claim)}: {html.escape(found.text())}</li>"
        for expectation, found in judged
        if found.verdict != "shown"
    ]
    lines = "".join(f"<p class='headline'>{html.escape(line)}</p>" for line in headlines(results))
    verdicts = results.verdict_table()
    note = verdicts.attrs.get("note")
    body = (
        picture(expected, results)
        + table(verdicts, "Every expectation, in the order of its declaration", sortable=True)
        + (f"<p class='note'>{html.escape(note)}</p>" if note else "")
        + "<h3>Not shown by these data</h3>"
        + (f"<ul>{''.join(open_ends)}</ul>" if open_ends else "<p>Nothing: every expectation was shown.</p>")
    )
    return [Section("Headlines", lines), Section("What was expected, and what came out", body)]


def effects(results: Results) -> list[Section]:
    """Every arm against the baseline, in figures and tables."""
    if results.study is None:
        return [Section("Arms", table(results.arms().reset_index(), "Arms", sortable=True))]
    if results.baseline not in set(results.table["arm"]):
        missing = html.escape(results.baseline)
        said = f"<p>The baseline arm ({missing}) has no run yet, so there is nothing to compare with.</p>"
        return [Section("Effects", said)]
    shown = [picture(english_against_multilingual, results, arms=one_factor_arms(results))]
    if {"languages", "english_share"} <= {factor.name for factor in results.study.factors if factor.levels}:
        tiers = [tier for tier in reversed(GROUP_ORDER) if tier in set(results.table["tier"])][:1]
        shown.append(picture(interaction_map, results, in_groups=("multilingual", *tiers)))
    said = (
        f"<p>Baseline: {html.escape(results.baseline)}. Points; <code>*</code>: the 95 % interval excludes 0; "
        "<code>≥</code>: the smallest difference that these runs could have seen with 80 % power.</p>"
    )
    tables = []
    for metric, by in (("score", "tier"), ("fidelity", "tier"), ("score", "task")):
        frame = results.matrix(metric=metric, by=by)
        if not frame.empty:
            caption = f"{metric.capitalize()} by {by}: difference from the baseline in points, with its 95 % interval"
            tables.append(table(frame.rename_axis("arm").reset_index(), caption, sortable=True))
    if len(results.arms()) > 1:
        tables.append(picture(language_map, results))
    return [
        Section("English and the other languages", "".join(shown)),
        Section("Effects against the baseline", said + "".join(tables)),
    ]


def combined(results: Results) -> list[Section]:
    """Main effects, and the interaction of languages and English share, where arms differ in more than one factor."""
    study = results.study
    if study is None or not _crosses_factors(results):
        return []
    lowest = [tier for tier in reversed(GROUP_ORDER) if tier in set(results.table["tier"])][:1]
    names = list(dict.fromkeys(["en", *lowest, *(["multilingual"] if lowest != ["en"] else [])]))
    known = {factor.name: factor for factor in study.factors if factor.levels}  # of a range no level need repeat
    changes = {
        name: [(name, level, study.baseline[name]) for level in factor.levels if level != study.baseline[name]]
        for name, factor in known.items()
    }
    alone = {
        _said(known, change): [main_effect(results, *change, metric="score", group=name) for name in names]
        for own in changes.values()
        for change in own
    }
    parts = [
        "<p>Score, in points. A main effect is the mean difference between arms that differ in this factor alone, over "
        "all combinations of the other factors in which every level has runs; an arm to which a factor does not apply "
        "stands beside all of its levels. <code>*</code>: the 95 % interval excludes 0.</p>",
        table(_combinations("main effect", alone), "Main effects", sortable=True),
    ]
    title = "Main effects and interactions"
    if not {"languages", "english_share"} <= set(known):
        return [Section(title, "".join(parts))]
    together = {
        f"{_said(known, one)}; {_said(known, other)}": [
            interaction(results, one, other, metric="score", group=name) for name in names
        ]
        for one, other in product(changes["languages"], changes["english_share"])
        if all(known["english_share"].applies({**study.baseline, "languages": level}) for level in one[1:])
    }
    parts += [
        "<p>An interaction is how much larger the effect of the first change is with the second one than without it: 0 "
        "where the two add up.</p>",
        table(_combinations("interaction", together), "Interactions", sortable=True),
    ]
    return [Section(title, "".join(parts))]


def _crosses_factors(results: Results) -> bool:
    """Whether an arm with results differs from the baseline in more than one factor that applies to it."""
    assert results.study is not None
    arms, base = results.arms(), results.study.baseline
    changed = [[bool(pd.notna(one)) and one != base[name] for one in arms[name]] for name in base]
    return any(sum(row) > 1 for row in zip(*changed, strict=True))


def _said(known: Mapping[str, Factor], change: tuple[str, Level, Level]) -> str:
    name, level, against = change
    return f"{known[name].label(level)} instead of {known[name].label(against)}"


def _combinations(title: str, rows: Mapping[str, Sequence[Effect]]) -> pd.DataFrame:
    """One row per change, with the number of combinations that it is a mean of; none for those without any."""
    return pd.DataFrame(
        [
            {title: said, "combinations": found[0].n_combinations, **{one.group: cell(one) for one in found}}
            for said, found in rows.items()
            if found[0].n_combinations
        ]
    )


def reliability(results: Results) -> list[Section]:
    """Levels, with what they have to be read against."""
    titles = {
        "score": "score",
        "majority": "majority answer",
        "fidelity": "fidelity",
        "undetermined": "language undetermined",
    }
    rows = results.table[results.table["metric"].isin(titles)]
    side = rows["language"].map(lambda code: "English" if code == "en" else "other languages")
    means = rows.assign(side=side).groupby(["arm", "task", "side", "metric"], sort=False)["value"].mean().unstack()
    if means.empty:
        return []
    means = means.reindex(columns=list(titles)).rename(columns=titles).reset_index()
    order = {arm: number for number, arm in enumerate(results.arms().index)}
    means = means.sort_values(["arm", "task", "side"], key=lambda col: col.map(order) if col.name == "arm" else col)
    means.columns.name = None
    means["arm"] = [results.short_label(arm) for arm in means["arm"]]
    said = (
        "<p>Percent, means over seeds and languages. <em>Majority answer</em>: the score of always giving the most "
        "frequent answer; a score near it shows nothing learnt. <em>Language undetermined</em>: answers too short or "
        "too alike across languages to tell theirs; fidelity speaks of the others only.</p>"
    )
    shown = table(means.round(1), "Levels by arm and task (%)", sortable=True)
    return [Section("Levels, and what to read them against", said + shown)]


def budget(results: Results) -> list[Section]:
    """What an arm saw and cost, and what was held equal."""
    budget = results.budget().dropna(axis="columns", how="all")  # a record need not have all of them
    title = "What an arm costs"
    if budget.empty:
        return [Section(title, "<p>The budget of these runs is not recorded beside the table.</p>")]
    counts = [name for name in budget.columns if "seconds" not in name]
    equal = [name for name in counts if budget[name].max() <= budget[name].min() * (1 + EQUAL)]
    unequal = [name for name in counts if name not in equal]
    said = f"Held equal over the arms (within {EQUAL:.0%}): {', '.join(map(_words, equal)) or 'nothing'}."
    if unequal:
        said += f" Not equal: {', '.join(map(_words, unequal))}: an effect may come from these too."
    frame = pd.DataFrame({"arm": [results.short_label(str(arm)) for arm in budget.index]})
    for name in budget.columns:
        frame[_words(name)] = [f"{value:,.0f}" if pd.notna(value) else "–" for value in budget[name]]
    said = (
        f"<p>{said} Means over the finished runs of an arm, summed over the stages of its model, whichever run trained "
        "them; seconds are wall time, that of a run without the stages it took over from others.</p>"
    )
    return [Section(title, said + table(frame, "Means over the runs of an arm", sortable=True))]


def _words(name: str) -> str:
    return {
        "llm_tokens": "LLM tokens", "flops": "FLOPs", "trainable_parameters": "parameters that learn",
        "train_seconds": "seconds of training", "seconds": "seconds of the run",
    }.get(name, name)  # fmt: skip


def notebooks(results: Results) -> list[Section]:
    """The notebooks on the factors of the study, as run on its results."""
    assert results.study is not None
    own = {factor.name for factor in results.study.factors}
    stem_of = {factor: stem for factor, stem in NOTEBOOKS.items() if factor in own}
    ready = [factor for factor in stem_of if {results.baseline} < set(results.margin(factor))]
    stems, trouble, done = list(dict.fromkeys(stem_of[factor] for factor in ready)), "", []
    try:
        done = run_notebooks(stems, study=results.folder, allow_errors=True) if ready else []
    except Exception as error:  # no kernel, no notebooks beside the packages, a cell without end: the tables still hold
        trouble = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    pages = dict(zip(stems, done, strict=False))
    parts = {}
    for factor, stem in stem_of.items():
        why = (trouble or first_error(pages[stem])) if factor in ready else None
        if factor not in ready:
            reason = f"Too few arms that vary {factor} alone have runs yet (the baseline and one more)."
        elif why:
            reason = f"The notebook {stem} did not run on these results, so its figures are missing. {why}"
        else:
            title, body = _demoted(to_html(pages[stem]), stem)
            parts[stem] = Section(title, f"<div class='notebook'>{body}</div>")
            continue
        parts.setdefault(stem, Section(f"Notebook: {factor}", f"<p class='warning'>{html.escape(reason)}</p>"))
    return list(parts.values())


def method(results: Results) -> Section:
    """How to read the numbers, and where the runs are."""
    said = (
        f"<p>{METHOD}</p><p>All runs, with curves and predictions, in the MLflow UI: "
        f"<code>python -m sweeps ui{html.escape(results.home_option)}</code></p>"
    )
    return Section("How to read the numbers", said)


def _demoted(body: str, stem: str) -> tuple[str, str]:
    """The title of a notebook, and the rest with headings a level lower and ids of its own."""
    first = re.search(r"<h1[^>]*>(.*?)</h1>", body, flags=re.DOTALL)
    title = re.sub(r"<a class=.anchor-link.*?</a>|<[^>]+>", "", first[1], flags=re.DOTALL) if first else stem
    body = body.replace(first[0], "", 1) if first else body
    body = re.sub(r"(</?h)([1-5])\b", lambda found: f"{found[1]}{int(found[2]) + 1}", body)
    body = re.sub(r'(<h\d [^>]*\bid=")', rf"\g<1>{stem}-", body)
    return html.unescape(title).strip(), body
