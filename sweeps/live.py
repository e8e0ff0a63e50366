"""A view of a sweep that stays while it runs: a table drawn again and again on a terminal and in a notebook, a line for
every event in a log. Used by `sweeps.launcher`, `sweeps.panel` and the command `status`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.live import Live

from sweeps import status
from sweeps.standing import Lookout, Standing

HEADLINE_SECONDS = 30.0
"""In a log a line says how the sweep stands, so often where nothing else does."""

Show = Callable[[Standing, Sequence[str]], None]


@contextlib.contextmanager
def shown(console: Console, first: Standing) -> Iterator[Show]:
    """What shows how a sweep stands, and what happened meanwhile in lines; `first` is how it stands now."""
    if console.is_jupyter:
        with _in_notebook(console, first) as show:
            yield show
    elif console.is_terminal:
        with _on_terminal(console, first) as show:
            yield show
    else:
        yield _Log(console, first)


def follow(lookout: Lookout, console: Console, *, every_seconds: float) -> Standing:
    """Show a sweep until nothing is left to run, whoever runs it; how it ended. Ctrl-C is for the caller to catch."""
    standing = lookout.look()
    with shown(console, standing) as show:
        while not standing.is_over:
            time.sleep(every_seconds)
            away = bool(standing.trouble)
            standing = lookout.look()
            said = [standing.trouble] if standing.trouble and not away else []
            said += ["the storage answers again"] if away and not standing.trouble else []
            show(standing, said)
    return standing


@contextlib.contextmanager
def _on_terminal(console: Console, first: Standing) -> Iterator[Show]:
    with Live(status.view(first, size=console.size), console=console, auto_refresh=False) as live:

        def redraw(standing: Standing, said: Sequence[str]) -> None:
            for line in said:
                live.console.print(line, markup=False)
            live.update(status.view(standing, size=console.size), refresh=True)

        yield redraw


@contextlib.contextmanager
def _in_notebook(console: Console, first: Standing) -> Iterator[Show]:
    # rich's own live display needs ipywidgets; a cell's output can be replaced without.
    from IPython.display import display

    from sweeps.panel import Panel

    output: Any = display(Panel(first), display_id=True)  # type: ignore[no-untyped-call]

    def redraw(standing: Standing, said: Sequence[str]) -> None:
        for line in said:
            console.print(line, markup=False)
        output.update(Panel(standing))

    yield redraw


class _Log:
    """A line for every cell that begins or ends, and one now and then."""

    def __init__(self, console: Console, first: Standing) -> None:
        self._console = console
        self._known = {cell_id: state.state for cell_id, state in first.states.items()}
        self._said = time.monotonic()

    def __call__(self, standing: Standing, said: Sequence[str]) -> None:
        cells = {cell.id: cell for cell in standing.cells}
        for line in said:
            self._say(line)
        for cell_id, state in standing.states.items():
            if state.state not in ("waiting", self._known.get(cell_id)):
                why = (state.error or "").partition("\n")[0]
                what = f"{cells[cell_id].arm}, seed {cells[cell_id].seed}{why and f': {why}'}"
                self._say(f"{state.state:8} {what}   [{status.headline(standing)}]")
            self._known[cell_id] = state.state
        if time.monotonic() - self._said >= HEADLINE_SECONDS:
            self._say(status.headline(standing))

    def _say(self, line: str) -> None:
        self._said = time.monotonic()
        self._console.print(line, markup=False)
