"""The numbers of a run folder that go to the tracker: curves, scores by language, what it used of its machine. Used by
`tracking`."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvlm.records import CURVE_FILE, SCORES_FILE, RunRecord
from sweeps.usage import usage_rows

MAX_KEYS = 200
"""Metric names of one run; beyond, MLflow's pages become slow."""
MAX_POINTS = 1000
"""Points of one curve; the whole curve stays in the run folder."""


@dataclass(frozen=True)
class Point:
    """One number of a curve. `step` counts optimizer steps over all stages of the run; `time_ms` is when it was
    measured, None where only the end of the run is known."""

    name: str
    step: int
    value: float
    time_ms: int | None = None


def run_points(record: RunRecord, folder: Path) -> list[Point]:
    """Everything that is sent of a finished run: curves, system metrics, scores, budget, and the scores by language as
    long as there is room for their names."""
    points = curve_points(folder) + usage_points(folder)
    names = {point.name for point in points}
    final = {**record.scores, **{f"budget/{name}": value for name, value in record.budget.items()}}
    tokens, seconds = record.budget.get("llm_tokens"), record.budget.get("train_seconds")
    if tokens and seconds and "train/tokens_per_second" not in names:
        final["train/tokens_per_second"] = tokens / seconds  # the mean, as the curve does not have it by step
    by_language = language_scores(folder, taken=len(names | set(final)))
    final |= {name: value for name, value in by_language.items() if name not in final}
    return [Point(name, 0, float(value)) for name, value in final.items()] + points


def usage_points(folder: Path) -> list[Point]:
    """CPU, memory and GPU while the cell ran, as `system/...`; steps count the samples."""
    points: dict[str, list[Point]] = {}
    for step, row in enumerate(usage_rows(folder)):
        time_ms = int(row.pop("time") * 1000)
        for name, value in row.items():
            points.setdefault(name, []).append(Point(f"system/{name}", step, value, time_ms))
    return [point for series in points.values() for point in _thinned(series)]


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
