"""What is looked at before a launch starts anything: is this the study that was launched here, are its corpora there,
were its finished cells made of the same things? Used by `sweeps.launcher`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ablations.studies import FOLDER
from lvlm.check import open_corpora
from lvlm.config import STAGES
from lvlm.errors import InputError
from lvlm.records import TRAINER_VERSION, RunRecord
from lvlm.train.identity import config_diff
from sweeps.plan import Place, Plan, PlannedCell

MOST_LINES = 12
"""Differences of a study that are told one by one."""


def check_source(plan: Plan, place: Place) -> None:
    """Raise where the plan that lies there came from another study file of the same name."""
    before = _readable_plan(place.current_plan)
    there = _study_file(before.source) if before else None
    now = _study_file(plan.source)
    if there and now and not there.samefile(now):
        raise InputError(
            f"{place.folder} holds the results of the study file {there}, and {now} has the same name. Launch it into "
            "another work folder (--home DIR), or give the file and its study another name."
        )


def check_changes(plan: Plan, place: Place) -> None:
    """Raise, with a diff, where cells of the latest launch with this budget are no longer part of the study: its file
    was changed since. More levels or seeds only add cells, and need no question."""
    before = _latest_launch(plan, place)
    if before is None:
        return
    wanted = {cell.id for cell in plan.cells}
    gone = [cell for cell in before.cells if cell.id not in wanted]
    if not gone:
        return
    known = {cell.id for cell in before.cells}
    new = [cell for cell in plan.cells if cell.id not in known]
    recorded = sum(place.is_recorded(cell.id) for cell in gone)
    raise InputError(
        f"The study '{plan.study}' has changed since it was launched here (version {before.version} -> {plan.version}):"
        f" {'; '.join(_differences(before, plan, gone, new))}. {len(gone)} of its cells ({recorded} of them finished) "
        f"are no longer part of it, {len(new)} are new. Launch with --new-version to go on as it is now: what was "
        f"found before stays in {place.folder / 'cells'} and in MLflow under its version, and leaves the table. Or "
        "change the study back."
    )


def _latest_launch(plan: Plan, place: Place) -> Plan | None:
    """The latest plan of the same budget and runner that lies here."""
    files = [place.current_plan, *(place.folder / "plans").glob("*.json")]
    for file in sorted(filter(Path.exists, files), key=lambda file: file.stat().st_mtime, reverse=True):
        found = _readable_plan(file)
        if found and (found.budget, found.runner) == (plan.budget, plan.runner):
            return found
    return None


def _readable_plan(path: Path) -> Plan | None:
    if not path.exists():
        return None
    try:
        return Plan.read(path)
    except InputError:  # of another version of the toolkit: the launch writes it anew
        return None


def _differences(before: Plan, now: Plan, gone: list[PlannedCell], new: list[PlannedCell]) -> list[str]:
    """What a reader of the study file would see changed: levels, seeds, and fields of arms that are otherwise the
    same."""
    lines = config_diff(_declared(before), _declared(now))
    if before.seeds != now.seeds:
        lines.append(f"seeds: {before.seeds} -> {now.seeds}")
    by_name = {(cell.arm, cell.seed): cell for cell in new}
    changed: dict[str, int] = {}
    for cell in gone:
        if (twin := by_name.get((cell.arm, cell.seed))) is not None:
            for line in config_diff(_listed(cell.config), _listed(twin.config)):
                changed[line] = changed.get(line, 0) + 1
    lines += [f"{line} (in {number} cells)" for line, number in changed.items()]
    arms = [arm for arm in before.arms if arm not in now.arms]
    if arms:
        lines.append(f"arms left out: {', '.join(arms)}")
    if len(lines) > MOST_LINES:
        lines = [*lines[:MOST_LINES], f"and {len(lines) - MOST_LINES} more"]
    return lines


def _declared(plan: Plan) -> dict[str, Any]:
    """What a study file says of all arms together."""
    search = {name: value for name, value in plan.search.items() if name not in ("key", "factors", "base")}
    return {**plan.said_factors, "held_equal": plan.held_equal, "search": search}


def _listed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with lists as mappings, so that a difference in one corpus names that field."""
    return {key: _entry(value) for key, value in config.items()}


def _entry(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _listed(value)
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        return {str(index): _entry(item) for index, item in enumerate(value)}
    return value


def _study_file(source: str) -> Path | None:
    """The file behind a plan's `source`; None where there is none (any more)."""
    shipped = FOLDER / f"{source}.py"
    path = shipped if shipped.is_file() else Path(source)
    return path if path.is_file() else None


def check_making(plan: Plan, place: Place) -> None:
    """Raise for a corpus that a cell to run cannot open or use, and for finished cells that were made of other
    backbones or corpora, or by another trainer, than are here now: a cell is known by its config, which names them
    and not what is in them.

    Once for the whole plan, before any worker starts.
    """
    from lvlm.model.backbones import run_digests

    opened: dict[str, dict[str, str]] = {}
    digests: dict[str, dict[str, str]] = {}
    others: list[str] = []
    differ: set[str] = set()
    for cell in plan.cells:
        recorded = RunRecord.load(place.cell(cell.id)) if place.is_recorded(cell.id) else None
        config = cell.run_config()
        data = json.dumps([cell.config.get(part) for part in (*STAGES, "evaluate")], sort_keys=True)
        try:
            if data not in opened:
                opened[data] = {path: corpus.stamp() for path, corpus in open_corpora(config).items()}
        except InputError:
            if recorded is None:
                raise
            continue  # nothing is left to train on it: its results stand for themselves
        model = f"{config.model.tower} {config.model.llm} {config.paint and config.paint.denoiser} {config.seed}"
        if model not in digests:
            digests[model] = run_digests(config)
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
