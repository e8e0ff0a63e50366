"""The commands `report`, `findings`, `power` and `list`. Called by `python -m ablations`.

Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lvlm.commands import HOME_HELP, CommandLine, add_overrides
from lvlm.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    return _command_line()(argv)


def _command_line() -> CommandLine:
    line = CommandLine(
        "ablations",
        "Read what a study found: effects with intervals, and the verdict on what was expected.",
        "report drivers",
    )
    report = line.add(
        "report",
        _report,
        "Write a study's report.html, effects.csv and verdicts.csv beside its results; print its headline effects.",
        "report drivers",
    )
    report.add_argument(
        "study",
        metavar="STUDY",
        help="a study's name or file, the folder that holds its results.parquet, or examples/NAME",
    )
    report.add_argument(
        "--pdf", action="store_true", help="also print it as report.pdf (needs Chromium or Chrome on the PATH)"
    )
    add_overrides(report, "the settings that the study was launched with, where there were any")
    report.add_argument("--home", metavar="DIR", help=HOME_HELP)
    findings = line.add(
        "findings",
        _findings,
        "The verdict on every published claim: supported, contradicted or within noise, with effect, interval and the "
        "published figure.",
        "findings number_of_languages english_share",
    )
    findings.add_argument(
        "studies",
        metavar="STUDY",
        nargs="*",
        help="as for report, or examples/NAME (default: every claim once, on your own results or the example records)",
    )
    findings.add_argument("--home", metavar="DIR", help=HOME_HELP)
    findings.add_argument("--csv", type=Path, metavar="FILE", help="also write them as a table")
    findings.add_argument(
        "--these-languages",
        action="store_true",
        help="verdicts about the study's own languages alone, with intervals over seeds (default: languages like them)",
    )
    findings.add_argument(
        "--published",
        action="store_true",
        help="what the published tables themselves can support, with one run per arm",
    )
    power = line.add(
        "power",
        _power,
        "From the noise of a study: how many seeds, languages and items show a difference of so many points.",
        "power drivers --difference 1.0",
    )
    power.add_argument("study", metavar="STUDY", help="as for report: a study that has run with two seeds at least")
    add_overrides(power, "the settings that the study was launched with, where there were any")
    power.add_argument("--difference", type=float, required=True, metavar="POINTS", help="the difference to be seen")
    power.add_argument("--metric", default="score", help="what is compared (default: score)")
    power.add_argument(
        "--group", default="multilingual", help="a tier, language, script:NAME or TASK/GROUP (default: multilingual)"
    )
    power.add_argument(
        "--power", type=float, default=0.8, metavar="SHARE", help="of repetitions that see it (default: 0.8)"
    )
    power.add_argument("--home", metavar="DIR", help=HOME_HELP)
    line.add(
        "list",
        _list,
        "List the studies that come with the toolkit, with their questions and numbers of runs.",
        "list",
    )
    return line


def _list(_: argparse.Namespace) -> None:
    from ablations.studies import list_studies, load_study

    for name in list_studies():
        study = load_study(name)
        runs = [len(study.arms(budget)) * len(study.seeds_of(budget)) for budget in ("default", "full")]
        print(f"{name:<22} {study.question}\n{'':<22} {runs[0]} runs; BUDGET=full: {runs[1]} runs")
    print("\nRun one:  python -m sweeps launch drivers")


def _findings(options: argparse.Namespace) -> None:
    from ablations import evidence, findings
    from ablations.places import list_examples, list_results
    from ablations.table import load_results
    from lvlm.records import write_text

    if options.csv and (options.csv.is_dir() or not options.csv.parent.is_dir()):
        raise InputError(
            f"--csv {options.csv}: its folder {options.csv.parent} must be there, and the name be a file's."
        )
    if options.published and options.these_languages:
        raise InputError("--these-languages is of verdicts on runs, and --published gives none: choose one.")
    names = options.studies or [*list_results(options.home), *list_examples()]
    given = [load_results(name, home=options.home) for name in names]
    results = list({(one.folder.resolve(), one.name): one for one in given}.values())  # named twice is one study
    if options.published:
        found = evidence.evidence(results)
        table, lines = evidence.table(found), evidence.lines(found)
    else:
        judge = findings.verdicts if options.studies else findings.one_each
        scope: findings.Scope = "these languages" if options.these_languages else "languages like these"
        judged = judge(results, scope=scope)
        if not judged:
            raise InputError(f"No published claim compares levels that {' or '.join(map(str, names))} varies.")
        method = findings.METHOD.format(f"seeds like these and {scope}")
        table, lines = findings.table(judged), [*findings.lines(judged), "", method]
    print("\n".join(lines))
    if options.csv:
        write_text(options.csv, table.to_csv(index=False))
        print(f"Table: {options.csv}")


def _power(options: argparse.Namespace) -> None:
    from ablations.power import plan
    from ablations.table import load_results

    results = load_results(options.study, home=options.home, overrides=options.overrides)
    found = plan(
        results, difference=options.difference, metric=options.metric, group=options.group, power=options.power
    )
    print(f"{results.summary()}\n{found.text()}")


def _report(options: argparse.Namespace) -> None:
    from ablations.report import headlines, write_report
    from ablations.table import load_results

    results = load_results(options.study, home=options.home, overrides=options.overrides)
    print("writing tables, figures and notebooks ...", flush=True)
    path = write_report(results, home=options.home)
    print(f"Report: {path}")
    if options.pdf:
        from ablations.report.printing import write_pdf

        print(f"Report as PDF: {write_pdf(path)}")
    for line in headlines(results):
        print(f"  {line}")
    if results.missing:
        print(f"The sweep is unfinished: {results.summary()}.")
        print(f"Go on with: python -m sweeps launch {results.launch}{' --retry-failed' if results.failed else ''}")
    print(f"All runs in the MLflow UI: python -m sweeps ui{results.home_option}")
