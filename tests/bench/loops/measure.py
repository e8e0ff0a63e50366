"""Wall and CPU seconds of named phases, and small tables. Used by the benches beside this folder."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Wall seconds and CPU seconds (all threads of this process)."""

    wall: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.wall + other.wall, self.cpu + other.cpu)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.wall - other.wall, self.cpu - other.cpu)


class Clock:
    """Costs by phase, a phase inside another one taken from it; stands in for `lvlm.provenance.Phases`, which counts
    wall time only."""

    def __init__(self) -> None:
        self.costs: dict[str, Cost] = defaultdict(Cost)
        self._inner: list[Cost] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = Cost(time.perf_counter(), time.process_time())
        self._inner.append(Cost())
        try:
            yield
        finally:
            whole = Cost(time.perf_counter(), time.process_time()) - began
            self.costs[name] += whole - self._inner.pop()
            if self._inner:
                self._inner[-1] += whole


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need; the first on the left, numbers on the right."""
    lines = [list(head), *[list(row) for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def load() -> str:
    """How busy the machine is, for the reader of a figure."""
    return f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
