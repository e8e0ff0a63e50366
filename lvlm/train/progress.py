"""Tells what a run is doing: lines, a progress bar on a terminal or a line now and then in a log, and a callback for
programs. Used by `lvlm.run`, `lvlm.cli` and the loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

Listener = Callable[[dict[str, Any]], None]
LINE_SECONDS = 30.0
"""Between two progress lines where standard error is no terminal."""


@dataclass(frozen=True)
class _Bar:
    """Work under way that `advance` moves."""

    progress: Progress
    task: TaskID
    started: float


class Reporter:
    """Says lines on stderr and passes every event on to `listener`. On a terminal a bar shows how far the work is,
    elsewhere a plain line every `LINE_SECONDS`; other processes than the first are silent."""

    def __init__(self, listener: Listener | None = None, *, silent: bool = False) -> None:
        self.listener = listener
        self.console = Console(stderr=True, quiet=silent, highlight=False, soft_wrap=True)
        self.samples: dict[str, int] = {}
        """Stage -> samples of all its steps, where they are known."""
        self._bar: _Bar | None = None
        self._last_line = time.monotonic()

    def say(self, text: str) -> None:
        """One or more lines for a reader: what is frozen, what was decided."""
        self.console.print(text, markup=False)

    def tell(self, kind: str, **values: Any) -> None:
        """An event for a program: `kind` is `step`, `validation`, `features` or `evaluate`. In a log it is a line too,
        if the last one is old enough."""
        if self.listener:
            self.listener({"kind": kind, **values})
        if self.console.is_terminal or time.monotonic() - self._last_line < LINE_SECONDS:
            return
        if kind == "step":
            self._say_progress(self._step_line(values))
        elif values.get("done"):
            self._say_progress(self._count_line(kind, int(values["done"]), int(values["total"])))

    @contextmanager
    def bar(self, title: str, total: int | None, done: int = 0) -> Iterator[None]:
        """Show progress while the block runs, with what `advance` reports and the time left. Inside another bar it
        stands below that. A `total` of None comes with `advance`."""
        outer = self._bar
        with nullcontext(outer.progress) if outer else self._new_progress() as progress:
            task = progress.add_task(title, total=total, completed=done, text="")
            self._bar = _Bar(progress, task, time.monotonic())
            try:
                yield
            finally:
                progress.remove_task(task)
                self._bar = outer

    def advance(self, done: int, text: str = "", *, total: int | None = None) -> None:
        """Move the bar to `done` and show `text` beside it."""
        if self._bar:
            self._bar.progress.update(self._bar.task, completed=done, text=text, total=total)

    @contextmanager
    def evaluation(self) -> Iterator[Callable[[int, int], None]]:
        """A bar for an evaluation; yields what to call with (items done, items in all)."""

        def progress(done: int, total: int) -> None:
            self.advance(done, "items", total=total)
            self.tell("evaluate", stage="evaluate", done=done, total=total)

        with self.bar("evaluate", None):
            yield progress

    def _new_progress(self) -> Progress:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
        )
        return Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)

    def _say_progress(self, line: str) -> None:
        self._last_line = time.monotonic()
        self.say(line)

    def _step_line(self, values: Mapping[str, Any]) -> str:
        total = f" of {self.samples[values['stage']]:,}" if values["stage"] in self.samples else ""
        return (
            f"{values['stage']}: {values['samples']:,}{total} samples, step {values['step']:,} of {values['steps']:,}, "
            f"loss {values['loss']:.3f}, {values['tokens_per_second']:,.0f} tokens/s, {_left(values['seconds_left'])}"
        )

    def _count_line(self, kind: str, done: int, total: int) -> str:
        what, unit = {"features": ("image features", "images")}.get(kind, (kind, "items"))
        left = "" if self._bar is None else ", " + _left((time.monotonic() - self._bar.started) / done * (total - done))
        return f"{what}: {done:,} of {total:,} {unit}{left}"


def _left(seconds: float) -> str:
    return f"{timedelta(seconds=round(seconds))} left"
