"""The report of a study: one HTML file that needs nothing beside it. Written by `python -m ablations report`."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from ablations.contrasts import Effect, cell, interaction, main_effect
from ablations.factors import Factor, Level
from ablations.notebooks import NOTEBOOKS, first_error, run_notebooks, to_html
from ablations.outcomes import DERIVED, GROUP_ORDER, SUMMARISED
from ablations.plots import by_tier, english_against_multilingual, expected, interaction_map, one_factor_arms
from ablations.table import PICTURE_FILE, REPORT_FILES, Results
from lvlm.records import write_text

REPORT_FILE, EFFECTS_FILE, VERDICTS_FILE = REPORT_FILES

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

CSS = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 1120px; margin: 2em auto; padding: 0 1.2em; }
h1 { font-size: 1.7em; margin-bottom: .2em; }
h2 { margin-top: 2em; border-bottom: 1px solid #ddd; padding-bottom: .2em; }
table { border-collapse: collapse; font-size: .8em; margin: .8em 0; }
.wide, .output_html { overflow-x: auto; } .output_html table, .wide table { font-size: .74em; }
th, td, .dataframe thead th { padding: .3em .55em; text-align: left !important;
  border-bottom: 1px solid #e6e6e6; white-space: nowrap; vertical-align: top; }
td:first-child, th:first-child { white-space: normal; min-width: 9em; } thead th { border-bottom: 1.5px solid #888; }
img { max-width: 100%; height: auto; }
details { margin: .3em 0; } summary { color: #888; font-size: .8em; cursor: pointer; }
pre { background: #f7f7f7; padding: .6em .8em; overflow-x: auto; font-size: .82em; }
.note { color: #555; font-size: .92em; }
.warning { background: #fff4d6; border-left: 4px solid #e69f00; padding: .6em 1em; }
.headline { font-size: 1.06em; margin: .25em 0; } .notebook { border-left: 3px solid #e6e6e6; padding-left: 1.2em; }
.v-shown { color: #00734f; font-weight: 600; } .v-contradicted { color: #b34700; font-weight: 600; }
.v-noise, .v-not { color: #777; }
.prompt, .jp-InputPrompt, .jp-OutputPrompt, .anchor-link { display: none; }
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


def write_report(results: Results, *, notebooks: bool = True) -> Path:
    """Write the report into the folder of the results and return its path; beside it effects and verdicts as csv, and
    one picture for each factor.

    Without `notebooks` only figures and tables (quicker).
    """
    body = [
        f"<h1>Study {html.escape(results.name)}</h1>",
        f"<p>{html.escape(results.study.question)}</p>" if results.study else "",
        f"<p class='note'>{html.escape(results.summary())}.</p>",
        _origin(results),
        _unfinished(results),
        _searched(results),
        *_expectations(results),
        *_effects(results),
        *_combined(results),
        *_reliability(results),
        *_budget(results),
        *(_notebooks(results) if notebooks and results.study else []),
        f"<h2>How to read the numbers</h2><p>{METHOD}</p>",
        "<p>All runs, with curves and predictions, in the MLflow UI: "
        f"<code>python -m sweeps ui{html.escape(results.home_option)}</code></p>",
    ]
    title = f"Study {html.escape(results.name)}"
    head = f"<head><meta charset='utf-8'><title>{title}</title><style>{CSS}</style></head>"
    page = f"<!doctype html><html lang='en'>{head}<body>"
    _write_tables(results)
    _write_pictures(results)
    path = results.folder / REPORT_FILE
    write_text(path, page + "\n".join(part for part in body if part) + "</body></html>\n")
    return path.resolve()


def _unfinished(results: Results) -> str:
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


def _searched(results: Results) -> str:
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


def _origin(results: Results) -> str:
    if results.origin is None:
        return "<p class='note'>Budget, overrides and code of these runs are not recorded beside the table.</p>"
    rows = (
        f"<tr><th>{html.escape(title)}</th><td>{html.escape(text)}</td></tr>" for title, text in results.origin.lines()
    )
    return f"<table class='origin'>{''.join(rows)}</table>"


def _write_tables(results: Results) -> None:
    """All effects by tier and task, and the verdicts, for other programs; none where no baseline is known."""
    has_baseline = results.study is not None and results.baseline in set(results.table["arm"])
    tables = {EFFECTS_FILE: pd.DataFrame(), VERDICTS_FILE: results.verdict_table()}
    if has_baseline:
        present = set(results.table["metric"])
        metrics = [metric for metric in SUMMARISED if metric in present]
        metrics += [metric for metric, parts in DERIVED.items() if present >= set(parts)]
        every = (results.effects(metric=metric, by=by) for metric in metrics for by in ("tier", "task"))
        found = pd.concat([one for one in every if not one.empty] or [pd.DataFrame(columns=["verdict"])])
        # A change in either direction is not the verdict on what was expected: another word for it.
        tables[EFFECTS_FILE] = found.assign(excludes_zero=found["verdict"] == "shown").drop(columns="verdict")
    for name, table in tables.items():
        if table.empty:
            (results.folder / name).unlink(missing_ok=True)  # of an earlier report: it would be taken for this one's
        else:
            write_text(results.folder / name, table.to_csv(index=False))


def _write_pictures(results: Results) -> None:
    """`by_<factor>.png`: score and fidelity by tier along each factor, for slides; none where it has one arm so far."""
    for factor in results.study.factors if results.study else ():
        path = results.folder / PICTURE_FILE.format(factor.name)
        path.unlink(missing_ok=True)  # of an earlier report
        if len(results.margin(factor.name)) > 1:
            by_tier(results, factor.name).savefig(path, dpi=130)


def _expectations(results: Results) -> list[str]:
    judged = results.verdicts()
    if not judged:
        return [f"<h2>Expectations</h2><p>{html.escape(_no_expectations(results))}</p>"]
    table = results.verdict_table()
    open_ends = [
        f"<li>{html.escape(expectation.claim)}: {html.escape(found.text())}</li>"
        for expectation, found in judged
        if found.verdict != "shown"
    ]
    return [
        "<h2>Headlines</h2>",
        *(f"<p class='headline'>{html.escape(line)}</p>" for line in headlines(results)),
        "<h2>What was expected, and what came out</h2>",
        _image(expected(results), "Expected effects with intervals"),
        f"<div class='wide'>{_table(table)}</div>",
        f"<p class='note'>{html.escape(table.attrs['note'])}</p>" if table.attrs["note"] else "",
        "<h3>Not shown by these data</h3>",
        f"<ul>{''.join(open_ends)}</ul>" if open_ends else "<p>Nothing: every expectation was shown.</p>",
    ]


def _effects(results: Results) -> list[str]:
    if results.study is None:
        return [f"<h2>Arms</h2>{_table(results.arms().reset_index())}"]
    if results.baseline not in set(results.table["arm"]):
        missing = html.escape(results.baseline)
        return [
            f"<h2>Effects</h2><p>The baseline arm ({missing}) has no run yet, so there is nothing to compare with.</p>"
        ]
    parts = ["<h2>English and the other languages</h2>"]
    parts.append(
        _image(
            english_against_multilingual(results, arms=one_factor_arms(results)), "English against the other languages"
        )
    )
    if {"languages", "english_share"} <= {factor.name for factor in results.study.factors if factor.levels}:
        tiers = [tier for tier in reversed(GROUP_ORDER) if tier in set(results.table["tier"])][:1]
        parts.append(_image(interaction_map(results, in_groups=("multilingual", *tiers)), "Interaction map"))
    parts.append("<h2>Effects against the baseline</h2>")
    parts.append(
        f"<p>Baseline: {html.escape(results.baseline)}. Points; <code>*</code>: the 95 % interval excludes 0; "
        "behind <code>≥</code>: the smallest difference visible with 80 % power.</p>"
    )
    for metric, by in (("score", "tier"), ("fidelity", "tier"), ("score", "task")):
        frame = results.matrix(metric=metric, by=by)
        if not frame.empty:
            parts.append(
                f"<h3>{metric.capitalize()} by {by}</h3>"
                f"<div class='wide'>{_table(frame.rename_axis('arm').reset_index())}</div>"
            )
    return parts


def _combined(results: Results) -> list[str]:
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
        "<h2>Main effects and interactions</h2>",
        "<p>Score, in points. A main effect is the mean difference between arms that differ in this factor alone, over "
        "all combinations of the other factors in which every level has runs; an arm to which a factor does not apply "
        "stands beside all of its levels. <code>*</code>: the 95 % interval excludes 0.</p>",
        f"<div class='wide'>{_table(_combinations('main effect', alone))}</div>",
    ]
    if not {"languages", "english_share"} <= set(known):
        return parts
    together = {
        f"{_said(known, one)}; {_said(known, other)}": [
            interaction(results, one, other, metric="score", group=name) for name in names
        ]
        for one, other in product(changes["languages"], changes["english_share"])
        if all(known["english_share"].applies({**study.baseline, "languages": level}) for level in one[1:])
    }
    return [
        *parts,
        "<p>An interaction is how much larger the effect of the first change is with the second one than without it: 0 "
        "where the two add up.</p>",
        f"<div class='wide'>{_table(_combinations('interaction', together))}</div>",
    ]


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


def _reliability(results: Results) -> list[str]:
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
    return [
        "<h2>Levels, and what to read them against</h2>",
        "<p>Percent, means over seeds and languages. <em>Majority answer</em>: the score of always giving the most "
        "frequent answer; a score near it shows nothing learnt. <em>Language undetermined</em>: answers too short or "
        "too alike across languages to tell theirs; fidelity speaks of the others only.</p>",
        f"<div class='wide'>{_table(means.round(1))}</div>",
    ]


def _budget(results: Results) -> list[str]:
    budget = results.budget().dropna(axis="columns", how="all")  # a record need not have all of them
    title = "<h2>What an arm costs</h2>"
    if budget.empty:
        return [f"{title}<p>The budget of these runs is not recorded beside the table.</p>"]
    counts = [name for name in budget.columns if "seconds" not in name]
    equal = [name for name in counts if budget[name].max() <= budget[name].min() * (1 + EQUAL)]
    unequal = [name for name in counts if name not in equal]
    said = f"Held equal over the arms (within {EQUAL:.0%}): {', '.join(map(_words, equal)) or 'nothing'}."
    if unequal:
        said += f" Not equal: {', '.join(map(_words, unequal))}: an effect may come from these too."
    table = pd.DataFrame({"arm": [results.short_label(str(arm)) for arm in budget.index]})
    for name in budget.columns:
        shown = [f"{value:,.0f}" if pd.notna(value) else "–" for value in budget[name]]
        table[_words(name)] = shown
    return [
        title,
        f"<p>{said} Means over the finished runs of an arm, summed over the stages of its model, whichever run trained "
        "them; seconds are wall time, that of a run without the stages it took over from others.</p>",
        f"<div class='wide'>{_table(table)}</div>",
    ]


def _words(name: str) -> str:
    return {
        "llm_tokens": "LLM tokens", "flops": "FLOPs", "trainable_parameters": "parameters that learn",
        "train_seconds": "seconds of training", "seconds": "seconds of the run",
    }.get(name, name)  # fmt: skip


def _notebooks(results: Results) -> list[str]:
    assert results.study is not None
    own = {factor.name for factor in results.study.factors}
    sections = {factor: stem for factor, stem in NOTEBOOKS.items() if factor in own}
    ready = [factor for factor in sections if {results.baseline} < set(results.margin(factor))]
    stems, trouble, done = [sections[factor] for factor in ready], "", []
    try:
        done = run_notebooks(stems, study=results.folder, allow_errors=True) if ready else []
    except Exception as error:  # no kernel, no notebooks beside the packages, a cell without end: the tables still hold
        trouble = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    pages = dict(zip(ready, done, strict=False))
    parts = []
    for factor in sections:
        why = (trouble or first_error(pages[factor])) if factor in ready else None
        if factor not in ready:
            reason = f"Too few arms that vary {factor} alone have runs yet (the baseline and one more)."
        elif why:
            reason = f"The notebook {sections[factor]} did not run on these results, so its figures are missing. {why}"
        else:
            parts.append(f"<div class='notebook'>{to_html(pages[factor])}</div>")
            continue
        parts.append(f"<h2>{html.escape(factor)}</h2><p class='warning'>{html.escape(reason)}</p>")
    return parts


def _table(frame: pd.DataFrame) -> str:
    text = frame.to_html(index=False, border=0, na_rep="–", escape=True)
    for word, kind in (
        ("shown", "shown"),
        ("contradicted", "contradicted"),
        ("within noise", "noise"),
        ("not judged", "not"),
    ):
        text = text.replace(f"<td>{word}</td>", f"<td class='v-{kind}'>{word}</td>")
    return text


def _image(figure: Figure, alternative: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"<p><img alt='{html.escape(alternative)}' src='data:image/png;base64,{data}'></p>"
