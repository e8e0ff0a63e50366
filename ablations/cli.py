"""The commands `report` and `list`. Called by `python -m ablations`.

Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; input that the user can mend ends in its message and status 2."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    # Overrides may stand after options, where argparse does not look for them.
    options.overrides = [*getattr(options, "overrides", []), *rest]
    if wrong := [text for text in options.overrides if text.startswith("-") or "=" not in text]:
        parser.error(f"not understood: {' '.join(wrong)} (overrides are key=value)")
    if rest and options.command != "report":
        parser.error(f"not understood here: {' '.join(rest)}")
    from lvlm.errors import InputError

    try:
        _report(options.study, options.overrides, options.home) if options.command == "report" else _list()
    except InputError as error:
        print(f"ablations: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ablations",
        description="Read what a study found: effects with intervals, and the verdict on what was expected.",
        epilog="python -m ablations report drivers",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    report = commands.add_parser(
        "report",
        help="write a study's report (one HTML file) and print its headlines",
        description=(
            "Write report.html, effects.csv and verdicts.csv into HOME/studies/STUDY from the results there, "
            "and print the headline effects."
        ),
        epilog="python -m ablations report drivers",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    report.add_argument(
        "study", metavar="STUDY", help="a study's name or file, or the folder that holds its results.parquet"
    )
    report.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        default=[],
        help="the settings that the study was launched with, where there were any",
    )
    report.add_argument(
        "--home", metavar="DIR", help="work folder (default: the environment variable LVLM_HOME, else ./runs)"
    )
    commands.add_parser(
        "list",
        help="list the studies that come with the toolkit",
        description="List the studies with their questions and the number of runs of the default and the full budget.",
        epilog="python -m ablations list",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def _list() -> None:
    from ablations.studies import list_studies, load_study

    for name in list_studies():
        study = load_study(name)
        runs = [len(study.arms(budget)) * len(study.seeds_of(budget)) for budget in ("default", "full")]
        print(f"{name:<22} {study.question}\n{'':<22} {runs[0]} runs; BUDGET=full: {runs[1]} runs")
    print("\nRun one:  python -m sweeps launch drivers")


def _report(study: str, overrides: Sequence[str], home: str | None) -> None:
    from ablations.report import headlines, write_report
    from ablations.table import load_results

    results = load_results(study, home=home, overrides=overrides)
    path = write_report(results)
    print(f"Report: {path}")
    for line in headlines(results):
        print(f"  {line}")
    if results.missing:
        print(f"The sweep is unfinished: {len(results.missing)} of {len(results.planned)} planned runs are missing.")
    print("All runs in the MLflow UI: python -m sweeps ui")
