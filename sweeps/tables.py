"""Tables that MLflow's page of a run shows: the scores, answers and mix of a cell, the effects of a study. Used by
`tracking`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from lvlm.records import PLAN_FILE, PREDICTIONS_FILE, SCORES_FILE

TABLES_TAG = "mlflow.loggedArtifacts"
"""The tag by which the page knows that a JSON file is a table."""
ANSWERS = 200
"""Rows of predictions that a page shows; predictions.parquet has all."""


def run_tables(folder: Path) -> dict[str, pd.DataFrame]:
    """File name -> table of a run folder: `scores.json`, a column per metric; `mix.json`, what each stage saw in which
    language and what of it was cut; `answers.json`, the first of each task and language."""
    tables = {}
    if (folder / SCORES_FILE).exists():
        scores = pd.read_parquet(folder / SCORES_FILE)
        wide = scores.pivot_table(index=["task", "language"], columns="metric", values="value", sort=False)
        items = scores.groupby(["task", "language"], sort=False)["n"].max().rename("items")
        tables["scores.json"] = wide.round(2).join(items).reset_index()
    if mix := _mix(folder / PLAN_FILE):
        tables["mix.json"] = pd.DataFrame(mix)
    if (folder / PREDICTIONS_FILE).exists():
        answers = pd.read_parquet(folder / PREDICTIONS_FILE)
        groups = max(1, answers[["task", "language"]].drop_duplicates().shape[0])
        each = max(1, ANSWERS // groups)
        tables["answers.json"] = answers.groupby(["task", "language"], sort=False).head(each).head(ANSWERS)
    return tables


def report_tables(files: list[Path]) -> dict[str, pd.DataFrame]:
    """File name -> table of a report's CSV files."""
    return {f"{file.stem}.json": pd.read_csv(file) for file in files if file.suffix == ".csv"}


def as_json(table: pd.DataFrame) -> dict[str, Any]:
    """A table as MLflow keeps one."""
    loaded: dict[str, Any] = json.loads(table.to_json(orient="split", index=False, default_handler=str))
    return loaded


def tables_tag(names: Mapping[str, Any]) -> str:
    """The value of `TABLES_TAG`."""
    return json.dumps([{"path": name, "type": "table"} for name in names])


def _mix(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    stages = json.loads(path.read_text(encoding="utf-8"))
    return [
        {"stage": stage, **row}
        for stage, summary in stages.items()
        if isinstance(summary, dict)
        for row in summary.get("mix", ())
    ]
