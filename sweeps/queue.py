"""The queue of cells over Optuna's trials: each cell is claimed by one worker at a time, a dead worker's cell comes
back. Used by `worker`, `launch`, `status`.

A trial is one attempt at a cell. Attempts only ever end once (COMPLETE, PRUNED or FAIL), so a worker that lost its
lease learns of it at its next heartbeat. Two processes may write the same next attempt at the same moment; the first
one written counts for everybody.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from optuna.trial import FrozenTrial, TrialState

from sweeps.identity import is_alive, owner
from sweeps.plan import Plan, PlannedCell
from sweeps.space import distributions, waiting_trial
from sweeps.storage import Storage, Trials

LEASE_SECONDS = 60.0
"""A cell whose worker has not been heard of for this long, by whoever waits for it, is given to another one; on one
machine a dead process is noticed at once."""
SILENT_LEASES = 10
"""So many leases without a heartbeat, by the clock of whoever looks: lost for one that has only just come, too. Clocks
of two machines differ less than that."""
BEAT_SECONDS = 5.0
UNNAMED_SECONDS = 10.0
"""Between claiming a cell and writing down who did lie milliseconds; after this long that worker died in between."""
MAX_ATTEMPTS = 10
"""A cell whose workers are killed this often (out of memory?) is left alone until the next launch."""

State = Literal["waiting", "running", "done", "failed", "pruned"]
Order = Callable[[list[PlannedCell]], list[PlannedCell]]


@dataclass(frozen=True)
class Claim:
    """The right to run one cell until the lease ends."""

    cell: PlannedCell
    attempt: int
    handle: int


@dataclass(frozen=True)
class CellState:
    """How a cell stands. `started` and `finished` are seconds since 1970; `found` says that its record lay there
    already, so that it took no time; `diverged` that it failed by a loss that is not finite."""

    state: State
    attempt: int = 0
    owner: dict[str, Any] | None = None
    started: float | None = None
    finished: float | None = None
    error: str | None = None
    found: bool = False
    diverged: bool = False
    reported: Mapping[int, float] = field(default_factory=dict)
    """Step -> score on the `tune` split, where the study prunes."""

    @property
    def seconds(self) -> float | None:
        """How long a finished cell took; None before its end, and where there was nothing to run."""
        if self.state != "done" or self.found or self.started is None or self.finished is None:
            return None
        return self.finished - self.started


class Queue:
    """The cells of one plan among the trials of its study; to those of a search others are added meanwhile. Every
    method raises `StorageDown` where the trials cannot be reached, and can be called again."""

    def __init__(self, plan: Plan, storage: Storage, *, lease_seconds: float = LEASE_SECONDS) -> None:
        self.plan = plan
        self.lease_seconds = lease_seconds
        self.storage = storage
        self._trials = Trials(storage)
        self._heard: dict[int, tuple[Any, float]] = {}
        self._done: dict[str, CellState] = {}
        """Cells whose trial is COMPLETE, which does not change any more: a sweep that is nearly done asks no more of a
        worker than one that has begun."""
        self._settled: set[int] = set()
        self._cells: dict[str, PlannedCell] = {}
        self._position: dict[str, int] = {}
        self._take_in()

    def _take_in(self) -> None:
        """Look for cells that have been proposed since."""
        self.plan.grow(self.storage.folder)
        if len(self._cells) != len(self.plan.cells):
            self._cells = {cell.id: cell for cell in self.plan.cells}
            self._position = {cell.id: number for number, cell in enumerate(self.plan.cells)}

    # Planning

    def add_missing(self) -> int:
        """Write every cell that has no trial yet as WAITING; how many were added. Doing it twice adds nothing."""
        known = {**self._open(), **self._done}
        missing = [cell for cell in self.plan.cells if cell.id not in known]
        self._add(missing, before=[None] * len(missing))
        return len(missing)

    def requeue_killed(self, *, limit: int | None = None) -> list[str]:
        """Give cells whose last attempt was killed or interrupted a next one; their ids. Code errors stay failed."""
        return self._requeue(lambda trial: "error" not in trial.user_attrs, limit=limit)

    def requeue_failed(self) -> list[str]:
        """Give cells that failed with an error a next attempt; their ids."""
        return self._requeue(lambda trial: "error" in trial.user_attrs, limit=None)

    def _requeue(self, wanted: Callable[[FrozenTrial], bool], *, limit: int | None) -> list[str]:
        ended = {
            cell_id: trial
            for cell_id, trial in self._open().items()
            if trial.state == TrialState.FAIL and wanted(trial) and (limit is None or self._kills(cell_id) < limit)
        }
        cells = [self._cells[cell_id] for cell_id in ended]
        self._add(cells, before=list(ended.values()))
        return list(ended)

    def _add(self, cells: Sequence[PlannedCell], *, before: Sequence[FrozenTrial | None]) -> None:
        """Write the next attempt at each cell, after the one `before`."""
        if not cells:
            return
        space = distributions(self.plan)
        for cell, last in zip(cells, before, strict=True):
            attempt = 1 if last is None else last.user_attrs["attempt"] + 1
            version = self.plan.version
            self._trials.add(waiting_trial(cell, attempt=attempt, space=space, version=version, before=last))

    # Working

    def claim(self, order: Order = lambda cells: cells) -> Claim | None:
        """Take the first waiting cell in `order` for this process; None when nothing waits."""
        self.reap()
        self.requeue_killed(limit=MAX_ATTEMPTS)
        latest = self._open()
        waiting = [cell_id for cell_id, trial in latest.items() if trial.state == TrialState.WAITING]
        for cell in order([self._cells[cell_id] for cell_id in sorted(waiting, key=self._position.__getitem__)]):
            handle = self._trials.handle(latest[cell.id])
            if self._trials.claim(handle) and self._trials.note(handle, "owner", owner()):
                claim = Claim(cell, latest[cell.id].user_attrs["attempt"], handle)
                if self.beat(claim):
                    return claim
        return None

    def beat(self, claim: Claim) -> bool:
        """Renew the lease. False when the cell has been given to somebody else: stop at once."""
        return self._trials.note(claim.handle, "beat", round(time.time(), 2))

    def complete(self, claim: Claim, value: float, *, found: bool = False) -> bool:
        """The cell is done; `value` is the primary metric (NaN when it could not be computed). `found`: its record lay
        there already, so that the time of this attempt says nothing."""
        if found:
            self._trials.note(claim.handle, "found", True)
        return self._trials.finish(claim.handle, TrialState.COMPLETE, [value] if math.isfinite(value) else None)

    def fail(self, claim: Claim, error: str, traceback: str, *, diverged: bool = False) -> bool:
        """The cell failed by an error of code or data: not repeated unless asked for. `diverged`: its loss was not
        finite, which is an outcome of its arm."""
        if diverged:
            self._trials.note(claim.handle, "diverged", True)
        self._trials.note(claim.handle, "traceback", traceback[-8000:])
        self._trials.note(claim.handle, "error", error[:1000])
        return self._trials.finish(claim.handle, TrialState.FAIL)

    def report(self, claim: Claim, step: int, score: float) -> bool:
        """Write down a score on the `tune` split of a cell that goes on. False when it has been given to somebody
        else."""
        return self._trials.report(claim.handle, step, score)

    def keep(self, claim: Claim, key: str, value: Any) -> bool:
        """Write down what a pruner wants to find again at this attempt."""
        return self._trials.keep(claim.handle, key, value)

    def prune(self, claim: Claim, why: str) -> bool:
        """The cell is ended early, as others with its seed do better: it has no result, and is not repeated."""
        self._trials.note(claim.handle, "pruned", why)
        return self._trials.finish(claim.handle, TrialState.PRUNED)

    def attempts(self, seed: int) -> dict[str, FrozenTrial | None]:
        """Arm -> the attempt that counts of its cell with this seed, in the order of the arms; None where there is
        none."""
        trials = sorted(self._trials.trials(), key=lambda trial: (trial.user_attrs["attempt"], -trial.number))
        by_cell = {trial.user_attrs["cell_id"]: trial for trial in trials}
        return {cell.arm: by_cell.get(cell.id) for cell in self.plan.cells if cell.seed == seed}

    def release(self, claim: Claim) -> bool:
        """Give an unfinished cell back, to be continued from its checkpoint. Does not count as a kill."""
        self._trials.note(claim.handle, "interrupted", True)
        return self._trials.finish(claim.handle, TrialState.FAIL)

    def reap(self) -> list[str]:
        """End the attempts of workers that died or fell silent; the ids of their cells."""
        reaped = []
        for cell_id, trial in self._open().items():
            is_lost = trial.state == TrialState.RUNNING and self._is_lost(trial)
            if is_lost and self._trials.finish(self._trials.handle(trial), TrialState.FAIL):
                reaped.append(cell_id)
        return reaped

    def _is_lost(self, trial: FrozenTrial) -> bool:
        now = time.time()
        who = trial.user_attrs.get("owner")
        if who is None:
            return now - _seconds(trial.datetime_start, now) > UNNAMED_SECONDS
        if is_alive(who) is False:
            return True
        beat = trial.user_attrs.get("beat")
        heard = float(beat or _seconds(trial.datetime_start, now))
        return now - heard > SILENT_LEASES * self.lease_seconds or self._silence(trial, beat) > self.lease_seconds

    def _silence(self, trial: FrozenTrial, beat: Any) -> float:
        """For how many seconds this process has seen one and the same heartbeat, which does not depend on what two
        machines take the time to be. While the storage was away nobody could be heard: then it begins anew."""
        handle, now = self._trials.handle(trial), time.monotonic()
        known, since = self._heard.get(handle, (None, now))
        if known != beat or since < self._trials.back_since:
            since = now
        self._heard[handle] = (beat, since)
        return now - since

    # Reading

    def states(self) -> dict[str, CellState]:
        """How every cell of the plan stands; a cell that has no trial yet is waiting."""
        found = {cell_id: self._state(cell_id, trial) for cell_id, trial in self._open().items()}
        return {**dict.fromkeys(self._cells, CellState("waiting")), **self._done, **found}

    def _state(self, cell_id: str, trial: FrozenTrial) -> CellState:
        names: dict[TrialState, State] = {
            TrialState.WAITING: "waiting",
            TrialState.COMPLETE: "done",
            TrialState.RUNNING: "running",
            TrialState.PRUNED: "pruned",
        }
        state = names.get(trial.state, "failed")
        error = trial.user_attrs.get("error")
        if trial.state == TrialState.FAIL and error is None:
            # Killed: somebody takes it up again, unless that has happened too often.
            exhausted = self._kills(cell_id) >= MAX_ATTEMPTS
            state, error = ("failed", f"its worker was killed {MAX_ATTEMPTS} times") if exhausted else ("waiting", None)
        if trial.state == TrialState.RUNNING and self._is_lost(trial):
            state = "waiting"
        return CellState(
            state,
            attempt=trial.user_attrs["attempt"],
            owner=trial.user_attrs.get("owner"),
            started=trial.datetime_start.timestamp() if trial.datetime_start else None,
            finished=trial.datetime_complete.timestamp() if trial.datetime_complete else None,
            error=error,
            found=bool(trial.user_attrs.get("found")),
            diverged=bool(trial.user_attrs.get("diverged")),
            reported=trial.intermediate_values,
        )

    def failures_in_a_row(self, since: float) -> list[str]:
        """Ids of the cells that failed by an error after `since` with no success in between, latest last. Cells that
        diverged are left out: they say something about their arm and nothing about the others."""
        states = {cell_id: self._state(cell_id, trial) for cell_id, trial in self._open().items()}
        if not any(state.state == "failed" for state in states.values()):
            return []
        ended = sorted(
            (state.finished or 0.0, cell_id, state.state)
            for cell_id, state in {**self._done, **states}.items()
            if state.state in ("done", "failed", "pruned") and not state.diverged and (state.finished or 0.0) > since
        )
        row: list[str] = []
        for _, cell_id, state in ended:
            row = [*row, cell_id] if state == "failed" else []
        return row

    def _open(self) -> dict[str, FrozenTrial]:
        """The attempt that counts, for every cell of the plan that has one and is not done: the highest, and of several
        equal ones the first written."""
        latest: dict[str, FrozenTrial] = {}
        trials = self._trials.trials()
        self._take_in()
        for trial in trials:
            if trial.number in self._settled:
                continue
            cell_id = trial.user_attrs.get("cell_id")
            if cell_id not in self._cells and self.plan.search:
                continue  # of an arm whose proposal is not seen from here yet, perhaps
            if cell_id not in self._cells or cell_id in self._done:
                self._settled.add(trial.number)  # of another version, or an attempt beside the one that got there
            elif trial.state == TrialState.COMPLETE:
                self._settled.add(trial.number)
                self._done[cell_id] = self._state(cell_id, trial)
                latest.pop(cell_id, None)
            else:
                known = latest.get(cell_id)
                if known is None or trial.user_attrs["attempt"] > known.user_attrs["attempt"]:
                    latest[cell_id] = trial
        return latest

    def _kills(self, cell_id: str) -> int:
        return sum(
            trial.state == TrialState.FAIL and "error" not in trial.user_attrs and "interrupted" not in trial.user_attrs
            for trial in self._trials.trials()
            if trial.user_attrs.get("cell_id") == cell_id
        )


def count(states: Iterable[CellState]) -> dict[State, int]:
    """How many cells stand how."""
    numbers: dict[State, int] = {"waiting": 0, "running": 0, "done": 0, "failed": 0, "pruned": 0}
    for state in states:
        numbers[state.state] += 1
    return numbers


def _seconds(moment: Any, default: float) -> float:
    return float(moment.timestamp()) if moment is not None else default
