"""The commands of `python -m sweeps`. Called by `sweeps.__main__`; heavy imports happen inside the command that needs
them."""

from __future__ import annotations

import argparse
import math
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from lvlm.commands import HOME_HELP, Command, CommandLine, add_overrides
from lvlm.errors import InputError
from sweeps.plan import DEFAULT_RUNNER

STUDY_HELP = "name of a study in ablations/studies/, or the path of a study file"
LAUNCHED_HELP = "the settings that the study was launched with, where there were any"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 when all is well, 1 when cells failed or are missing, 2 on bad input, 130 after Ctrl-C."""
    return _command_line()(argv)


def _launch(options: argparse.Namespace) -> int:
    from sweeps.launcher import launch

    _end_like_ctrl_c()  # a closed terminal stops the workers too
    outcome = launch(
        options.study,
        workers=options.workers,
        overrides=options.overrides,
        budget=options.budget,
        home=options.home,
        runner=options.runner,
        retry_failed=options.retry_failed,
        log_models=options.log_models,
    )
    if outcome.interrupted:
        return 130
    return 0 if outcome.is_complete and outcome.results else 1


def _end_like_ctrl_c() -> None:
    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)


def _plan(options: argparse.Namespace) -> int:
    from sweeps.planner import arm_lines, describe, make_plan
    from sweeps.queue import CellState, Queue

    plan = make_plan(options.study, budget=options.budget, overrides=options.overrides, runner=options.runner)
    place = plan.place(options.home)
    if place.journal.exists():
        states = Queue(plan, place.journal).states()
    else:
        states = {cell.id: CellState("waiting") for cell in plan.cells}
    first, *rest = describe(plan, states, workers=options.workers)
    print("\n".join([first, *arm_lines(plan, states), *rest]))
    return 0


def _worker(options: argparse.Namespace) -> int:
    from sweeps.plan import find_place
    from sweeps.worker import work

    return work(
        find_place(options.study, options.home, options.overrides), version=options.version, since=options.since
    )


def _status(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.live import Live

    from sweeps.plan import Plan, find_place
    from sweeps.queue import Queue, count
    from sweeps.status import view

    place = find_place(options.study, options.home, options.overrides)
    plan = Plan.load(place)
    queue = Queue(plan, place.journal)
    console = Console(highlight=False)
    states = queue.states()
    if not options.watch:
        console.print(view(place, plan, states))
        return 0
    with Live(view(place, plan, states), console=console, auto_refresh=False) as live:
        while (numbers := count(states.values()))["running"] or numbers["waiting"]:
            time.sleep(options.every)
            states = queue.states()
            live.update(view(place, plan, states), refresh=True)
    return 0


def _export(options: argparse.Namespace) -> int:
    from lvlm.records import SCORES_FILE
    from sweeps.plan import Plan, find_place
    from sweeps.read import export

    place = find_place(options.study, options.home, options.overrides)
    if options.from_mlflow:
        from sweeps.stored_runs import export_from_store

        written, bare = export_from_store(place, options.study, overrides=options.overrides)
        if bare:
            print(
                f"of {bare} runs no {SCORES_FILE} can be read from here: their metrics say the score alone, without n"
            )
    else:
        written = export(place, Plan.load(place))
    print(f"{written.runs} of {written.planned} runs in {written.results}")
    if written.predictions:
        print(f"their per-item predictions in {written.predictions}")
    return 0


def _attach(options: argparse.Namespace) -> int:
    from ablations.table import PICTURE_FILE, REPORT_FILES
    from sweeps.plan import Plan, find_place
    from sweeps.tracking import Tracker

    place = find_place(options.study, options.home, options.overrides)
    files = [file for name in REPORT_FILES if (file := place.folder / name).exists()]
    if not files:
        command = " ".join([options.study, *options.overrides])
        raise InputError(f"There is no report in {place.folder}. Write it first: python -m ablations report {command}")
    files += sorted(place.folder.glob(PICTURE_FILE.format("*")))
    plan = Plan.load(place)
    run_id = Tracker(place, plan).attach(files)
    print(f"{', '.join(file.name for file in files)} are on parent run {run_id} in MLflow (python -m sweeps ui)")
    return 0


def _ui(options: argparse.Namespace) -> int:
    from sweeps.plan import find_home, find_place
    from sweeps.server import launched, serve, serve_optuna

    home, browser = find_home(options.home), not options.no_browser
    study = find_place(options.study, home) if options.study else None
    _end_like_ctrl_c()
    if not options.optuna:
        return serve(home, study=study, host=options.host, port=options.port or 5000, browser=browser)
    if study is None and not (places := launched(home)):
        raise InputError(f"Nothing has been launched in {home}. Start with: python -m sweeps launch drivers")
    return serve_optuna(study or places[0], host=options.host, port=options.port or 8080, browser=browser)


def _new(options: argparse.Namespace) -> int:
    from sweeps.template import write_study

    path = write_study(options.name, Path(options.folder))
    print(f"{path} is a study of 12 cells that runs as it is. Edit it, look at it, start it:")
    print(f"  python -m sweeps plan {path}\n  python -m sweeps launch {path}")
    return 0


def _whole(what: str, least: int, most: int | None = None) -> Callable[[str], int]:
    """An argparse type: a whole number in a range; `what` it is begins the error."""

    def parse(text: str) -> int:
        number = int(text) if text.isdecimal() else None
        if number is None or number < least or (most is not None and number > most):
            allowed = f"at least {least}" if most is None else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"{what} is a whole number, {allowed}, not '{text}'")
        return number

    return parse


def _seconds(text: str) -> float:
    """An argparse type: a time above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"a time is a number of seconds above 0, not '{text}'")
    return number


