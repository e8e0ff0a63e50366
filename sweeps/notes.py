"""The text on a sweep's parent run: its question, its design, and how each arm stands. Used by `tracking`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sweeps.amounts import TITLES
from sweeps.plan import Plan, PlannedCell
from sweeps.queue import CellState, count

MAX_NOTE = 7500
"""MLflow keeps 8,000 characters."""


def parent_note(plan: Plan, states: Mapping[str, CellState], scores: Mapping[str, float | None]) -> str:
    """Markdown: question, design, a row per arm with the mean of the primary outcome so far; `scores` has it by cell,
    of those that have finished."""
    numbers = count(states.values())
    design = ", ".join(
        f"`{name}`: {(' to ' if name in plan.ranges else ' / ').join(map(str, levels))}"
        for name, levels in plan.said_factors.items()
    )
    settings = f" Settings: `{' '.join(plan.overrides)}`." if plan.overrides else ""
    size = f"{len(plan.arms)} arms x {len(plan.seeds)} seeds"
    chosen = f" Arms are chosen by their scores: {plan.searched}." if plan.search else ""
    others = "".join(f", {number} {name}" for name, number in numbers.items() if number and name != "done")
    begin = [
        plan.question,
        "",
        f"**Design** ({plan.budget} budget): {size} of {design}."
        f" Held equal in every arm: {TITLES[plan.held_equal]}.{settings}{chosen}",
        "",
        f"**Progress**: {numbers['done']} of {plan.size} cells done{others}.",
        "",
        f"| arm | done | failed | {plan.primary} |",
        "| --- | --- | --- | --- |",
    ]
    end = ["", f"Means over finished seeds. Effects with intervals: `python -m ablations report {plan.command}`"]
    arms: dict[str, list[PlannedCell]] = {}
    for cell in plan.cells:
        arms.setdefault(cell.arm, []).append(cell)
    rows: list[str] = []
    room = MAX_NOTE - len("\n".join([*begin, *end]))
    for arm, cells in arms.items():
        row = _row(arm, [states[cell.id] for cell in cells], [scores.get(cell.id) for cell in cells])
        room -= len(row) + 1
        if room < 0:
            rows.append(f"| and {len(arms) - len(rows)} more arms | | | |")
            break
        rows.append(row)
    return "\n".join([*begin, *rows, *end])


def _row(arm: str, states: Sequence[CellState], scores: Sequence[float | None]) -> str:
    numbers = count(states)
    known = [score for score in scores if score is not None]
    mean = f"{sum(known) / len(known):.1f}" if known else ""
    return f"| {arm} | {numbers['done']} of {len(states)} | {numbers['failed'] or ''} | {mean} |"
