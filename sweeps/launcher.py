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
from sweeps.queue import MAX_ATTEMPTS, CellState, Queue, count
from sweeps.read import export
from sweeps.standing import Lookout
from sweeps.storage import NOT_SHARED, Storage, StorageDown, choose_storage
from sweeps.tracking import Tracker
from sweeps.tracking_store import is_there, keep_uri
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
    _check(plan, place, new_version=new_version)
    left_to_do = [cell for cell in plan.cells if plan.arms_to_propose or not place.is_recorded(cell.id)]
    gpus = usable_gpus(left_to_do) if slurm is None else ()
    workers = workers or default_workers(_left(plan, place), len(gpus), on_cluster=slurm is not None)
    kept = choose_storage(place.folder, plan.study, storage)
    queue = _queue(plan, place, kept, workers=workers, retry_failed=retry_failed)
    console = Console(highlight=False, soft_wrap=True)
    for line in describe(plan, queue.states(), workers=workers):
        console.print(line, markup=False)
    declared = study if isinstance(study, Study) else None
    begun = _Launch(place, plan, queue, Tracker(place, plan), console, declared, began)
    begun.start_tracking()
    if not plan.arms_to_propose and not any(state.state in ("waiting", "running") for state in queue.states().values()):
        return begun.finish()
    crew: Crew | SlurmCrew
    if slurm is None:
        crew = Crew(place, plan, workers=workers, since=began, gpus=gpus)
    else:
        from sweeps.cluster import SlurmCrew

        crew = SlurmCrew(place, plan, workers=workers, since=began, options=slurm)
    try:
        interrupted = begun.work(crew)
    except Exception:  # such as workers that cannot start: what has finished is put down all the same
        begun.finish()
        raise
    return begun.finish(interrupted=interrupted, parting=crew.parting() if interrupted else ())


def _check(plan: Plan, place: Place, *, new_version: bool) -> None:
    """Raise for whatever would make the launch a mistake, as far as it can be seen from here."""
    check_source(plan, place)
    if not new_version:
        check_changes(plan, place)
    if plan.runner == DEFAULT_RUNNER:
        check_making(plan, place)


def _queue(plan: Plan, place: Place, kept: Storage, *, workers: int, retry_failed: bool) -> Queue:
    """The plan and its cells, written down for workers to find."""
    if not kept.is_shared and workers > 1:
        raise InputError(f"The trials of {workers} workers cannot be kept in {kept}. {NOT_SHARED}")
    queue = Queue(plan, kept)
    queue.states()  # raises for a storage that does not answer, before anything is written
    with kept.occupied():
        pass  # raises where another launch's worker has it to itself
    kept.save()
    keep_uri(place.home)
    plan.save(place)
    queue.add_missing()
    queue.reap()
    queue.requeue_killed()
    if retry_failed:
        queue.requeue_failed()
    return queue


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