def _command_line() -> CommandLine:
    line = CommandLine(
        "sweeps",
        "Run studies: plan their cells, run them on workers, watch them, read what they found.",
        "launch drivers --workers 2",
    )

    def add(name: str, command: Command, text: str, example: str, *, study: bool = True) -> argparse.ArgumentParser:
        sub = line.add(name, command, f"{text[0].upper()}{text[1:]}.", example)
        if study:
            sub.add_argument("study", metavar="STUDY", help=STUDY_HELP)
        if name != "new":
            sub.add_argument("--home", metavar="DIR", help=HOME_HELP)
        return sub

    def add_plan_options(sub: argparse.ArgumentParser) -> None:
        add_overrides(sub, "settings of the study's base config, dotted; their results lie in a folder of their own")
        sub.add_argument(
            "--workers",
            type=_whole("the number of worker processes", 1),
            metavar="N",
            help="worker processes (default: one per core, at most 8)",
        )
        sub.add_argument(
            "--budget", choices=("default", "full"), help="which design and seeds (default: $BUDGET, else default)"
        )
        sub.add_argument(
            "--runner",
            default=DEFAULT_RUNNER,
            metavar="MODULE:FUNCTION",
            help="what runs one cell (default: %(default)s)",
        )

    sub = add(
        "launch",
        _launch,
        "run every cell that is not done yet; again resumes",
        "launch drivers --workers 2 instruct.optim.lr=0.0005",
    )
    add_plan_options(sub)
    sub.add_argument("--retry-failed", action="store_true", help="also run cells again that failed by an error")
    sub.add_argument(
        "--log-models", action="store_true", help="keep the last model of every cell in MLflow, to be loaded from there"
    )
    sub = add(
        "plan", _plan, "show arms, seeds, stages after sharing and cost; starts nothing", "plan drivers --budget full"
    )
    add_plan_options(sub)
    sub = add(
        "worker",
        _worker,
        "work on a launched study beside other workers, on any machine that shares the work folder",
        "worker drivers",
    )
    add_overrides(sub, LAUNCHED_HELP)
    sub.add_argument("--version", help="version of the plan (default: that of the latest launch)")
    sub.add_argument(
        "--since",
        type=float,
        help="failures before this moment (seconds since 1970) do not stop the worker (default: now)",
    )
    sub = add("status", _status, "show how a sweep stands", "status drivers --watch")
    add_overrides(sub, LAUNCHED_HELP)
    sub.add_argument("--watch", action="store_true", help="stay and refresh until nothing is left to run")
    sub.add_argument(
        "--every", type=_seconds, default=2.0, metavar="SECONDS", help="how often --watch looks (default: %(default)s)"
    )
    sub = add(
        "export", _export, "write results, budget and predictions as tables from the finished runs", "export drivers"
    )
    add_overrides(sub, LAUNCHED_HELP)
    sub.add_argument(
        "--from-mlflow", action="store_true", help="from MLflow's store, on a machine that has no run folders"
    )
    sub = add("attach", _attach, "put the study's report and effects onto its parent run in MLflow", "attach drivers")
    add_overrides(sub, LAUNCHED_HELP)
    sub = add("ui", _ui, "show the recorded runs in MLflow's pages", "ui drivers --port 5001", study=False)
    sub.add_argument("study", nargs="?", metavar="STUDY", help="which to open (default: the one launched last)")
    sub.add_argument("--no-browser", action="store_true", help="open no browser (none is opened without a display)")
    sub.add_argument("--optuna", action="store_true", help="Optuna's dashboard of the study instead, where installed")
    sub.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    sub.add_argument("--port", type=_whole("a port", 1, 65535), help="port (default: 5000, of Optuna's dashboard 8080)")
    sub = add("new", _new, "write a commented study file to start from", "new my_study", study=False)
    sub.add_argument("name", metavar="NAME", help="name of the study and its file")
    sub.add_argument("--folder", default=".", help="where to write it (default: here)")
    return line
