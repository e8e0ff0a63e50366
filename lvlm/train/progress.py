"""Tells what a run is doing: lines, a progress bar on a terminal, and a callback for programs. Used by `lvlm.run` and
the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

Listener = Callable[[dict[str, Any]], None]


class Reporter:
    """Says lines on stderr and passes every event on to `listener`. The bar shows on a terminal only; other processes
    than the first are silent."""

    def __init__(self, listener: Listener | None = None, *, silent: bool = False) -> None:
        self.listener = listener
        self.console = Console(stderr=True, quiet=silent, highlight=False, soft_wrap=True)
        self._bar: tuple[Progress, TaskID] | None = None

    def say(self, text: str) -> None:
        """One or more lines for a reader: what is frozen, what was decided."""
        self.console.print(text, markup=False)

    def tell(self, kind: str, **values: Any) -> None:
        """An event for a program: `kind` is `step`, `validation`, `features` or `evaluate`."""
        if self.listener:
            self.listener({"kind": kind, **values})

    @contextmanager
    def bar(self, title: str, total: int, done: int = 0) -> Iterator[None]:
        """Show progress while the block runs, with what `advance` reports and the time left."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as progress:
            task = progress.add_task(title, total=total, completed=done, text="")
            self._bar = (progress, task)
            try:
                yield
            finally:
                self._bar = None

    def advance(self, done: int, text: str = "") -> None:
        """Move the bar to `done` and show `text` beside it."""
        if self._bar:
            progress, task = self._bar
            progress.update(task, completed=done, text=text)
