"""Launch a study: plan it, start local workers, show how it goes, leave the results table. Used by `python -m sweeps
launch` and from Jupyter."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.live import Live

from ablations.studies import FOLDER, Study
from lvlm.check import open_corpora
from lvlm.errors import InputError
from lvlm.records import TRAINER_VERSION, RunRecord
from sweeps import status
from sweeps.crew import Crew, default_workers
from sweeps.identity import is_alive
from sweeps.plan import DEFAULT_RUNNER, TRACEBACK_FILE, Place, Plan
from sweeps.planner import describe, make_plan
from sweeps.progress import duration
from sweeps.queue import MAX_ATTEMPTS, CellState, Queue, count
from sweeps.read import export
from sweeps.tracking import Tracker
from sweeps.tracking_store import keep_uri, sqlite_file, tracking_uri
from sweeps.worker import FAILURES_IN_A_ROW, load_runner

POLL_SECONDS = 1.0
HEADLINE_SECONDS = 30.0
"""In a log a line says how the sweep stands, so often where nothing else does."""


@dataclass(frozen=True)
class Outcome:
    """How a launch ended. `results` is None when no cell has finished, or the table could not be written."""

    study: str
    version: str
    cells: int
    done: int
    failed: int
    results: Path | None
    seconds: float
    interrupted: bool = False

    @property
    def is_complete(self) -> bool:
        """Whether every cell of the study is done."""
        return self.done == self.cells


def launch(
    study: str | Path | Study,
    *,
    workers: int | None = None,
    overrides: Sequence[str] = (),
    budget: str | None = None,
    home: str | Path | None = None,
    runner: str = DEFAULT_RUNNER,
    retry_failed: bool = False,
    log_models: bool = False,
) -> Outcome:
    """Run every cell of a study that is not done yet; launching again resumes.

    `study` is a name, the path of a study file or a `Study`. `overrides` are `key=value` texts on its base config; what
    they give lies in a folder of its own (NAME@HASH). `budget` is `default` or `full` (else the environment variable
    BUDGET decides). Cells that failed by an error stay failed unless `retry_failed`; killed ones are taken up again
    from their checkpoint. With `log_models` MLflow keeps the last model of every cell, as a logged model that
    `mlflow.pyfunc.load_model` loads. Ctrl-C stops the workers and returns.
    """
    if workers is not None and workers < 1:
        raise InputError(f"workers is the number of worker processes, at least 1, not {workers}.")
    began = time.time()
    load_runner(runner)
    plan = make_plan(study, budget=budget, overrides=overrides, runner=runner)
    plan = replace(plan, log_models=log_models)
    place = plan.place(home)
    _check_source(plan, place)
    keep_uri(place.home)
    if runner == DEFAULT_RUNNER:
        _check_making(plan, place)
    plan.save(place)
    queue = Queue(plan, place.journal)
    queue.add_missing()
    queue.reap()
    queue.requeue_killed()
    if retry_failed:
        queue.requeue_failed()
    console = Console(highlight=False, soft_wrap=True)
    for line in describe(plan, queue.states(), workers=workers):
        console.print(line, markup=False)

    tracker = Tracker(place, plan)
    _start_tracking(tracker, queue, console)

    def finish(*, interrupted: bool = False) -> Outcome:
        return _finish(place, plan, queue, tracker, console, study=study, began=began, interrupted=interrupted)

    left = [state for state in queue.states().values() if state.state in ("waiting", "running")]
    if not left:
        return finish()
    crew = Crew(place, plan, workers=workers or default_workers(len(left)), since=began)
    try:
        interrupted = _work(crew, queue, console)
    except Exception:  # such as workers that cannot start: what has finished is put down all the same
        finish()
        raise
    return finish(interrupted=interrupted)


def _check_source(plan: Plan, place: Place) -> None:
    """Raise where the plan that lies there came from another study file of the same name."""
    if not place.current_plan.exists():
        return
    try:
        before = _study_file(str(json.loads(place.current_plan.read_text(encoding="utf-8"))["source"]))
    except (ValueError, TypeError, KeyError):  # of another version: the launch writes it anew
        return
    now = _study_file(plan.source)
    if before and now and not before.samefile(now):
        raise InputError(
            f"{place.folder} holds the results of the study file {before}, and {now} has the same name. Launch it into "
            "another work folder (--home DIR), or give the file and its study another name."
        )


def _study_file(source: str) -> Path | None:
    """The file behind a plan's `source`; None where there is none (any more)."""
    shipped = FOLDER / f"{source}.py"
    path = shipped if shipped.is_file() else Path(source)
    return path if path.is_file() else None


