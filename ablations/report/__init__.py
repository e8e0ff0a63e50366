"""The report of a study: one HTML file that needs nothing beside it, and tables and pictures for other programs.
Written by `python -m ablations report`."""

from __future__ import annotations

import html
from pathlib import Path

import pandas as pd

from ablations import plots
from ablations.markup import banner
from ablations.outcomes import DERIVED, SUMMARISED
from ablations.places import home_folder
from ablations.report import overall, sections
from ablations.report.browser import browser
from ablations.report.frame import Section, page
from ablations.table import PICTURE_FILE, REPORT_FILES, Results
from lvlm.records import write_text

REPORT_FILE, EFFECTS_FILE, VERDICTS_FILE = REPORT_FILES
headlines = sections.headlines


def write_report(
    results: Results, *, notebooks: bool = True, folder: Path | None = None, home: str | Path | None = None
) -> Path:
    """Write the report into the folder of the results and return its path; beside it effects and verdicts as csv, and
    one picture for each factor. That on example records goes to `examples/NAME` of the work folder.

    Without `notebooks` only figures and tables (quicker).
    """
    if folder is None:
        folder = home_folder(home) / "examples" / results.name if results.is_example else results.folder
    head = "".join(
        [
            f"<p>{html.escape(results.study.question)}</p>" if results.study else "",
            banner(results),
            f"<p class='note'>{html.escape(results.summary())}.</p>",
            sections.origin(results),
            sections.unfinished(results),
            sections.searched(results),
        ]
    )
    body = [
        Section("", head),
        *sections.expectations(results),
        *sections.effects(results),
        *sections.combined(results),
        *overall.curves(results),
        *overall.importance(results),
        *overall.front(results),
        *overall.noise(results),
        *sections.reliability(results),
        *sections.budget(results),
        browser(results),
        *(sections.notebooks(results) if notebooks and results.study else []),
        sections.method(results),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    _write_tables(results, folder)
    _write_pictures(results, folder)
    path = folder / REPORT_FILE
    write_text(path, page(f"Study {results.name}", body))
    return path.resolve()


def _write_tables(results: Results, folder: Path) -> None:
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
            (folder / name).unlink(missing_ok=True)  # of an earlier report: it would be taken for this one's
        else:
            write_text(folder / name, table.to_csv(index=False))


def _write_pictures(results: Results, folder: Path) -> None:
    """`by_<factor>.png`: score and fidelity by tier along each factor, for slides; none where it has one arm so far."""
    for factor in results.study.factors if results.study else ():
        name = PICTURE_FILE.format(factor.name)
        (folder / name).unlink(missing_ok=True)  # of an earlier report
        if len(results.margin(factor.name)) > 1:
            plots.save(plots.by_tier(results, factor.name), folder / Path(name).stem, ("png",))
