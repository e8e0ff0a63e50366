"""What a reader of a terminal or a log is told about a sweep. Used by `sweeps.live`, `sweeps.panel`, `sweeps.launcher`
and the command `status`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sweeps.progress import duration
from sweeps.queue import State
from sweeps.standing import Best, Standing, Working

if TYPE_CHECKING:
    from rich.console import Group

ORDER: tuple[State, ...] = ("running", "failed", "pruned", "done", "waiting")
"""In which arms are told where there is no room for all."""
MARKS = {"done": ("●", "green"), "running": ("◐", "cyan"), "failed": ("✗", "red"), "waiting": ("·", "dim")}
MARKS |= {"pruned": ("−", "yellow")}
FRAME = 5
"""Lines of a table beside its rows, and one that stays free."""
FEWEST_ROWS = 5


def headline(standing: Standing) -> str:
    """How the sweep stands, in one line."""
    plan, numbers = standing.plan, standing.numbers
    text = f"{plan.study}: {numbers['done']} of {plan.size} cells done"
    parts = [f"{numbers[name]} {name}" for name in ("running", "waiting", "failed", "pruned") if numbers[name]]
    text += f" ({', '.join(parts)})" if parts else ""
    left = standing.seconds_left
    return text + (f", about {duration(left)} left" if left is not None else "")


def summary(standing: Standing) -> list[str]:
    """What the cells say together: arms, the best so far, where the time goes."""
    names = list(standing.arm_states.values())
    parts = [f"{names.count(name)} {name}" for name in ("done", "running", "failed", "pruned", "waiting")]
    lines = [f"arms: {', '.join(part for part in parts if not part.startswith('0 '))}"]
    lines += map(best_line, standing.bests)
    if standing.shares:
        lines.append(f"time: {', '.join(f'{share:.0%} {phase}' for phase, share in standing.shares.items())}")
    return lines


def notes(standing: Standing) -> list[str]:
    """Why nothing moves, where it does not."""
    lines = []
    if standing.numbers["waiting"] and not standing.numbers["running"]:
        command = f"{standing.plan.launch_command}{standing.place.home_option}"
        lines.append(f"no worker holds a cell now; where none is about to, go on with: {command}")
    if standing.trouble:
        lines.append(f"as it stood at {time.strftime('%H:%M:%S', time.localtime(standing.at))}: {standing.trouble}")
    return lines


def best_line(best: Best) -> str:
    """An objective, its highest mean with the seeds behind it, and the arm."""
    return f"best {best.objective}: {best.mean:.1f} (mean of {best.n} of {best.seeds} seeds), {best.arm}"


def worker_lines(standing: Standing) -> list[str]:
    """Every machine with its workers, and what each does."""
    lines: list[str] = []
    for machine in dict.fromkeys(one.machine for one in standing.working):
        here = [one for one in standing.working if one.machine == machine]
        lines.append(f"{machine}: {len(here)} worker(s)")
        lines += [f"  {worker_line(one, standing.at)}" for one in here]
    return lines


def worker_line(one: Working, now: float) -> str:
    """A worker and its cell; `now` in seconds since 1970."""
    since = f" for {duration(max(0.0, now - one.started))}" if one.started else ""
    who = f"process {one.pid}" if one.pid is not None else "a worker"
    return f"{who}: {one.cell.arm}, seed {one.cell.seed}{since}: {one.doing}"


def failure_lines(standing: Standing) -> list[str]:
    """Every failed cell, with where to read on, and every pruned one."""
    lines = []
    for cell, why, file in standing.failures:
        lines.append(f"failed   {cell.arm}, seed {cell.seed}: {why}")
        if file is not None:
            lines.append(f"         {file}")
    return [*lines, *(f"pruned   {cell.arm}, seed {cell.seed}" for cell in standing.pruned)]


def view(standing: Standing, *, size: tuple[int, int] | None = None) -> Group:
    """The table of a terminal. On one of `size` (columns, lines) the arms that matter most have its rows, and the
    others are counted."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    above = [headline(standing)]
    below = [*summary(standing), *notes(standing), *worker_lines(standing), *failure_lines(standing)]
    arms = list(standing.arms)
    if size is not None:
        taken = sum(-(-len(line) // size[0]) for line in [*above, *below])
        room = max(FEWEST_ROWS, size[1] - FRAME - taken)
        arms = arms if len(arms) <= room else foremost(standing, room - 1)
    table = Table(expand=False)
    table.add_column("arm")
    for seed in standing.plan.seeds:
        table.add_column(f"seed {seed}", justify="center")
    table.add_column("done", justify="right")
    table.add_column(standing.plan.primary, justify="right")
    for arm in arms:
        cells = {cell.seed: standing.states[cell.id].state for cell in standing.arms[arm]}
        row = [Text(*MARKS[cells[seed]]) if seed in cells else Text("") for seed in standing.plan.seeds]
        done = f"{list(cells.values()).count('done')}/{len(cells)}"
        table.add_row(Text(arm), *row, done, mean_of(standing, arm))
    if others := len(standing.arms) - len(arms):
        table.add_row(Text(f"and {others} more arms", "dim"))

    def written(lines: list[str]) -> list[Text]:
        return [Text(line, overflow="fold") for line in lines]

    return Group(*written(above), table, *written(below))


def mean_of(standing: Standing, arm: str) -> str:
    """The primary outcome of an arm over its finished seeds; empty before the first."""
    scores = standing.scores(arm)
    return f"{sum(scores) / len(scores):.1f}" if scores else ""


def foremost(standing: Standing, number: int) -> list[str]:
    """So many arms, those first that run, failed or were pruned, then the best; in the order of the design."""

    def rank(arm: str) -> tuple[int, float]:
        scores = standing.scores(arm)
        return ORDER.index(standing.arm_states[arm]), -sum(scores) / len(scores) if scores else 0.0

    chosen = set(sorted(standing.arms, key=rank)[:number])
    return [arm for arm in standing.arms if arm in chosen]
