"""A worker: claims a cell, runs it, sends it to the tracker, marks it done; again until nothing is left. Started by
`sweeps.launcher` or by hand."""

from __future__ import annotations

import contextlib
import errno
import importlib
import math
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from lvlm.config import RunConfig
from lvlm.errors import Diverged, InputError
from lvlm.records import RunRecord, write_text
from sweeps.exits import EXIT_DISK_FULL, EXIT_DONE, EXIT_FENCED, EXIT_INTERRUPTED, EXIT_STOPPED
from sweeps.plan import DEFAULT_RUNNER, TRACEBACK_FILE, Place, Plan, PlannedCell
from sweeps.progress import PROGRESS_FILE, ProgressFile, duration, read_progress
from sweeps.pruning import Pruned, Pruning
from sweeps.queue import BEAT_SECONDS, CellState, Claim, Queue, State
from sweeps.search import Proposer
from sweeps.stages import in_training, without_waiting
from sweeps.storage import StorageDown
from sweeps.tracking import Tracker
from sweeps.usage import Usage

FAILURES_IN_A_ROW = 3
"""After so many failed cells with no success in between the fault is probably everywhere: stop before the whole grid
is burnt. Cells that diverged do not count."""
POLL_SECONDS = 2.0
PATIENCE_SECONDS = 3600.0
"""A worker with nothing to train waits so long for a storage that does not answer."""
LEAST_FREE_BYTES = 1 << 20

Runner = Callable[..., RunRecord]
Answer = TypeVar("Answer")


class Interrupted(BaseException):
    """SIGTERM or Ctrl-C: give the cell back and leave."""


class DiskFull(Exception):
    """There is no room left to write to, which is no fault of the cell."""


class Worker:
    """One process that works on a plan."""

    def __init__(self, plan: Plan, place: Place, *, since: float | None = None) -> None:
        """`since` (seconds since 1970) is when the launch began: failures before it do not stop this worker."""
        self.plan = plan
        self.place = place
        self.since = time.time() if since is None else since
        self.queue = Queue(plan, place.storage)
        self.tracker = Tracker(place, plan)
        self.proposer = Proposer(plan, place, self.queue) if plan.search else None
        self._runner: Runner | None = None
        self._leaving = False

    def leave(self) -> None:
        """Give the cell back as soon as the step of training that is under way is done and its checkpoint saved."""
        self._leaving = True

    def work(self) -> int:
        """Work until every cell is done or has failed; the exit status."""
        try:
            with self.place.storage.occupied():
                return self._work()
        except (Interrupted, KeyboardInterrupt):
            _say("interrupted: the cell is given back; the next launch continues it from its last checkpoint")
            return EXIT_INTERRUPTED
        except DiskFull as error:
            _say(f"stopped: {error}")
            return EXIT_DISK_FULL

    def _work(self) -> int:
        self._answer(self.queue.add_missing)
        while True:
            if self._leaving:
                raise Interrupted
            failed = self._answer(lambda: self.queue.failures_in_a_row(self.since))
            if len(failed) >= FAILURES_IN_A_ROW:
                _say(
                    f"stopped: {len(failed)} cells failed in a row; see {self.place.cell(failed[-1]) / TRACEBACK_FILE}"
                )
                return EXIT_STOPPED
            claim = self._answer(lambda: self.queue.claim(self._order))
            if claim is not None:
                self._run_cell(claim)
            elif self.proposer is not None and self._answer(self.proposer.advance):
                continue
            elif any(state.state in ("running", "waiting") for state in self._answer(self.queue.states).values()):
                time.sleep(POLL_SECONDS)  # another worker may die and its cell come back
            else:
                return EXIT_DONE

    def _order(self, waiting: list[PlannedCell]) -> list[PlannedCell]:
        states = self.queue.states()
        running: dict[str, str | None] = {}
        for cell_id, state in states.items():
            if state.state == "running":
                progress = read_progress(self.place.cell(cell_id))
                running[cell_id] = progress.stage if progress else None
        done = [cell_id for cell_id, state in states.items() if state.state == "done"]
        return without_waiting(waiting, in_training(running, self.plan.cells, done))

    def _run_cell(self, claim: Claim) -> None:
        cell, started = claim.cell, time.monotonic()
        self.place.cell(cell.id).mkdir(parents=True, exist_ok=True)
        found = self.place.is_recorded(cell.id)
        _say(f"{cell.id}  {cell.arm}, seed {cell.seed}: attempt {claim.attempt}")
        try:
            # The tracker comes before COMPLETE, so that a crash in between is mended by the next attempt.
            with _Heartbeat(self.queue, claim):
                if not found:
                    self.tracker.begin(cell)
                result = self._result(claim)
                error = result.message if isinstance(result, _Failure) else None
                state: State = "pruned" if isinstance(result, Pruned) else "failed" if error is not None else "done"
                self._track(cell, CellState(state, error=error))
        except (Interrupted, KeyboardInterrupt, DiskFull):
            with contextlib.suppress(StorageDown):  # the cell is then taken for one whose worker was killed
                self.queue.release(claim)
            self.tracker.interrupt(cell)
            raise
        if isinstance(result, Pruned):
            why = str(result)
            _say(f"{cell.id}  pruned {why}")
            self._answer(lambda: self.queue.prune(claim, why))
        elif isinstance(result, RunRecord):
            score = result.scores.get(self.plan.primary, math.nan)
            if self._answer(lambda: self.queue.complete(claim, score, found=found)):
                _say(f"{cell.id}  done in {duration(time.monotonic() - started)}, {self.plan.primary} {score:.1f}")
            else:
                _say(f"{cell.id}: another worker has taken this cell over; its record is kept")
        else:
            _say(f"{cell.id}  failed: {result.message}")
            failure = result
            self._answer(lambda: self.queue.fail(claim, failure.message, failure.traceback, diverged=failure.diverged))

    def _answer(self, ask: Callable[[], Answer]) -> Answer:
        """What the storage answers, as soon as it does."""
        since = time.monotonic()
        told = False
        while True:
            try:
                answer = ask()
            except StorageDown as error:
                if time.monotonic() - since > PATIENCE_SECONDS:
                    raise
                if not told:
                    _say(f"waiting: {error}")
                told = True
                time.sleep(POLL_SECONDS)
            else:
                if told:
                    _say("the storage answers again")
                return answer

    def _result(self, claim: Claim) -> RunRecord | _Failure | Pruned:
        folder = self.place.cell(claim.cell.id)
        try:
            record = self._record(claim)
        except Pruned as end:
            return end
        except (Exception, SystemExit) as error:  # whatever the run raises is its cell's failure, not the sweep's
            if is_disk_full(error, folder):
                raise DiskFull(
                    f"there is no room left on the disk of {folder} ({error}). Nothing that was finished is lost; make "
                    "room and launch again"
                ) from error
            text = traceback.format_exc()
            write_text(folder / TRACEBACK_FILE, text)
            message = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
            return _Failure(message, text, diverged=isinstance(error, Diverged))
        finally:
            (folder / PROGRESS_FILE).unlink(missing_ok=True)
        (folder / TRACEBACK_FILE).unlink(missing_ok=True)
        return record

    def _record(self, claim: Claim) -> RunRecord:
        cell, folder = claim.cell, self.place.cell(claim.cell.id)
        if self.place.is_recorded(cell.id):  # finished, and then killed before its trial said so
            return RunRecord.load(folder)
        if self._runner is None:
            self._runner = load_runner(self.plan.runner)
        config = shared_features(cell.run_config())
        options = {"spare_stages": self._needed_stages} if self.plan.runner == DEFAULT_RUNNER else {}
        with Usage(folder):
            return self._runner(config, folder, home=self.place.home, on_progress=self._listener(claim), **options)

    def _listener(self, claim: Claim) -> Callable[[Mapping[str, Any]], None]:
        folder = self.place.cell(claim.cell.id)
        tell = ProgressFile(folder)
        prune = Pruning(self.plan, self.queue, claim, folder) if self.plan.search.get("prune") else None

        def listen(event: Mapping[str, Any]) -> None:
            tell(event)
            if prune is not None:
                with contextlib.suppress(StorageDown):  # whoever cannot be compared trains on
                    prune(event)
            if self._leaving and event.get("kind") == "step":  # the trainer keeps a step that it has told of
                raise Interrupted

        return listen

    def _needed_stages(self) -> set[str]:
        from sweeps.cache import needed_stages

        return needed_stages(self.place.home)

    def _track(self, cell: PlannedCell, state: CellState) -> None:
        states = {**self._answer(self.queue.states), cell.id: state}
        if not self.tracker.send(cell, states):
            _say(f"{cell.id}: MLflow does not answer ({self.tracker.trouble}); the next launch sends this cell")


