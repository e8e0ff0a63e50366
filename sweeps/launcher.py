"""Launch a study: plan it, start local workers, show how it goes, leave the results table. Used by `python -m sweeps
launch` and from Jupyter."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ablations.studies import Study
from lvlm.errors import InputError
from sweeps import status
from sweeps.amounts import Meter
from sweeps.checks import check_changes, check_making, check_source
from sweeps.crew import Crew
from sweeps.devices import default_workers, usable_gpus
from sweeps.live import shown
from sweeps.plan import DEFAULT_RUNNER, TRACEBACK_FILE, Place, Plan, find_home
from sweeps.planner import describe, make_plan
from sweeps.progress import duration
from sweeps.queue import MAX_ATTEMPTS, Queue, count
from sweeps.read import export
from sweeps.standing import Lookout
from sweeps.storage import StorageDown, choose_storage
from sweeps.tracking import Tracker
from sweeps.tracking_store import keep_uri, sqlite_file, tracking_uri
from sweeps.worker import FAILURES_IN_A_ROW, load_runner

if TYPE_CHECKING:
    from sweeps.cluster import SlurmCrew

POLL_SECONDS = 1.0


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
    pruned: int = 0

    @property
    def is_complete(self) -> bool:
        """Whether every cell of the study is done, or was ended early for others that do better."""
        return self.done + self.pruned == self.cells


def launch(
    study: str | Path | Study,
    *,
    workers: int | None = None,
    overrides: Sequence[str] = (),
    budget: str | None = None,
    home: str | Path | None = None,
    runner: str = DEFAULT_RUNNER,
    retry_failed: bool = False,
    storage: str | None = None,
    new_version: bool = False,
    cluster: str | None = None,
    cluster_options: Sequence[str] = (),
    log_models: bool = False,
) -> Outcome:
    """Run every cell of a study that is not done yet; launching again resumes.

    `study` is a name, the path of a study file or a `Study`. `overrides` are `key=value` texts on its base config; what
    they give lies in a folder of its own (NAME@HASH). `budget` is `default` or `full` (else the environment variable
    BUDGET decides). Cells that failed by an error stay failed unless `retry_failed`; killed ones are taken up again
    from their checkpoint. `storage` is the URL of the database or proxy that keeps the trials (else LVLM_STORAGE, else
    a file in the study's folder). A study whose file was changed since its last launch is an error unless
    `new_version`. With `log_models` MLflow keeps the last model of every cell, as a logged model that
    `mlflow.pyfunc.load_model` loads. Ctrl-C stops the workers and returns; a second one kills them.

    With `cluster` (`slurm`) the workers are jobs, which `cluster_options` (`key=value`) say more about; they run on
    after Ctrl-C, and launching again counts those that are still there.
    """
    slurm = _slurm(cluster, cluster_options)
    if workers is not None and workers < 1:
        raise InputError(f"workers is the number of worker processes, at least 1, not {workers}.")
    began = time.time()
    load_runner(runner)
    plan = make_plan(study, budget=budget, overrides=overrides, runner=runner, meter=Meter(find_home(home)))
    plan = replace(plan, log_models=log_models)
    place = plan.place(home)
    plan.grow(place.folder)
    check_source(plan, place)
    if not new_version:
        check_changes(plan, place)
    if runner == DEFAULT_RUNNER:
        check_making(plan, place)
    left_to_do = [cell for cell in plan.cells if plan.arms_to_propose or not place.is_recorded(cell.id)]
    gpus = usable_gpus(left_to_do) if slurm is None else ()
    workers = workers or default_workers(_left(plan, place), len(gpus), on_cluster=slurm is not None)
    kept = choose_storage(place.folder, plan.study, storage)
    if not kept.is_shared and workers > 1:
        raise InputError(
            f"{kept} is a SQLite file, where two workers can be given one cell. Launch with --workers 1, or keep the "
            "trials in the journal (no --storage), in PostgreSQL or behind Optuna's gRPC proxy."
        )
    queue = Queue(plan, kept)
    queue.states()  # raises for a storage that does not answer, before anything is written
    kept.save()
    keep_uri(place.home)
    plan.save(place)
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

    def finish(*, interrupted: bool = False, parting: Sequence[str] = ()) -> Outcome:
        return _finish(
            place, plan, queue, tracker, console, study=study, began=began, interrupted=interrupted, parting=parting
        )

    if not plan.arms_to_propose and not any(state.state in ("waiting", "running") for state in queue.states().values()):
        return finish()
    crew: Crew | SlurmCrew
    if slurm is None:
        crew = Crew(place, plan, workers=workers, since=began, gpus=gpus)
    else:
        from sweeps.cluster import SlurmCrew

        crew = SlurmCrew(place, plan, workers=workers, since=began, options=slurm)
    try:
        interrupted = _work(crew, queue, console)
    except Exception:  # such as workers that cannot start: what has finished is put down all the same
        finish()
        raise
    return finish(interrupted=interrupted, parting=crew.parting() if interrupted else ())


def _left(plan: Plan, place: Place) -> int:
    """How many cells are left to run, those of arms that a search has still to propose among them."""
    return plan.size - sum(place.is_recorded(cell.id) for cell in plan.cells)


def _slurm(cluster: str | None, options: Sequence[str]) -> dict[str, Any] | None:
    """What is asked of Slurm; None where the workers are processes of this machine."""
    if cluster is None:
        if options:
            raise InputError(f"The cluster option '{options[0]}' is for --cluster slurm, which is not given.")
        return None
    if cluster != "slurm":
        raise InputError(f"cluster is 'slurm', or left away for workers on this machine, not '{cluster}'.")
    from sweeps.cluster import slurm_options  # submitit takes its time

    return slurm_options(options)


def _start_tracking(tracker: Tracker, queue: Queue, console: Console) -> None:
    states = queue.states()
    if not tracker.mark("RUNNING", states) or tracker.send_unsent(states, say=console.print):
        console.print(
            f"MLflow does not answer ({tracker.trouble}). "
            "The sweep runs all the same; what it finds is kept and sent by the next launch.",
            markup=False,
        )


def _work(crew: Crew | SlurmCrew, queue: Queue, console: Console) -> bool:
    """Let the crew work until nothing is left; whether the user interrupted it."""
    states = queue.states()
    if earlier := crew.earlier(states):
        console.print(f"{earlier} worker(s) of an earlier launch still run; they count as ours.")
    try:
        crew.start(crew.workers - earlier)
        for line in crew.about():
            console.print(line, markup=False)
        lookout = Lookout(crew.place, crew.plan)
        with shown(console, lookout.standing(states)) as show:
            away = False
            while crew.is_working(states):
                time.sleep(POLL_SECONDS)
                said = crew.tend()
                try:
                    states = queue.states()
                    said += ["the storage answers again"] if away else []
                    away = False
                except StorageDown as error:
                    said += [] if away else [f"{error} The workers train on."]
                    away = True
                show(lookout.standing(states), said)
        for line in crew.ended(states):
            console.print(line, markup=False)
    except KeyboardInterrupt:
        if not crew.keeps_on:
            console.print("stopping the workers ...")
        return True
    finally:
        crew.stop()
    return False


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
    parting: Sequence[str],
) -> Outcome:
    """Put down what there is. `parting` says how a sweep that goes on without this launcher is found again."""
    queue.reap()
    queue.requeue_killed(limit=MAX_ATTEMPTS)
    states = queue.states()
    numbers = count(states.values())
    again = plan.launch_command + place.home_option
    unsent = tracker.send_unsent(states)
    is_left = bool(numbers["waiting"] or plan.arms_to_propose)
    ended = "KILLED" if interrupted else "FAILED" if numbers["failed"] or is_left else "FINISHED"
    ended = "RUNNING" if parting else ended
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
        plan.size,
        numbers["done"],
        numbers["failed"],
        results,
        time.time() - began,
        interrupted,
        numbers["pruned"],
    )
    say = console.print
    if not (console.is_terminal or console.is_jupyter):
        standing = Lookout(place, plan).standing(states)
        for line in [*status.summary(standing), *status.worker_lines(standing), *status.failure_lines(standing)]:
            say(line, markup=False)
    say(
        f"{outcome.done} of {outcome.cells} cells done, {outcome.failed} failed, "
        f"{f'{outcome.pruned} pruned, ' if outcome.pruned else ''}in {duration(outcome.seconds)}.",
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
    elif parting:
        for line in parting:
            say(line, markup=False)
    elif interrupted or is_left:
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
