"""From a study to its plan: cells with their identity, in the order of work. Used by `sweeps.launcher` and the command
`plan`."""

from __future__ import annotations

import ast
import os
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from ablations.designs import Search
from ablations.studies import FOLDER, Study, load_study
from lvlm.config import fingerprint
from sweeps.amounts import TITLES, Meter, hold_equal
from sweeps.declared import planned_cell, search_data
from sweeps.devices import default_workers, visible_gpus
from sweeps.plan import DEFAULT_RUNNER, Plan, find_home
from sweeps.progress import duration
from sweeps.queue import CellState, count
from sweeps.stages import arranged, count_stages


def make_plan(
    study: str | Path | Study,
    *,
    budget: str | None = None,
    overrides: Sequence[str] = (),
    runner: str = DEFAULT_RUNNER,
    meter: Meter | None = None,
) -> Plan:
    """The plan of a study: seed by seed, and within a seed so that few workers wait for the same stage.

    `overrides` (`key=value`) act on the study's base config and so are part of the identity of its cells; so is a
    runner other than the default. Where the study holds another amount than samples equal, `meter` counts its data
    (default: one for the default work folder).
    """
    loaded = load_study(study) if isinstance(study, str | Path) else study
    budget = budget or os.environ.get("BUDGET") or "default"
    found = loaded.cells(budget, overrides=list(overrides))  # type: ignore[arg-type]  # the study checks the text
    held = hold_equal(loaded, found, meter or Meter(find_home()))
    unique = list({cell.id: cell for cell in (planned_cell(cell, runner) for cell in held)}.values())
    identity: list[object] = [loaded.name, runner, sorted((cell.id, cell.arm) for cell in unique)]
    design = loaded.design_of(budget)  # type: ignore[arg-type]
    search = search_data(loaded, design, overrides=overrides, runner=runner) if isinstance(design, Search) else {}
    if search:
        identity.append([search["key"], search["arms"]])
    return Plan(
        study=loaded.name,
        question=loaded.question,
        budget=budget,
        overrides=list(overrides),
        runner=runner,
        primary=loaded.primary,
        factors={factor.name: list(factor.levels) for factor in loaded.factors},
        cells=arranged(unique),
        version=fingerprint(identity),
        source=_source(study, loaded),
        ranges={factor.name: [*factor.range, factor.log] for factor in loaded.factors if factor.range is not None},
        held_equal=loaded.held_equal,
        tells_apart=loaded.tells_apart(budget),  # type: ignore[arg-type]
        search=search,
    )


def _source(study: str | Path | Study, loaded: Study) -> str:
    if isinstance(study, Study):
        return loaded.name
    return str(Path(study).resolve()) if str(study).endswith(".py") else str(study)


def describe(plan: Plan, states: Mapping[str, CellState], *, workers: int | None = None) -> list[str]:
    """What a launch would do, in lines: arms, seeds, stages after sharing, cost."""
    numbers = count(states.values())
    arms = f"{plan.search['arms'] if plan.search else len(plan.arms)} arms x {len(plan.seeds)} seeds"
    pruned = f", {numbers['pruned']} pruned" if numbers["pruned"] else ""
    lines = [
        f"{plan.study} ({plan.budget} budget, version {plan.version}): {plan.question}",
        f"{arms}: {plan.size} cells, {numbers['done']} done, {numbers['failed']} failed{pruned}",
    ]
    if plan.search:
        lines.append(f"search: {plan.searched}; {len(plan.arms)} arms so far, the baseline among them")
    if plan.overrides:
        lines.append(f"overrides: {' '.join(plan.overrides)}")
    lines.append(f"held equal in every arm: {TITLES[plan.held_equal]}")
    left = [cell for cell in plan.cells if states[cell.id].state not in ("done", "pruned")]
    before, after = count_stages(plan.cells), count_stages(left)
    for stage, (shared, every) in before.items():
        todo = f", at most {after[stage][0]} of them now" if stage in after and numbers["done"] else ""
        lines.append(f"{stage}: trained {shared} times for {every} cells" + todo)
    return [*lines, _cost(plan, states, left=len(left) + plan.size - len(plan.cells), workers=workers)]


def arm_lines(plan: Plan, states: Mapping[str, CellState]) -> list[str]:
    """One line per arm: its levels, and how many of its seeds are done."""
    lines = []
    for arm in plan.arms:
        cells = [cell for cell in plan.cells if cell.arm == arm]
        levels = ", ".join(f"{name}={level}" for name, level in cells[0].levels.items() if level is not None)
        done = sum(states[cell.id].state == "done" for cell in cells)
        lines.append(f"  {arm}   ({levels})   seeds {' '.join(str(cell.seed) for cell in cells)}   {done} done")
    return lines


def _cost(plan: Plan, states: Mapping[str, CellState], *, left: int, workers: int | None) -> str:
    """The time to go, from cells that have run here, else what the study file says about itself."""
    if not left:
        return "nothing is left to run"
    spent = [seconds for state in states.values() if (seconds := state.seconds) is not None]
    if spent:
        crew = workers or default_workers(left, len(visible_gpus()))
        each = statistics.median(spent)
        whole = duration(each * left / crew)
        return f"about {duration(each)} a cell here, so {whole} for {left} cells on {crew} worker(s)"
    stated = _stated_cost(plan)
    return f"cost: {stated}" if stated else "cost: not known before the first cell has run"


def _stated_cost(plan: Plan) -> str | None:
    file = FOLDER / f"{plan.source}.py"
    path = file if file.exists() else Path(plan.source)
    if not path.is_file():
        return None
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    found = re.search(
        r"^\s*cost\s*:?\s+(.+?)(?=\n\s*\n|\n\s*[A-Z][a-z]+\s*:|\Z)", text, re.IGNORECASE | re.DOTALL | re.MULTILINE
    )
    return " ".join(found.group(1).split()).partition(". ")[0] if found else None
