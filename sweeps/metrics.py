"""The numbers of a run folder that go to the tracker: the curve of its training and its scores by language. Used by
`tracking`."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvlm.records import CURVE_FILE, SCORES_FILE

MAX_KEYS = 200
"""Metric names of one run; beyond, MLflow's pages become slow."""
MAX_POINTS = 1000
"""Points of one curve; the whole curve stays in the run folder."""


@dataclass(frozen=True)
class Point:
    """One number of a curve. `step` counts optimizer steps over all stages of the run."""

    name: str
    step: int
    value: float


def curve_points(folder: Path) -> list[Point]:
    """The training curve: `train/loss`, `train/tokens_per_second`, and the scores of the `tune` split where they were
    taken."""
    rows = _rows(folder / CURVE_FILE)
    points: dict[str, list[Point]] = {}
    offset, last_step, stage = 0, 0, None
    for row in rows:
        if row.get("stage") != stage:
            offset, stage = offset + last_step, row.get("stage")
        last_step = int(row.get("step", last_step))
        for key, value in row.items():
            if name := _name(key, value):
                points.setdefault(name, []).append(Point(name, offset + last_step, float(value)))
    return [point for series in points.values() for point in _thinned(series)]


def language_scores(folder: Path, *, taken: int) -> dict[str, float]:
    """`<task>/<language>` -> score in percent; none at all where the run would have `MAX_KEYS` metrics or more."""
    if not (folder / SCORES_FILE).exists():
        return {}
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(folder / SCORES_FILE, columns=["task", "language", "metric", "value"]).to_pylist()
    scores = {
        f"{row['task']}/{row['language']}": float(row["value"])
        for row in rows
        if row["metric"] == "score" and row["value"] is not None and math.isfinite(row["value"])
    }
    return scores if taken + len(scores) < MAX_KEYS else {}


def _name(key: str, value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    if key in ("loss", "tokens_per_second"):
        return f"train/{key}"
    # Scores while training are those of the `tune` split; `score/...` itself is the final score.
    return f"tune/{key}" if "/" in key else None


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _thinned(series: list[Point]) -> list[Point]:
    every = math.ceil(len(series) / MAX_POINTS)
    return [point for index, point in enumerate(series) if index % every == 0 or index == len(series) - 1]