def _check_making(plan: Plan, place: Place) -> None:
    """Raise for a corpus that a cell to run cannot open or use, and for finished cells that were made of other
    backbones or corpora, or by another trainer, than are here now: a cell is known by its config, which names them
    and not what is in them.

    Once for the whole plan, before any worker starts.
    """
    from lvlm.model.backbones import backbone_digests

    opened: dict[str, dict[str, str]] = {}
    digests: dict[str, dict[str, str]] = {}
    others: list[str] = []
    differ: set[str] = set()
    for cell in plan.cells:
        recorded = RunRecord.load(place.cell(cell.id)) if place.is_recorded(cell.id) else None
        config = cell.run_config()
        data = json.dumps([cell.config[part] for part in ("pretrain", "instruct", "evaluate")], sort_keys=True)
        try:
            if data not in opened:
                opened[data] = {path: corpus.stamp() for path, corpus in open_corpora(config).items()}
        except InputError:
            if recorded is None:
                raise
            continue  # nothing is left to train on it: its results stand for themselves
        model = f"{config.model.tower} {config.model.llm} {config.seed}"
        if model not in digests:
            digests[model] = backbone_digests(config.model, seed=config.seed)
        if recorded is None:
            continue
        now = {"backbones": digests[model], "corpora": opened[data], "trainer": TRAINER_VERSION}
        if found := {key for key, value in now.items() if recorded.provenance.get(key, value) != value}:
            others.append(cell.id)
            differ |= found
    if others:
        names = {"backbones": "other backbones", "corpora": "other corpora", "trainer": "another trainer version"}
        made = " and ".join(name for key, name in names.items() if key in differ)
        raise InputError(
            f"{len(others)} finished cells in {place.folder} were made with {made} than are here "
            "now, so their results cannot stand in one table with new ones. Launch into another work folder "
            "(--home DIR), or remove that one."
        )


def _start_tracking(tracker: Tracker, queue: Queue, console: Console) -> None:
    states = queue.states()
    if not tracker.mark("RUNNING", states) or tracker.send_unsent(states, say=console.print):
        console.print(
            f"MLflow does not answer ({tracker.trouble}). "
            "The sweep runs all the same; what it finds is kept and sent by the next launch.",
            markup=False,
        )


def _work(crew: Crew, queue: Queue, console: Console) -> bool:
    """Let the crew work until nothing is left; whether the user interrupted it."""
    states = queue.states()
    earlier = {
        state.owner["pid"]
        for state in states.values()
        if state.state == "running" and state.owner and is_alive(state.owner)
    }
    if earlier:
        console.print(f"{len(earlier)} worker(s) of an earlier launch still run; they count as ours.")
    try:
        crew.start(max(1, crew.workers - len(earlier)))
        console.print(
            f"{crew.workers} worker(s) with {crew.threads} thread(s) each; their logs: {crew.place.logs}", markup=False
        )
        with _display(crew, console, states) as show:
            while crew.is_working:
                time.sleep(POLL_SECONDS)
                said = crew.tend()
                show(queue.states(), said)
    except KeyboardInterrupt:
        console.print("stopping the workers ...")
        return True
    finally:
        crew.stop()
    return False


Show = Callable[[Mapping[str, CellState], Sequence[str]], None]


