"""A trial that trains nothing and takes no time, for measuring what a sweep adds to one. Run by the workers of
`growth.py`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lvlm.config import RunConfig, to_yaml
from lvlm.records import CONFIG_FILE, RunRecord, write_text


def run(
    config: RunConfig, folder: Path, *, home: Path, on_progress: Callable[[dict[str, Any]], None], **_: Any
) -> RunRecord:
    """Leave a record with twenty scores; `budget/seconds` is what this took."""
    began = time.perf_counter()
    write_text(folder / CONFIG_FILE, to_yaml(config))
    scores = {f"score/{number}": float(number) for number in range(19)} | {"score/multilingual": 50.0}
    record = RunRecord(
        name=config.name,
        seed=config.seed,
        folder=str(folder),
        stage_keys={"instruct": "0"},
        plan_hash="0",
        scores=scores,
        budget={"seconds": time.perf_counter() - began},
    )
    record.save(folder)
    record.budget["seconds"] = time.perf_counter() - began
    record.save(folder)
    return record
