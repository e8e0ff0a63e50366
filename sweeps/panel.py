"""A sweep in a notebook: a table that shows how it stands whenever it is displayed, wherever the sweep was launched.
Public as `sweeps.watch`. Names come from the user's files, so all text is escaped."""

from __future__ import annotations

import contextlib
import html
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from ablations.studies import Study
from sweeps import status
from sweeps.live import follow
from sweeps.plan import find_place
from sweeps.standing import Lookout, Standing

if TYPE_CHECKING:
    import pandas as pd

COLOURS = {"done": "#2e9e5b", "running": "#2686c9", "failed": "#d64545", "waiting": "#8a8a8a", "pruned": "#b5850b"}
"""Of the words for states, to be read on a light page and on a dark one."""
LEFT = "text-align:left;padding:2px 10px"
RIGHT = "text-align:right;padding:2px 10px"
PADDED = "text-align:center;padding:2px 10px"


class Panel:
    """One look at a sweep, as HTML."""

    def __init__(self, standing: Standing) -> None:
        self.standing = standing

    def __repr__(self) -> str:
        standing = self.standing
        return "\n".join([status.headline(standing), *status.summary(standing), *status.notes(standing)])

    def _repr_html_(self) -> str:
        return to_html(self.standing)


class Watched:
    """A sweep that is looked at; shows how it stands whenever it is displayed."""

    def __init__(self, lookout: Lookout) -> None:
        self._lookout = lookout
        self._lookout.look()

    def __repr__(self) -> str:
        return repr(Panel(self._lookout.look()))

    def _repr_html_(self) -> str:
        return to_html(self._lookout.look())

    @property
    def frame(self) -> pd.DataFrame:
        """One row per cell: cell, arm, seed, state, seconds (of a finished cell) and score (its primary outcome)."""
        import pandas as pd

        standing = self._lookout.look()
        rows = []
        for cell in standing.cells:
            state = standing.states[cell.id]
            score, seconds = standing.score(cell), state.seconds
            numbers = [math.nan if number is None else number for number in (seconds, score)]
            rows.append((cell.id, cell.arm, cell.seed, state.state, *numbers))
        return pd.DataFrame(rows, columns=["cell", "arm", "seed", "state", "seconds", "score"])

    def follow(self, *, every_seconds: float = 2.0) -> None:
        """Keep the view up to date until nothing is left to run, or until it is interrupted, which leaves the sweep
        alone."""
        with contextlib.suppress(KeyboardInterrupt):
            follow(self._lookout, Console(highlight=False, soft_wrap=True), every_seconds=every_seconds)


def watch(study: str | Path | Study, *, overrides: Sequence[str] = (), home: str | Path | None = None) -> Watched:
    """The live view of a sweep that was launched anywhere: in this notebook, in a shell, on a cluster.

    `study`, `overrides` and `home` are those of its launch. Raises `InputError` where nothing has been launched, and
    `StorageDown` where its storage does not answer.
    """
    name = study.name if isinstance(study, Study) else study
    return Watched(Lookout(find_place(name, home, overrides)))


def to_html(standing: Standing) -> str:
    """The same as on a terminal, without scripts or anything from elsewhere."""
    text = [_tag("div", status.headline(standing), "font-weight:bold")]
    text += [_tag("div", line) for line in [*status.summary(standing), *status.notes(standing)]]
    text.append(f'<div style="max-height:30em;overflow:auto">{_table(standing)}</div>')
    text += [_tag("div", line, "white-space:pre-wrap") for line in status.worker_lines(standing)]
    text += [
        _tag("div", line, f"white-space:pre-wrap;color:{COLOURS['failed']}") for line in status.failure_lines(standing)
    ]
    return f"<div>{''.join(text)}</div>"


def _table(standing: Standing) -> str:
    seeds, primary = standing.plan.seeds, standing.plan.primary
    names = [_tag("th", "arm", LEFT), *(_tag("th", f"seed {seed}", PADDED) for seed in seeds)]
    names += [_tag("th", "done", RIGHT), _tag("th", f"{primary} (mean, n)", RIGHT)]
    rows = [f"<tr>{''.join(names)}</tr>"]
    for arm, cells in standing.arms.items():
        states = {cell.seed: standing.states[cell.id].state for cell in cells}
        row = [_tag("td", arm, LEFT)]
        for seed in seeds:
            state = states.get(seed)
            row.append(_tag("td", state or "", f"{PADDED};color:{COLOURS[state]}" if state else PADDED))
        row.append(_tag("td", f"{list(states.values()).count('done')}/{len(cells)}", RIGHT))
        scores = standing.scores(arm)
        row.append(_tag("td", f"{statistics.fmean(scores):.1f} ({len(scores)})" if scores else "", RIGHT))
        rows.append(f"<tr>{''.join(row)}</tr>")
    return f'<table style="color:inherit;font-size:inherit">{"".join(rows)}</table>'


def _tag(name: str, text: str, style: str = "") -> str:
    styled = f' style="{style}"' if style else ""
    return f"<{name}{styled}>{html.escape(text)}</{name}>"