@contextlib.contextmanager
def _display(crew: Crew, console: Console, before: Mapping[str, CellState]) -> Iterator[Show]:
    """A live table on a terminal and in a notebook; elsewhere a line for every event, and one now and then."""
    place, plan = crew.place, crew.plan
    if console.is_terminal or console.is_jupyter:
        with Live(status.view(place, plan, before), console=console, auto_refresh=False) as live:

            def redraw(states: Mapping[str, CellState], said: Sequence[str]) -> None:
                for line in said:
                    live.console.print(line, markup=False)
                live.update(status.view(place, plan, states), refresh=True)

            yield redraw
        return

    known = {cell_id: state.state for cell_id, state in before.items()}
    by_id = {cell.id: cell for cell in plan.cells}
    last_line = time.monotonic()

    def tell(states: Mapping[str, CellState], said: Sequence[str]) -> None:
        nonlocal last_line

        def now() -> str:
            return status.headline(plan, states, status.running_now(place, states))

        def say(line: str) -> None:
            nonlocal last_line
            last_line = time.monotonic()
            console.print(line, markup=False)

        for line in said:
            say(line)
        for cell_id, state in states.items():
            if state.state != known[cell_id]:
                known[cell_id] = state.state
                if state.state != "waiting":
                    error = f": {(state.error or '').splitlines()[0]}" if state.error else ""
                    say(f"{state.state:8} {by_id[cell_id].arm}, seed {by_id[cell_id].seed}{error}   [{now()}]")
        if time.monotonic() - last_line >= HEADLINE_SECONDS:
            say(now())

    yield tell


def _finish(
    place: Place,
    plan: Plan,
    queue: Queue,
    tracker: Tracker,
    console: Console,
    *,
    study: str | Path | Study,
    began: float,
    interrupted: bool,
) -> Outcome:
    queue.reap()
    queue.requeue_killed(limit=MAX_ATTEMPTS)
    states = queue.states()
    numbers = count(states.values())
    again = plan.launch_command + place.home_option
    unsent = tracker.send_unsent(states)
    ended = "KILLED" if interrupted else "FAILED" if numbers["failed"] or numbers["waiting"] else "FINISHED"
    marked = tracker.mark(ended, states)
    results = trouble = None
    if numbers["done"]:
        try:
            results = export(place, plan, study=study if isinstance(study, Study) else None).results
        except InputError as error:
            trouble = error
    outcome = Outcome(
        plan.study,
        plan.version,
        len(plan.cells),
        numbers["done"],
        numbers["failed"],
        results,
        time.time() - began,
        interrupted,
    )
    say = console.print
    if not (console.is_terminal or console.is_jupyter):
        for line in status.lines(place, plan, states):
            say(line, markup=False)
    say(
        f"{outcome.done} of {outcome.cells} cells done, {outcome.failed} failed, in {duration(outcome.seconds)}.",
        markup=False,
    )
    row = queue.failures_in_a_row(began)
    if len(row) >= FAILURES_IN_A_ROW:
        say(
            f"Stopped, since {len(row)} cells failed in a row. "
            f"Read {place.cell(row[-1]) / TRACEBACK_FILE}, mend it, and go on with:",
            markup=False,
        )
        say(f"  {again} --retry-failed", markup=False)
    elif interrupted or numbers["waiting"]:
        say(f"Nothing that was finished is lost. Go on with:\n  {again}", markup=False)
    elif numbers["failed"]:
        say(f"Run the failed cells again with:\n  {again} --retry-failed", markup=False)
    if unsent:
        say(f"{unsent} cell(s) are not in MLflow yet ({tracker.trouble}); the next launch sends them.", markup=False)
    elif not marked:
        say(f"MLflow does not answer ({tracker.trouble}); its parent run does not say how this ended.", markup=False)
    if trouble is not None:
        say(f"The results were not written. {trouble}", markup=False)
    if results is not None:
        say(f"Results: {results}\nReport:  python -m ablations report {plan.command}{place.home_option}", markup=False)
    if (file := sqlite_file(tracking_uri(place.home))) is None or file.is_file():
        say(f"MLflow:  python -m sweeps ui{place.home_option}", markup=False)
    return outcome
