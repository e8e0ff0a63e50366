"""Which cells share which stages of training: what is left to train after sharing, and an order in which workers do
not wait. Used by `planner`, `worker`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from lvlm.config import STAGES, fingerprint
from sweeps.plan import PlannedCell

BITS = ("device", "precision", "threads")
"""Compute settings that can change a model's last bits, so that stages which differ in them are not shared."""
_known: dict[int, tuple[PlannedCell, dict[str, str]]] = {}
"""The keys of cells that were asked for: a worker asks for those of all cells before each one that it takes."""


def stage_keys(cell: PlannedCell) -> dict[str, str]:
    """Stage -> text, equal for two cells exactly when their configs agree in everything up to and including the stage.

    The trainer's own keys look at the data as well; they may find more to share than this, never less.
    """
    known, keys = _known.get(id(cell), (None, {}))
    if known is cell:
        return keys
    keys = {}
    compute = cell.config.get("compute") or {}
    shared = [cell.seed, cell.config.get("model"), *(compute.get(name) for name in BITS)]
    for stage in STAGES:
        if cell.config.get(stage) is not None:
            shared.append([stage, cell.config[stage]])
            keys[stage] = fingerprint(shared)
    _known[id(cell)] = cell, keys
    return keys


def count_stages(cells: Iterable[PlannedCell]) -> dict[str, tuple[int, int]]:
    """Stage -> (how often it is trained when cells share it, how often without sharing)."""
    every: dict[str, list[str]] = {}
    for cell in cells:
        for stage, key in stage_keys(cell).items():
            every.setdefault(stage, []).append(key)
    return {stage: (len(set(keys)), len(keys)) for stage, keys in every.items()}


def arranged(cells: Sequence[PlannedCell]) -> list[PlannedCell]:
    """The same cells, seed by seed; in each seed first one cell for every stage that others will share.

    Two workers then begin with two different stages and not with the lock of one.
    """
    uses = Counter(key for cell in cells for key in stage_keys(cell).values())
    seen: set[str] = set()
    order: list[PlannedCell] = []
    for seed in dict.fromkeys(cell.seed for cell in cells):
        openers: list[PlannedCell] = []
        followers: list[PlannedCell] = []
        for cell in (cell for cell in cells if cell.seed == seed):
            shared = {key for key in stage_keys(cell).values() if uses[key] > 1}
            (followers if shared <= seen else openers).append(cell)
            seen |= shared
        order += openers + followers
    return order


def in_training(running: Mapping[str, str | None], cells: Sequence[PlannedCell], done: Iterable[str]) -> set[str]:
    """Keys of the stages that running cells train now, or are about to: a cell that needs one of them would wait.

    `running` is cell id -> the stage that its progress names (None: not begun); `done` are ids of finished cells.
    """
    by_id = {cell.id: cell for cell in cells}
    ready = {key for cell_id in done if cell_id in by_id for key in stage_keys(by_id[cell_id]).values()}
    busy: set[str] = set()
    for cell_id, now in running.items():
        if cell_id not in by_id:
            continue
        for stage, key in stage_keys(by_id[cell_id]).items():
            passed = now == "evaluate" or (now in STAGES and STAGES.index(now) > STAGES.index(stage))
            (ready if passed else busy).add(key)
    return busy - ready


def without_waiting(waiting: Sequence[PlannedCell], busy: set[str]) -> list[PlannedCell]:
    """`waiting` in order, those that would wait for a stage in `busy` last."""
    return sorted(waiting, key=lambda cell: any(key in busy for key in stage_keys(cell).values()))
