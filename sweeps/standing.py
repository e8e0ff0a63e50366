"""How a sweep stands, in numbers: its cells, what runs on which machine, the best arm so far, where the time goes. Read
from the storage and the run folders; drawn by `sweeps.status` and `sweeps.panel`."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from lvlm.config import STAGES
from lvlm.errors import InputError
from lvlm.records import RunRecord
from sweeps.plan import TRACEBACK_FILE, Place, Plan, PlannedCell
from sweeps.progress import Progress, read_progress
from sweeps.queue import CellState, Queue, State, count
from sweeps.storage import StorageDown

PHASES = {"evaluate": "evaluation", "shared stages": "shared stages", "save": "saving"}
"""Phases of a run record under other names; its `train/STAGE` are together the training."""
TRACKING = "tracking"
"""What a cell took beside its run: the tracker, the storage, and the start of its worker."""
LEAST_SHARE = 0.01
"""Smaller shares of the time are told together."""


@dataclass(frozen=True)
class Best:
    """The arm with the highest mean of an objective, over `n` of its `seeds` that have finished."""

    objective: str
    arm: str
    mean: float
    n: int
    seeds: int


@dataclass(frozen=True)
class Working:
    """A worker and the cell that it holds. `pid` is None just after it took the cell."""

    machine: str
    pid: int | None
    cell: PlannedCell
    started: float | None
    doing: str


@dataclass(frozen=True)
class Finished:
    """What the record of a finished cell says: its scores, and its seconds by phase."""

    scores: Mapping[str, float]
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Standing:
    """One look at a sweep. `at` is when, in seconds since 1970; `trouble` says why it could not be seen anew since."""

    place: Place
    plan: Plan
    states: Mapping[str, CellState]
    progress: Mapping[str, Progress]
    finished: Mapping[str, Finished]
    at: float
    trouble: str = ""

    @cached_property
    def cells(self) -> list[PlannedCell]:
        """The cells that the storage told of; a search may have added others since."""
        return [cell for cell in self.plan.cells if cell.id in self.states]

    @property
    def is_over(self) -> bool:
        """Whether nothing runs, nothing waits and a search has no arm left to choose."""
        return not (self.numbers["running"] or self.numbers["waiting"] or self.plan.arms_to_propose)

    @cached_property
    def numbers(self) -> dict[State, int]:
        """How many cells stand how."""
        return count(self.states.values())

    @cached_property
    def arms(self) -> dict[str, list[PlannedCell]]:
        """The cells of every arm, in the order of the design."""
        found: dict[str, list[PlannedCell]] = {}
        for cell in self.cells:
            found.setdefault(cell.arm, []).append(cell)
        return found

    @cached_property
    def arm_states(self) -> dict[str, State]:
        """An arm is done when all its cells are; one that runs, failed or was pruned gives its arm that name, in this
        order."""
        found: dict[str, State] = {}
        for arm, cells in self.arms.items():
            there = {self.states[cell.id].state for cell in cells}
            named: tuple[State, ...] = ("running", "failed", "pruned", "waiting")
            found[arm] = next((state for state in named if state in there), "done")
        return found

    def score(self, cell: PlannedCell, objective: str | None = None) -> float | None:
        """The objective (default: the study's primary outcome) of a finished cell; None before, and where it could not
        be computed."""
        found = self.finished.get(cell.id)
        return found.scores.get(objective or self.plan.primary) if found else None

    def scores(self, arm: str, objective: str | None = None) -> list[float]:
        """The objective of the arm's finished seeds."""
        return [score for cell in self.arms[arm] if (score := self.score(cell, objective)) is not None]

    def best(self, objective: str) -> Best | None:
        """The best arm so far, pruned ones left out; None before the first cell has finished."""
        found = [
            Best(objective, arm, statistics.fmean(scores), len(scores), len(cells))
            for arm, cells in self.arms.items()
            if self.arm_states[arm] != "pruned" and (scores := self.scores(arm, objective))
        ]
        return max(found, key=lambda one: one.mean, default=None)

    @property
    def bests(self) -> list[Best]:
        """The best arm so far by each objective of the study."""
        return [best for objective in objectives(self.plan) if (best := self.best(objective)) is not None]

    @cached_property
    def seconds_left(self) -> float | None:
        """Time to the end; None before that can be told."""
        over = {cell.id: part_over(cell, now) for cell in self.cells if (now := self.progress.get(cell.id))}
        fractions = {cell_id: part for cell_id, part in over.items() if part is not None}
        return seconds_left(self.states, fractions, unproposed=self.plan.size - len(self.cells))

    @cached_property
    def shares(self) -> dict[str, float]:
        """What finished cells spent their time on: phase -> share, the largest first, small ones together as `rest`."""
        spent: defaultdict[str, float] = defaultdict(float)
        for cell_id, found in self.finished.items():
            for phase, seconds in found.seconds.items():
                if phase not in ("total", "other"):
                    spent["training" if phase.startswith("train/") else PHASES.get(phase, phase)] += seconds
            spent["rest"] += found.seconds.get("other", 0.0)
            if (taken := self.states[cell_id].seconds) is not None and "total" in found.seconds:
                spent[TRACKING] += max(0.0, taken - found.seconds["total"])
        whole = sum(spent.values())
        if not whole:
            return {}
        ordered = sorted(spent.items(), key=lambda item: -item[1])
        shares = {phase: seconds / whole for phase, seconds in ordered if phase != "rest"}
        large = {phase: share for phase, share in shares.items() if share >= LEAST_SHARE}
        rest = 1 - sum(large.values())
        return {**large, "rest": rest} if rest >= LEAST_SHARE / 2 else large

    @cached_property
    def working(self) -> list[Working]:
        """The workers that hold a cell, by machine."""
        cells = {cell.id: cell for cell in self.cells}
        found = []
        for cell_id, now in self.progress.items():
            state = self.states[cell_id]
            machine = str((state.owner or {}).get("machine", "?")).partition("/")[0]
            pid = (state.owner or {}).get("pid")
            found.append(Working(machine, pid, cells[cell_id], state.started, now.text))
        return sorted(found, key=lambda one: (one.machine, one.pid or 0))

    @property
    def pruned(self) -> list[PlannedCell]:
        """The cells that a search ended early."""
        return [cell for cell in self.cells if self.states[cell.id].state == "pruned"]

    @property
    def failures(self) -> list[tuple[PlannedCell, str, Path | None]]:
        """Each cell that failed, why in one line, and the file with the traceback where there is one."""
        found = []
        for cell in self.cells:
            if (state := self.states[cell.id]).state == "failed":
                file = self.place.cell(cell.id) / TRACEBACK_FILE
                found.append((cell, (state.error or "").partition("\n")[0], file if file.exists() else None))
        return found


class Lookout:
    """Looks at a sweep again and again, from any machine that sees its folder and its storage; reads a record once."""

    def __init__(self, place: Place, plan: Plan | None = None) -> None:
        self.place = place
        self._changed = 0 if plan else self._change()
        self.plan = plan or Plan.load(place)
        self._queue = Queue(self.plan, place.storage)
        self._finished: dict[str, Finished] = {}
        self._last: Standing | None = None

    def look(self) -> Standing:
        """How the sweep of the latest launch stands. While the storage is away, as it stood when it was last seen;
        raises `StorageDown` where it never was."""
        try:
            self._follow_plan()
            self._last = self.standing(self._queue.states())
        except StorageDown as error:
            if self._last is None:
                raise
            self._last = replace(self._last, trouble=str(error))
        return self._last

    def standing(self, states: Mapping[str, CellState]) -> Standing:
        """The same for states that the storage has just told."""
        running = [cell_id for cell_id, state in states.items() if state.state == "running"]
        progress = {cell_id: read_progress(self.place.cell(cell_id)) for cell_id in running}
        for cell_id, state in states.items():
            if state.state == "done" and cell_id not in self._finished:
                self._read(cell_id)
        return Standing(
            place=self.place,
            plan=self.plan,
            states=states,
            progress={cell_id: now or Progress(None, "starting", None) for cell_id, now in progress.items()},
            finished={cell_id: found for cell_id, found in self._finished.items() if cell_id in states},
            at=time.time(),
        )

    def _read(self, cell_id: str) -> None:
        # A record that is not to be seen from here (yet) costs its score and its times, and no look.
        with contextlib.suppress(InputError, OSError, ValueError, TypeError):
            record = RunRecord.load(self.place.cell(cell_id))
            self._finished[cell_id] = Finished(record.scores, record.provenance.get("seconds", {}))

    def _follow_plan(self) -> None:
        if (changed := self._change()) == self._changed:
            return
        with contextlib.suppress(InputError):
            self.plan = Plan.load(self.place)
            self._queue = Queue(self.plan, self.place.storage)
            self._changed = changed

    def _change(self) -> int:
        """When the latest launch wrote its plan."""
        with contextlib.suppress(OSError):
            return self.place.current_plan.stat().st_mtime_ns
        return 0


def objectives(plan: Plan) -> tuple[str, ...]:
    """What arms are compared by, the primary outcome first; a search may have several."""
    return tuple(dict.fromkeys([plan.primary, *plan.search.get("objectives", ())]))


def seconds_left(
    states: Mapping[str, CellState], fractions: Mapping[str, float], *, unproposed: int = 0
) -> float | None:
    """Time to the end at the present number of workers, by the median of the cells that have run; None before the
    first. `fractions` says how much of a running cell is over; `unproposed` are cells that a search will add."""
    spent = [seconds for state in states.values() if (seconds := state.seconds) is not None]
    numbers = count(states.values())
    if not spent or not numbers["running"]:
        return None
    running = sum(1 - fractions.get(cell_id, 0.5) for cell_id, state in states.items() if state.state == "running")
    return statistics.median(spent) * (numbers["waiting"] + unproposed + running) / numbers["running"]


def part_over(cell: PlannedCell, now: Progress) -> float | None:
    """How much of a cell is over, its stages and its evaluation taken for equally long; None where that cannot be told
    from what it does now."""
    phases = [stage for stage in STAGES if cell.config.get(stage) is not None]
    if (cell.config.get("evaluate") or {}).get("corpora"):
        phases.append("evaluate")
    if now.stage not in phases:
        return None
    return (phases.index(now.stage) + (now.fraction or 0.0)) / len(phases)
