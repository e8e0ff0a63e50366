"""Proposes the next arm of a search from the scores of the arms so far: Optuna's samplers, over a study in memory that
is made anew each time. Used by `sweeps.worker`.

A proposal is a file in the study's folder with the cells of one arm, written whole under a lock; its cells then wait in
the queue like any others. A worker proposes when no cell waits, so that W workers are at most W arms ahead, and with a
seed that follows from the search's draw and the number of the arm alone.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from ablations.designs import FullGrid, Levels, Search, in_order
from ablations.factors import Factor, Level
from lvlm.records import RunRecord, write_json
from lvlm.train.locks import file_lock
from sweeps.amounts import Meter, hold_equal
from sweeps.declared import declared_search, declared_study, planned_cell
from sweeps.plan import Place, Plan, PlannedCell, ProposedArm
from sweeps.queue import CellState, Queue

TRIES = 16
"""Proposals of an arm that is there already, before one is drawn at random."""
LOCK_FILE = ".lock"


class Proposer:
    """Goes on with the search of a plan."""

    def __init__(self, plan: Plan, place: Place, queue: Queue) -> None:
        self.plan = plan
        self.place = place
        self.queue = queue
        self.study = declared_study(plan)
        self.search: Search = declared_search(plan)
        self.factors = in_order(self.study.factors)
        self._space = {factor.name: _distribution(factor) for factor in self.factors}
        self._meter = Meter(place.home)
        self._scores: dict[str, list[float]] = {}

    def advance(self) -> bool:
        """Let there be a cell to claim: one that another worker has written, or the next arm's. False when all arms
        have been proposed and none of their cells waits."""
        folder = self.plan.proposals(self.place.folder)
        with file_lock(folder / LOCK_FILE, purpose="proposes an arm"):
            self._complete()
            self.queue.add_missing()
            states = self.queue.states()
            if any(state.state == "waiting" for state in states.values()):
                return True
            if not self.plan.arms_to_propose:
                return False
            self._save(self._propose(states))
            self.queue.add_missing()
            return True

    def _complete(self) -> None:
        """Give arms that were proposed when the study had fewer seeds their other cells."""
        for arm in self.plan.read_proposals(self.place.folder):
            if not {cell.seed for cell in arm.cells} >= set(self.plan.seeds):
                self._save(ProposedArm(arm.number, arm.levels, arm.notes, self._cells(arm.levels)))

    def _save(self, arm: ProposedArm) -> None:
        write_json(self.plan.proposals(self.place.folder) / f"{arm.number:04d}.json", asdict(arm))

    def _cells(self, levels: Levels) -> list[PlannedCell]:
        cells = hold_equal(self.study, self.study.cells_of(levels), self._meter)
        return [planned_cell(cell, self.plan.runner) for cell in cells[len(self.study.seeds) :]]

    def _propose(self, states: Mapping[str, CellState]) -> ProposedArm:
        """The next arm, which is none of those before."""
        arms = self.plan.read_proposals(self.place.folder)
        first = dict.fromkeys(arms[0].notes if arms else (), 0)  # the baseline is one of the first generation
        baseline = ProposedArm(0, self.study.baseline_arm.levels, first, self.plan.cells_of_baseline)
        number = len(arms) + 1
        history = self._history([baseline, *arms], states)
        known = {_key(self.study.arm(arm.levels).levels) for arm in (baseline, *arms)}
        for attempt in range(TRIES):
            seed = int(np.random.SeedSequence([self.search.draw, number, attempt]).generate_state(1)[0])
            levels, notes = self._ask(history, _sampler(self.search, seed))
            if _key(levels) not in known:
                return ProposedArm(number, levels, notes, self._cells(levels))
        levels = self._unknown(known, number)
        return ProposedArm(number, levels, notes, self._cells(levels))

    def _ask(self, history: Sequence[FrozenTrial], sampler: BaseSampler) -> tuple[Levels, dict[str, Any]]:
        """What a sampler proposes, and what it wants to know of this arm later."""
        study = _memory(sampler, len(self.plan.search["objectives"]))
        for trial in history:
            study.add_trial(trial)
        asked = study.ask()
        levels: dict[str, Level] = {}
        for factor in self.factors:
            if self._has_column(factor, levels):
                levels[factor.name] = self._suggested(factor, asked)
        kept = study.trials[-1].system_attrs if self.search.sampler == "nsga2" else {}
        generation = {name: value for name, value in kept.items() if isinstance(value, int)}
        return self.study.arm(levels).levels, generation

    def _has_column(self, factor: Factor, levels: Mapping[str, Level]) -> bool:
        """Whether a factor is one of an arm's numbers for the sampler. TPE takes each where it applies; to the others,
        which know no conditions, one that does not apply stands at its baseline."""
        return self.search.sampler != "tpe" or factor.applies(levels)

    def _unknown(self, known: set[str], number: int) -> Levels:
        """An arm that is not there yet, drawn at random."""
        rng = np.random.default_rng([self.search.draw, number, TRIES])
        if all(not factor.is_continuous for factor in self.factors) and math.prod(
            len(factor.levels) for factor in self.factors
        ) <= 10 * (self.search.arms + TRIES):
            every = FullGrid().combinations(self.study.factors, dict(self.study.baseline))
            left = [levels for levels in every if _key(levels) not in known]
            return left[int(rng.integers(len(left)))]  # a search has no more arms than there are combinations
        while True:
            drawn = self.study.arm({factor.name: factor.at(rng.random()) for factor in self.factors}).levels
            if _key(drawn) not in known:
                return drawn

    # What is known of the arms

    def _history(self, arms: Sequence[ProposedArm], states: Mapping[str, CellState]) -> list[FrozenTrial]:
        """The arms as trials, in the order of their numbers: an arm whose seeds are not all done is running, one with a
        diverged seed has the worst value seen, and one with a failed seed is left out."""
        values = {arm.number: self._values(arm, states) for arm in arms}
        means = [found for found in values.values() if isinstance(found, list)]
        worst = [min(column) for column in zip(*means, strict=True)] or [0.0] * len(self.plan.search["objectives"])
        return [self._trial(arm, values[arm.number], worst, states) for arm in arms]

    def _values(self, arm: ProposedArm, states: Mapping[str, CellState]) -> list[float] | str:
        """Means over the seeds, a number for each objective; a word where there are none yet, or never."""
        own = [states[cell.id] for cell in arm.cells]
        if any(state.state == "failed" and not state.diverged for state in own):
            return "failed"
        if any(state.diverged for state in own):
            return "diverged"
        if any(state.state in ("waiting", "running") for state in own):
            return "running"
        if any(state.state == "pruned" for state in own):
            return "pruned"
        means = [statistics.fmean(column) for column in zip(*map(self._score, arm.cells), strict=True)]
        return means if all(map(math.isfinite, means)) else "failed"

    def _score(self, cell: PlannedCell) -> list[float]:
        if cell.id not in self._scores:
            scores = RunRecord.load(self.place.cell(cell.id)).scores
            self._scores[cell.id] = [scores.get(name, math.nan) for name in self.plan.search["objectives"]]
        return self._scores[cell.id]

    def _trial(
        self, arm: ProposedArm, found: list[float] | str, worst: list[float], states: Mapping[str, CellState]
    ) -> FrozenTrial:
        params = {
            factor.name: self._number(factor, arm.levels)
            for factor in self.factors
            if self._has_column(factor, arm.levels)
        }
        ended = {"failed": TrialState.FAIL, "running": TrialState.RUNNING, "pruned": TrialState.PRUNED}
        return create_trial(
            state=TrialState.COMPLETE if not isinstance(found, str) else ended.get(found, TrialState.COMPLETE),
            values=worst if found == "diverged" else found if isinstance(found, list) else None,
            params=params,
            distributions={name: self._space[name] for name in params},
            system_attrs=dict(arm.notes),
            intermediate_values=_last_common([states[cell.id] for cell in arm.cells]) if found == "pruned" else {},
        )

    def _number(self, factor: Factor, levels: Mapping[str, Level]) -> Any:
        """A level as the sampler has it: a number of the range, or the place among the levels."""
        level = levels[factor.name] if factor.applies(levels) else self.study.baseline[factor.name]
        if factor.is_continuous:
            return level if level is not None else factor.at(0.5)
        return factor.levels.index(level) if level in factor.levels else 0

    def _suggested(self, factor: Factor, trial: optuna.Trial) -> Level:
        space = self._space[factor.name]
        if isinstance(space, CategoricalDistribution):
            return factor.levels[int(trial.suggest_categorical(factor.name, space.choices))]
        ask = trial.suggest_int if isinstance(space, IntDistribution) else trial.suggest_float
        return factor.rounded(ask(factor.name, space.low, space.high, log=factor.log))


def _distribution(factor: Factor) -> BaseDistribution:
    if factor.range is None:
        return CategoricalDistribution(tuple(range(len(factor.levels))))
    low, high = factor.range
    if isinstance(low, int):
        return IntDistribution(low, int(high), log=factor.log)
    return FloatDistribution(low, high, log=factor.log)


def _sampler(search: Search, seed: int) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if search.sampler == "nsga2":
            return NSGAIISampler(population_size=max(2, search.first), seed=seed)
        if search.sampler == "gp":
            return GPSampler(n_startup_trials=search.first, seed=seed)
        together = not search.objectives  # with conditions, the factors that apply to the same arms
        return TPESampler(n_startup_trials=search.first, seed=seed, multivariate=together, group=together)


def _memory(sampler: BaseSampler, objectives: int) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(sampler=sampler, directions=["maximize"] * objectives)


def _last_common(states: Sequence[CellState]) -> dict[int, float]:
    """The mean over the seeds of the score at the last step that all of them reached."""
    curves = [state.reported for state in states if state.reported]
    steps = set.intersection(*(set(curve) for curve in curves)) if curves else set()
    return {max(steps): statistics.fmean(curve[max(steps)] for curve in curves)} if steps else {}


def _key(levels: Mapping[str, Level]) -> str:
    return repr(list(levels.values()))