def shared_features(config: RunConfig) -> RunConfig:
    """`feature_cache: auto` weighs one run alone; in a study the cells share their features, so keeping them pays."""
    if config.compute.feature_cache != "auto":
        return config
    return config.model_copy(update={"compute": config.compute.model_copy(update={"feature_cache": "on"})})


@dataclass(frozen=True)
class _Failure:
    message: str
    traceback: str
    diverged: bool


class _Heartbeat:
    """Renews the lease in a thread while the block runs; ends the process when the cell has been given to another
    worker."""

    def __init__(self, queue: Queue, claim: Claim, *, every_seconds: float = BEAT_SECONDS) -> None:
        self._queue, self._claim, self._every = queue, claim, every_seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def _run(self) -> None:
        told = False
        while not self._over.wait(self._every):
            try:
                kept = self._queue.beat(self._claim)
                if told:
                    _say("heartbeat: the storage answers again")
                told = False
            except Exception as error:  # nobody can take the cell over while the storage is away: train on
                if not told:
                    _say(f"heartbeat: {error}")
                told = True
                continue
            if not kept and not self._over.is_set():
                _say(f"{self._claim.cell.id}: the lease is lost, another worker has this cell; this one stops here")
                os._exit(EXIT_FENCED)

    def __enter__(self) -> _Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def load_runner(name: str) -> Runner:
    """The function behind `module:function`."""
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # the module is the user's Python: any fault in it is theirs to mend
        raise InputError(
            f"The runner '{name}' cannot be loaded ({type(error).__name__}: {error}). "
            f"It is given as module:function, such as {DEFAULT_RUNNER}."
        ) from error
    if not callable(found):
        raise InputError(f"The runner '{name}' is no function but of type {type(found).__name__}.")
    return found  # type: ignore[no-any-return]


def work(place: Place, *, version: str | None = None, since: float | None = None) -> int:
    """Work on a study's current plan (or a version of it) until it is done; what `python -m sweeps worker` calls.

    SIGTERM gives the cell back at once, SIGUSR2 (Slurm's, a while before the end) after the step that is under way.
    """
    worker = Worker(Plan.load(place, version), place, since=since)

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise Interrupted

    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGUSR2, lambda *_: worker.leave())
    return worker.work()


def is_disk_full(error: BaseException, folder: Path) -> bool:
    """Whether a run failed since nothing more can be written; torch and safetensors raise errors of their own then."""
    chain: BaseException | None = error
    while chain is not None:
        full = isinstance(chain, OSError) and chain.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left on device" in str(chain):
            return True
        chain = chain.__cause__ or chain.__context__
    return shutil.disk_usage(folder).free < LEAST_FREE_BYTES


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)
