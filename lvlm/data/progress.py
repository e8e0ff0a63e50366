"""How far long work on data is: a bar on a terminal, in a log a line now and then. Used by the readers of files, by the
plan and by the check of images; `lvlm.train.progress` does the same for training.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from lvlm.processes import process_index

T = TypeVar("T")
QUIET_SECONDS = 2.0
"""Work that is done by then says nothing on a terminal."""
LINE_SECONDS = 30.0
"""Between two lines where standard error is no terminal."""


def shown(work: Iterable[tuple[T, int]], *, title: str, unit: str, total: int | None = None) -> Iterator[T]:
    """Pass on the things in `work`, each with how many `unit` it stands for, and tell standard error how many of
    `total` are done. Of several processes the first one tells."""
    if process_index() > 0:
        yield from (thing for thing, _ in work)
        return
    terminal = sys.stderr.isatty()
    told, every = time.monotonic(), QUIET_SECONDS if terminal else LINE_SECONDS
    done, open_line = 0, False
    for thing, count in work:
        yield thing
        done += count
        now = time.monotonic()
        if now - told < every:
            continue
        told, every = now, 0.2 if terminal else LINE_SECONDS
        line = f"{title}: {done:,}{'' if total is None else f' of {total:,}'} {unit}"
        print(f"\r{line}\x1b[K" if terminal else line, end="" if terminal else "\n", file=sys.stderr, flush=True)
        open_line = terminal
    if open_line:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
