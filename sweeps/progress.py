"""How far a running cell is: written by its worker from the run's events, read by `launch` and `status`."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRESS_FILE = "progress.json"
EVERY_SECONDS = 0.5


@dataclass(frozen=True)
class Progress:
    """What a cell does now. `fraction` is that of its stage, None where the run does not say."""

    stage: str | None
    text: str
    fraction: float | None


class ProgressFile:
    """A listener for `lvlm.run.run(..., on_progress=)` that keeps the last event in the run folder, at most twice a
    second."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / PROGRESS_FILE
        self._written = 0.0
        self._kind: object = None

    def __call__(self, event: Mapping[str, Any]) -> None:
        now = time.monotonic()
        kind = (event.get("kind"), event.get("stage"))
        if now - self._written < EVERY_SECONDS and kind == self._kind:
            return
        self._written, self._kind = now, kind
        # A progress file may be lost in a crash, so it is renamed into place but not forced to disk.
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        temporary.write_text(json.dumps({**event, "time": time.time()}, default=str), encoding="utf-8")
        temporary.replace(self._path)


def read_progress(folder: Path) -> Progress | None:
    """How far the cell in `folder` is; None before its first event."""
    try:
        event = json.loads((folder / PROGRESS_FILE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    stage = event.get("stage") or event.get("kind")
    done, total = event.get("step", event.get("done")), event.get("steps", event.get("total"))
    fraction = done / total if isinstance(done, int | float) and isinstance(total, int | float) and total else None
    parts = [str(stage or "")]
    if fraction is not None:
        parts.append(f"{done}/{total}")
    if isinstance(loss := event.get("loss"), int | float):
        parts.append(f"loss {loss:.2f}")
    if isinstance(speed := event.get("tokens_per_second"), int | float):
        parts.append(f"{speed:,.0f} tokens/s")
    if isinstance(left := event.get("seconds_left"), int | float):
        parts.append(f"{duration(left)} left")
    return Progress(stage=str(stage) if stage else None, text=" ".join(parts).strip(), fraction=fraction)


def duration(seconds: float) -> str:
    """Seconds as a reader says them: `45 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
