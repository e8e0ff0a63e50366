"""The table of a sweep, live or once: arms with their cells done, running and failed; what runs now; time left. Used
by `launch` and `status`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from sweeps.plan import STAGES, TRACEBACK_FILE, Place, Plan, PlannedCell
from sweeps.progress import Progress, duration, read_progress
from sweeps.queue import CellState, count

if TYPE_CHECKING:
    from rich.console import Group


def seconds_left(
    states: Mapping[str, CellState], fractions: Mapping[str, float], *, unproposed: int = 0
) -> float | None:
    """Time to the end at the present number of workers, by the median of the cells that have run; None before the
    first. `fractions` says how much of a running cell is over; `unproposed` are cells that a search will add."""
    spent = [seconds for state in states.values() if (seconds := state.seconds) is not None]
    numbers = count(states.values())
    if not spent or not numbers["running"]:
        return None
    cells = (
        numbers["waiting"]
        + unproposed
        + sum(1 - fractions.get(cell_id, 0.5) for cell_id, state in states.items() if state.state == "running")
    )
    return statistics.median(spent) * cells / numbers["running"]


def part_over(cell: PlannedCell, now: Progress) -> float | None:
    """How much of a cell is over, its stages and its evaluation taken for equally long; None where that cannot be told
    from what it does now."""
    phases = [stage for stage in STAGES if cell.config.get(stage) is not None]
    if (cell.config.get("evaluate") or {}).get("corpora"):
        phases.append("evaluate")
    if now.stage not in phases:
        return None
    return (phases.index(now.stage) + (now.fraction or 0.0)) / len(phases)


def headline(plan: Plan, states: Mapping[str, CellState], progress: Mapping[str, Progress]) -> str:
    """How the sweep stands, in one line."""
    numbers = count(states.values())
    text = f"{plan.study}: {numbers['done']} of {plan.size} cells done"
    parts = [f"{numbers[name]} {name}" for name in ("running", "waiting", "failed", "pruned") if numbers[name]]
    text += f" ({', '.join(parts)})" if parts else ""
    over = {cell.id: part_over(cell, now) for cell in plan.cells if (now := progress.get(cell.id))}
    fractions = {cell_id: part for cell_id, part in over.items() if part is not None}
    left = seconds_left(states, fractions, unproposed=plan.size - len(plan.cells))
    return text + (f", about {duration(left)} left" if left is not None else "")


def running_now(place: Place, states: Mapping[str, CellState]) -> dict[str, Progress]:
    """Progress of every running cell."""
    found = {
        cell_id: read_progress(place.cell(cell_id)) for cell_id, state in states.items() if state.state == "running"
    }
    return {cell_id: now or Progress(None, "starting", None) for cell_id, now in found.items()}


def lines(place: Place, plan: Plan, states: Mapping[str, CellState]) -> list[str]:
    """The running, the failed and the pruned cells, one line each."""
    by_id = {cell.id: cell for cell in plan.cells}
    text = []
    for cell_id, now in running_now(place, states).items():
        since = f" for {duration(time.time() - started)}" if (started := states[cell_id].started) else ""
        text.append(f"running  {by_id[cell_id].arm}, seed {by_id[cell_id].seed}{since}: {now.text}")
    for cell_id, state in states.items():
        if state.state == "failed":
            why = (state.error or "").splitlines()[0] if state.error else ""
            text.append(f"failed   {by_id[cell_id].arm}, seed {by_id[cell_id].seed}: {why}")
            if (file := place.cell(cell_id) / TRACEBACK_FILE).exists():
                text.append(f"         {file}")
    pruned = [by_id[cell_id] for cell_id, state in states.items() if state.state == "pruned"]
    text += [f"pruned   {cell.arm}, seed {cell.seed}" for cell in pruned]
    return text


def view(place: Place, plan: Plan, states: Mapping[str, CellState]) -> Group:
    """The table for a terminal or a notebook."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    marks = {"done": ("●", "green"), "running": ("◐", "cyan"), "failed": ("✗", "red")}
    marks |= {"waiting": ("·", "dim"), "pruned": ("−", "yellow")}
    table = Table(title=headline(plan, states, running_now(place, states)), title_justify="left", expand=False)
    table.add_column("arm")
    for seed in plan.seeds:
        table.add_column(f"seed {seed}", justify="center")
    table.add_column("done", justify="right")
    for arm in plan.arms:
        cells = {cell.seed: states[cell.id].state for cell in plan.cells if cell.arm == arm}
        row = [Text(*marks[cells[seed]]) if seed in cells else Text("") for seed in plan.seeds]
        table.add_row(Text(arm), *row, f"{list(cells.values()).count('done')}/{len(cells)}")
    return Group(table, *(Text(line, overflow="fold") for line in lines(place, plan, states)))
