"""The trained stages of a work folder: which cells use them, what they take, and which may go. Called by the command
`cache`, and by workers that make room for a stage."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from lvlm.errors import InputError
from lvlm.records import PLAN_FILE, RECORD_FILE, STAGE_FILE, STAGES_FILE
from lvlm.train.shelf import GIB, Entry, Shelf, folder_bytes
from sweeps.plan import Place, Plan, PlannedCell
from sweeps.queue import Queue, State
from sweeps.stages import stage_keys

KEPT = {
    "stages": "trained stages, with their models",
    "features": "kept image features (compute.feature_cache_gib)",
    "data/remembered": "data files as they were read (at most 1 GiB)",
}
"""Folders of a work folder that hold what can be made again."""


@dataclass
class Uses:
    """Who uses a stage: cells by study, and those of them that run or wait for their turn."""

    cells: Counter[str] = field(default_factory=Counter)
    running: Counter[str] = field(default_factory=Counter)
    waiting: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        """Such as `drivers: 7 cells (1 running, 2 waiting)`."""
        parts = []
        for study, cells in self.cells.items():
            left = [(counts[study], name) for counts, name in ((self.running, "running"), (self.waiting, "waiting"))]
            now = ", ".join(f"{number} {name}" for number, name in left if number)
            parts.append(f"{study}: {cells} cell{'s' if cells > 1 else ''}" + (f" ({now})" if now else ""))
        return "; ".join(parts) or "nothing here"


@dataclass(frozen=True)
class _Cell:
    """A cell of a study, or a run beside them, and the stages that it takes."""

    study: str
    state: State
    keys: Mapping[str, str]
    """Stage -> key, as far as the run has come."""
    alike: Mapping[str, str] = field(default_factory=dict)
    """Stage -> text that is equal for cells whose configs agree up to there (see `sweeps.stages`)."""
    checkpoint: str | None = None
    """Key of the stage whose model the run starts from."""


def stage_uses(home: Path) -> dict[str, Uses]:
    """Key -> who uses it, over all studies of a work folder and the runs beside them.

    A cell that has not come to a stage has no key of it yet: it needs the stage of another cell whose config agrees up
    to there. What two cells share though their configs differ is found only when the second one comes to it.
    """
    cells = [*_of_studies(home), *_beside_studies(home)]
    known: dict[str, set[str]] = {}
    for cell in cells:
        for stage in cell.keys.keys() & cell.alike.keys():
            known.setdefault(cell.alike[stage], set()).add(cell.keys[stage])
    uses: dict[str, Uses] = {}
    for cell in cells:
        keys = {*cell.keys.values(), *filter(None, [cell.checkpoint])}
        for stage in cell.alike.keys() - cell.keys.keys():
            keys |= known.get(cell.alike[stage], set())
        for key in keys:
            found = uses.setdefault(key, Uses())
            found.cells[cell.study] += 1
            if cell.state in ("running", "waiting"):
                (found.running if cell.state == "running" else found.waiting)[cell.study] += 1
    return uses


def needed_stages(home: Path, *, waiting: bool = True) -> set[str]:
    """Keys of the stages that a running cell of any study needs, or one that waits for its turn."""
    return {key for key, uses in stage_uses(home).items() if uses.running or (waiting and uses.waiting)}


def prune(home: Path, *, keep_gib: float = 0.0, force: bool = False) -> list[Entry]:
    """Remove the stages used longest ago until the rest take at most `keep_gib`; returns them. What a process uses or a
    running cell needs stays, and what a waiting one needs too, unless `force`."""
    return Shelf(home / "stages").shrink(keep_gib * GIB, spare=lambda: needed_stages(home, waiting=not force))


def lines(home: Path) -> Iterator[str]:
    """What the work folder keeps, and each of its stages, those used longest ago first."""
    for name, what in KEPT.items():
        yield f"{name:16} {size(folder_bytes(home / name)):>10}   {what}"
    entries, uses = Shelf(home / "stages").entries(), stage_uses(home)
    if entries:
        yield f"\n{'key':13} {'stage':9} {'size':>10}   {'last used':16}   {'state':12}   used by"
    for entry in entries:
        folder = home / "stages" / entry.key
        state = "trained" if (folder / STAGE_FILE).exists() else "half-trained"
        when = f"{datetime.fromtimestamp(entry.used_at):%Y-%m-%d %H:%M}"
        what = f"{entry.key:13} {_read(folder / PLAN_FILE).get('stage', '?'):9} {size(entry.bytes):>10}"
        yield f"{what}   {when}   {state if entry.free else 'in use':12}   {uses.get(entry.key, Uses())}"


def _of_studies(home: Path) -> Iterator[_Cell]:
    """The cells of every study's latest plan, and what is left of earlier ones."""
    for path in sorted((home / "studies").glob("*/plan.json")):
        place = Place(home, path.parent.name)
        try:
            plan = Plan.load(place)
        except InputError:  # of another version of this toolkit: its finished cells are known all the same
            planned: dict[str, PlannedCell] = {}
        else:
            planned = {cell.id: cell for cell in plan.cells}
            states = _states(place, plan)
            for cell in plan.cells:
                done = place.is_recorded(cell.id)
                yield _Cell(
                    study=place.name,
                    state="done" if done else states[cell.id],
                    keys=_keys(place.cell(cell.id)),
                    alike=stage_keys(cell),
                    checkpoint=_checkpoint(home, cell.config),
                )
        for folder in sorted((place.folder / "cells").glob("*")):
            if folder.name not in planned and (keys := _keys(folder)):
                yield _Cell(f"{place.name} (earlier plan)", "done", keys)


def _beside_studies(home: Path) -> Iterator[_Cell]:
    """What `python -m lvlm train` left; a run that has not finished waits to be resumed."""
    for folder in sorted((home / "runs").glob("*")):
        if keys := _keys(folder):
            yield _Cell(f"run {folder.name}", "done" if (folder / RECORD_FILE).exists() else "waiting", keys)


def _states(place: Place, plan: Plan) -> dict[str, State]:
    """How the cells stand. Where the study's storage does not answer, all of them wait: what they need is kept."""
    try:
        if (storage := place.storage).exists:
            return {cell_id: state.state for cell_id, state in Queue(plan, storage).states().items()}
    except Exception as error:  # whatever the storage raises
        told = f"{place.name}: its storage does not answer ({type(error).__name__}), so its cells count as waiting"
        print(told, file=sys.stderr)
    return {cell.id: "waiting" for cell in plan.cells}


def _keys(folder: Path) -> dict[str, str]:
    """Stage -> key of the run in `folder`."""
    return _read(folder / STAGES_FILE) or _read(folder / RECORD_FILE).get("stage_keys", {})


def _checkpoint(home: Path, config: Mapping[str, Any]) -> str | None:
    """The stage behind `model.checkpoint`, which names its folder or a run that took it last."""
    path = (config.get("model") or {}).get("checkpoint")
    if path is None:
        return None
    stages = (home / "stages").resolve()
    for folder in (resolved := Path(path).resolve(), *resolved.parents):
        if folder.parent == stages:
            return folder.name
    return next(reversed(_keys(resolved).values()), None)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def size(count: int) -> str:
    """Bytes as a reader says them."""
    for unit, bytes_each in (("GiB", GIB), ("MiB", 2**20)):
        if count >= bytes_each:
            return f"{count / bytes_each:.1f} {unit}"
    return f"{count / 1024:.1f} KiB"
