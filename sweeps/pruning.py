"""Ends runs of a nuisance search early, by their scores on the `tune` split: successive halving or Hyperband among the
cells of one seed. Used by `sweeps.worker`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, SuccessiveHalvingPruner
from optuna.trial import FrozenTrial, TrialState, create_trial

from lvlm.config import STAGES
from lvlm.records import CURVE_FILE, write_text
from sweeps.plan import Plan
from sweeps.queue import Claim, Queue
from sweeps.space import rungs_of

REDUCTION = 3
"""Of the arms at a rung the best third goes on."""


class Pruned(Exception):
    """The run is ended: arms with the same seed do better."""


class Pruning:
    """Listens to one run of a plan that prunes. Raises `Pruned` out of the run, at a validation of its last stage."""

    def __init__(self, plan: Plan, queue: Queue, claim: Claim, folder: Path) -> None:
        self._plan, self._queue, self._claim, self._folder = plan, queue, claim, folder
        self._stage = [name for name in STAGES if claim.cell.config.get(name) is not None][-1]
        self._rows: list[dict[str, Any]] = []

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Take in an event of the trainer."""
        if event.get("kind") in ("step", "validation"):
            self._rows.append({key: value for key, value in event.items() if key != "kind"})
        score = event.get(self._plan.search["objectives"][0])
        if event.get("kind") != "validation" or event["stage"] != self._stage or not isinstance(score, int | float):
            return
        if math.isfinite(score) and self._is_behind(int(event["step"]), float(score)):
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self._rows)
            write_text(self._folder / CURVE_FILE, text)
            raise Pruned(f"at step {event['step']} of {self._stage}: {self._plan.search['objectives'][0]} {score:.1f}")

    def _is_behind(self, step: int, score: float) -> bool:
        if not self._queue.report(self._claim, step, score) or self._claim.cell.arm == self._plan.arms[0]:
            return False  # the baseline, which the others are to be read against, is never ended
        peers = self._queue.attempts(self._claim.cell.seed)
        own = peers[self._claim.cell.arm]
        assert own is not None
        kept = dict(own.system_attrs)
        behind, rungs = is_behind(
            list(peers.values()), list(peers).index(self._claim.cell.arm), self._plan.search["prune"], self._plan.study
        )
        for name, value in rungs.items():
            if kept.get(name) != value:
                self._queue.keep(self._claim, name, value)
        return behind


def is_behind(attempts: Sequence[FrozenTrial | None], place: int, prune: str, name: str) -> tuple[bool, dict[str, Any]]:
    """Whether the attempt at `place` is to end, among those of one seed in the order of their arms (None: not begun);
    and what the pruner wants to be kept of it. `name` and place decide which bracket of Hyperband it is in."""
    study = optuna.create_study(direction="maximize", study_name=name, pruner=optuna.pruners.NopPruner())
    for attempt in attempts:
        study.add_trial(_comparable(attempt))
    steps = [step for attempt in attempts if attempt is not None for step in attempt.intermediate_values]
    behind = _pruner(prune, min(steps)).prune(study, study.trials[place])
    return behind, dict(study.trials[place].system_attrs)


def _comparable(attempt: FrozenTrial | None) -> FrozenTrial:
    """An attempt with its curve alone."""
    if attempt is None or attempt.state == TrialState.WAITING:
        return create_trial(state=TrialState.FAIL)
    return create_trial(
        state=attempt.state,
        value=0.0 if attempt.state == TrialState.COMPLETE else None,
        intermediate_values=dict(attempt.intermediate_values),
        system_attrs=rungs_of(attempt),
    )


def _pruner(prune: str, first: int) -> BasePruner:
    """`first` is the step of the first validation, and the first rung."""
    if prune == "hyperband":
        return HyperbandPruner(min_resource=first, reduction_factor=REDUCTION)
    return SuccessiveHalvingPruner(min_resource=first, reduction_factor=REDUCTION)
