"""The commands of `python -m sweeps`. Called by `sweeps.__main__`; heavy imports happen inside the command that needs
them."""

from __future__ import annotations

import argparse
import math
import signal
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
        cluster=options.cluster,
        cluster_options=options.cluster_option,
        storage=options.storage,
        new_version=options.new_version,
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
    from sweeps.amounts import Meter, amount_lines, arm_amounts
    from sweeps.devices import default_workers, visible_gpus
    from sweeps.plan import find_home
    from sweeps.planner import arm_lines, describe, make_plan
    from sweeps.probe import probe
    from sweeps.queue import CellState, Queue

    if options.price_per_hour is not None and not options.probe:
        raise InputError("--price-per-hour is what the time measured by --probe costs: give both, or neither.")
    meter = Meter(find_home(options.home))
    plan = make_plan(
        options.study, budget=options.budget, overrides=options.overrides, runner=options.runner, meter=meter
    )
    place = plan.place(options.home)
    plan.grow(place.folder)
    if (storage := place.storage).exists:
        states = Queue(plan, storage).states()
    else:
        states = {cell.id: CellState("waiting") for cell in plan.cells}
    first, *rest = describe(plan, states, workers=options.workers)
    print("\n".join([first, *arm_lines(plan, states), *plan.tells_apart, *rest]), flush=True)
    left = [cell for cell in plan.cells if states[cell.id].state not in ("done", "pruned")]
    unproposed = plan.size - len(plan.cells)
    workers = options.workers or default_workers(len(left) + unproposed, len(visible_gpus()))
    try:
        print("an arm sees (stages together, means over seeds):")
        print("\n".join(amount_lines(arm_amounts(plan.cells, meter))), flush=True)
    except InputError as error:
        if options.probe:
            raise
        print(f"  not known before its data and backbones are here: {error}")
    if options.probe and left:
        print("\n".join(probe(plan, left, meter, workers=workers).lines(workers=workers, price=options.price_per_hour)))
    return 0


def _worker(options: argparse.Namespace) -> int:
    from sweeps.plan import find_place
    from sweeps.worker import work

    return work(
        find_place(options.study, options.home, options.overrides), version=options.version, since=options.since
    )


def _proxy(options: argparse.Namespace) -> int:
    from sweeps.plan import find_home
    from sweeps.storage import serve

    return serve(find_home(options.home), host=options.host, port=options.port)


def _status(options: argparse.Namespace) -> int:
    from rich.console import Console

    from sweeps.live import follow
    from sweeps.plan import find_place
    from sweeps.standing import Lookout
    from sweeps.status import view

    lookout = Lookout(find_place(options.study, options.home, options.overrides))
    console = Console(highlight=False)
    if not options.watch or not console.is_terminal:
        console.print(view(lookout.look()))
    if options.watch:
        follow(lookout, console, every_seconds=options.every)
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
    if written.unpictured:
        print(f"without pictures of the items: {written.unpictured}")
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


def _cache(options: argparse.Namespace) -> int:
    from lvlm.train.shelf import GIB, folder_bytes
    from sweeps.cache import lines, prune, size
    from sweeps.plan import find_home

    home = find_home(options.home)
    if not options.prune and options.keep is None:
        if options.force:
            raise InputError("--force belongs to --prune or --keep GIB; alone it has nothing to do.")
        print("\n".join(lines(home)))
        return 0
    removed = prune(home, keep_gib=options.keep or 0.0, force=options.force)
    for entry in removed:
        print(f"removed {entry.key}, {size(entry.bytes)}")
    print(
        f"{len(removed)} stages removed, {size(sum(entry.bytes for entry in removed))}. Records and reports stay; a "
        "cell that needs such a stage trains it again."
    )
    left = folder_bytes(home / "stages")
    if options.keep is not None and left > options.keep * GIB:
        print(f"The others take {size(left)}: they are in use, or cells that run or wait need them.")
        return 1
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


def _number(what: str, *, or_zero: bool = False) -> Callable[[str], float]:
    """An argparse type: a number above 0, or from 0 on; `what` it is begins the error."""

    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not 0 <= number < math.inf or (number == 0 and not or_zero):
            raise argparse.ArgumentTypeError(
                f"{what} is a number{', 0 or more' if or_zero else ' above 0'}, not '{text}'"
            )
        return number

    return parse


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
            help="workers (default: one per GPU, else one per core, at most 8)",
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
    sub.add_argument("--cluster", choices=("slurm",), help="submit the workers as jobs of the cluster, one for each")
    sub.add_argument(
        "--cluster-option",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="what a job asks for, repeated: partition, account, qos, gpus_per_node (0 or 1), cpus_per_task, mem_gb, "
        "timeout_min (default: 240; then it goes back to the queue), signal_delay_s (default: 120) before that for a "
        "last checkpoint, array_parallelism (jobs at once), setup (a line of shell before the worker), or any option "
        "of sbatch as sbatch.NAME=VALUE",
    )
    sub.add_argument(
        "--storage",
        metavar="URL",
        help="where the trials are kept: postgresql://USER@HOST/DATABASE, or grpc://HOST:PORT of `proxy` (default: "
        "$LVLM_STORAGE, else a file in the study's folder)",
    )
    sub.add_argument(
        "--new-version", action="store_true", help="go on although the study file was changed since its last launch"
    )
    sub.add_argument(
        "--log-models", action="store_true", help="keep the last model of every cell in MLflow, to be loaded from there"
    )
    sub = add(
        "plan",
        _plan,
        "show arms, seeds, stages after sharing, cost and what the design can tell apart; starts nothing",
        "plan drivers --budget full",
    )
    add_plan_options(sub)
    sub.add_argument(
        "--probe",
        action="store_true",
        help="run a few steps of two arms in a temporary folder, and say how long the study takes here",
    )
    sub.add_argument(
        "--price-per-hour",
        type=_number("a price"),
        metavar="PRICE",
        help="of a worker, such as a GPU's: with --probe, what the study costs",
    )
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
    sub = add(
        "proxy",
        _proxy,
        "keep the trials of studies for workers on many machines (Optuna's gRPC proxy over a file of this work folder, "
        "without a login): launch with --storage grpc://HOST:PORT",
        "proxy --host 10.0.0.5",
        study=False,
    )
    sub.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    sub.add_argument("--port", type=_whole("a port", 1, 65535), default=13000, help="port (default: %(default)s)")
    sub = add("status", _status, "show how a sweep stands", "status drivers --watch")
    add_overrides(sub, LAUNCHED_HELP)
    sub.add_argument("--watch", action="store_true", help="stay and refresh until nothing is left to run")
    sub.add_argument(
        "--every",
        type=_number("a time in seconds"),
        default=2.0,
        metavar="SECONDS",
        help="how often --watch looks (default: %(default)s)",
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
    sub = add(
        "cache",
        _cache,
        "list the trained stages that cells share and what the work folder keeps; remove those no cell needs any more",
        "cache --keep 20",
        study=False,
    )
    sub.add_argument(
        "--prune",
        action="store_true",
        help="remove the stages that no process uses and no running or waiting cell of a study needs",
    )
    sub.add_argument(
        "--keep",
        type=_number("an amount of disk in GiB", or_zero=True),
        metavar="GIB",
        help="the same, from the one used longest ago, until the rest take at most GIB; workers keep to "
        "compute.stage_cache_gib by themselves",
    )
    sub.add_argument(
        "--force", action="store_true", help="also those that waiting cells need, which will train them again"
    )
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