@dataclass(frozen=True)
class _Launch:
    """A launch whose cells are in the queue. `study` is None where the plan names its file."""

    place: Place
    plan: Plan
    queue: Queue
    tracker: Tracker
    console: Console
    study: Study | None
    began: float

    def start_tracking(self) -> None:
        """Show the sweep in MLflow, and send what is missing there."""
        states = self.queue.states()
        if not self.tracker.mark("RUNNING", states) or self.tracker.send_unsent(states, say=self._say):
            self._say(
                f"MLflow does not answer ({self.tracker.trouble}). "
                "The sweep runs all the same; what it finds is kept and sent by the next launch."
            )

    def work(self, crew: Crew | SlurmCrew) -> bool:
        """Let the crew work until nothing is left; whether the user interrupted it."""
        states = self.queue.states()
        if earlier := crew.earlier(states):
            self._say(f"{earlier} worker(s) of an earlier launch still run; they count as ours.")
        try:
            crew.start(crew.workers - earlier)
            self._say(*crew.about())
            states = self._watch(crew, states)
            self._say(*crew.ended(states))
        except KeyboardInterrupt:
            if not crew.keeps_on:
                self._say("stopping the workers ...")
            return True
        finally:
            crew.stop()
        return False

    def _watch(self, crew: Crew | SlurmCrew, states: dict[str, CellState]) -> dict[str, CellState]:
        """Show how the sweep stands until the crew has ended; how it stood then."""
        lookout, away = Lookout(self.place, self.plan), False
        with shown(self.console, lookout.standing(states)) as show:
            while crew.is_working(states):
                time.sleep(POLL_SECONDS)
                said = crew.tend()
                try:
                    states = self.queue.states()
                    said += ["the storage answers again"] if away else []
                    away = False
                except StorageDown as error:
                    said += [] if away else [f"{error} The workers train on."]
                    away = True
                show(lookout.standing(states), said)
        return states

    def finish(self, *, interrupted: bool = False, parting: Sequence[str] = ()) -> Outcome:
        """Put down what there is. `parting` says how a sweep that goes on without this launcher is found again."""
        self.queue.reap()
        self.queue.requeue_killed(limit=MAX_ATTEMPTS)
        states = self.queue.states()
        numbers = count(states.values())
        unsent = self.tracker.send_unsent(states)
        is_left = bool(numbers["waiting"] or self.plan.arms_to_propose)
        ended = "KILLED" if interrupted else "FAILED" if numbers["failed"] or is_left else "FINISHED"
        is_marked = self.tracker.mark("RUNNING" if parting else ended, states)
        results = trouble = None
        if numbers["done"]:
            try:
                results = export(self.place, self.plan, study=self.study).results
            except InputError as error:
                trouble = error
        outcome = Outcome(
            study=self.plan.study,
            version=self.plan.version,
            cells=self.plan.size,
            done=numbers["done"],
            failed=numbers["failed"],
            results=results,
            seconds=time.time() - self.began,
            interrupted=interrupted,
            pruned=numbers["pruned"],
        )
        self._tell(outcome, states)
        self._say(*self._how_to_go_on(outcome, is_left=is_left, parting=parting))
        if unsent:
            self._say(f"{unsent} cell(s) are not in MLflow yet ({self.tracker.trouble}); the next launch sends them.")
        elif not is_marked:
            self._say(f"MLflow does not answer ({self.tracker.trouble}); its parent run does not say how this ended.")
        if trouble is not None:
            self._say(f"The results were not written. {trouble}")
        self._say(*self._where_to_look(outcome))
        return outcome

    def _tell(self, outcome: Outcome, states: dict[str, CellState]) -> None:
        """How the sweep ended; in a log with what a terminal shows already."""
        if not (self.console.is_terminal or self.console.is_jupyter):
            standing = Lookout(self.place, self.plan).standing(states)
            self._say(*status.summary(standing), *status.worker_lines(standing), *status.failure_lines(standing))
        pruned = f"{outcome.pruned} pruned, " if outcome.pruned else ""
        self._say(
            f"{outcome.done} of {outcome.cells} cells done, {outcome.failed} failed, "
            f"{pruned}in {duration(outcome.seconds)}."
        )

    def _how_to_go_on(self, outcome: Outcome, *, is_left: bool, parting: Sequence[str]) -> Sequence[str]:
        again = self.plan.launch_command + self.place.home_option
        row = self.queue.failures_in_a_row(self.began)
        if len(row) >= FAILURES_IN_A_ROW:
            return [
                f"Stopped, since {len(row)} cells failed in a row. "
                f"Read {self.place.cell(row[-1]) / TRACEBACK_FILE}, mend it, and go on with:",
                f"  {again} --retry-failed",
            ]
        if parting:
            return parting
        if outcome.interrupted or is_left:
            return [f"Nothing that was finished is lost. Go on with:\n  {again}"]
        return [f"Run the failed cells again with:\n  {again} --retry-failed"] if outcome.failed else []

    def _where_to_look(self, outcome: Outcome) -> list[str]:
        lines = []
        if outcome.results is not None:
            report = f"python -m ablations report {self.plan.command}{self.place.home_option}"
            lines.append(f"Results: {outcome.results}\nReport:  {report}")
        if is_there(self.place.home):
            lines.append(f"MLflow:  python -m sweeps ui{self.place.home_option}")
        return lines

    def _say(self, *lines: str) -> None:
        for line in lines:
            self.console.print(line, markup=False)
