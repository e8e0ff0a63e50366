"""A trial that trains nothing and takes no time, for measuring what a sweep adds to one. Run by the workers of
`growth.py`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lvlm.config import RunConfig
from lvlm.records import RunRecord


def run(
    config: RunConfig, folder: Path, *, home: Path, on_progress: Callable[[dict[str, Any]], None], **_: Any
) -> RunRecord:
    """Leave a record with twenty scores; `budget/seconds` is what this took."""
    began = time.perf_counter()
    scores = {f"score/{number}": float(number) for number in range(19)} | {"score/multilingual": 50.0}
    record = RunRecord(
        name=config.name,
        seed=config.seed,
        folder=str(folder),
        stage_keys={"instruct": "0"},
        plan_hash="0",
        scores=scores,
        budget={"seconds": 0.0},
    )
    record.save(folder)
    record.budget["seconds"] = 2 * (time.perf_counter() - began)  # this saving, too
    record.save(folder)
    return record
