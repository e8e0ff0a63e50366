"""A study's runs as an MLflow store has them, read in a few queries, and their tidy table: for a machine that has the
store and no run folders. Used by the command `export`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pandas as pd

from ablations.studies import results_name
from ablations.table import BUDGET_COLUMNS, LEADING, TRAILING, Origin, write_results
from lvlm.errors import InputError
from lvlm.languages import find, language
from lvlm.records import SCORE_COLUMNS, SCORES_FILE, TASKS
from sweeps.plan import Place
from sweeps.read import Export
from sweeps.tracking_store import connect, is_server, is_there, shown, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

PAGE = 200
"""Runs in one answer of a server, which has to write all of them before it sends any."""
DOWNLOADS = 8


@dataclass(frozen=True)
class StoredRuns:
    """The finished cells of one launch. `metrics` has the columns `run` (of MLflow), `name`, `value`."""

    parent: dict[str, str]
    """Tags of the parent run."""
    tags: dict[str, dict[str, str]]
    """Run of MLflow -> its tags."""
    artifacts: dict[str, str]
    """Run of MLflow -> where its artifacts lie."""
    metrics: pd.DataFrame
    """`run` and `name` as categories."""


def read_runs(home: Path, study: str, *, overrides: Sequence[str] = ()) -> StoredRuns:
    """The finished cells of the latest launch of a study with these overrides in the work folder's store."""
    client = connect(home) if is_there(home) else None
    experiment = client.get_experiment_by_name(study) if client else None
    found = client.search_runs([experiment.experiment_id], "tags.version != ''") if client and experiment else []
    wanted = results_name(study, overrides)
    parents = [run for run in found if results_name(study, json.loads(run.data.tags["overrides"])) == wanted]
    if client is None or experiment is None or not parents:
        raise InputError(
            f"The MLflow store {shown(tracking_uri(home))} has no study '{wanted}'. Name the store that has it in the "
            "environment variable MLFLOW_TRACKING_URI, or launch the study here."
        )
    read = _from_server if is_server(tracking_uri(home)) else _from_database
    tags, artifacts, metrics = read(client, tracking_uri(home), experiment.experiment_id, parents[0].info.run_id)
    return StoredRuns(dict(parents[0].data.tags), tags, artifacts, metrics)


def tidy_from_metrics(runs: StoredRuns) -> pd.DataFrame:
    """The tidy table as far as metrics tell it: the score of every task and language that they name; how many items it
    is a mean of (`n`) they do not say."""
    codes = runs.metrics["name"].cat.codes.to_numpy()
    known = [_task_and_language(name) for name in runs.metrics["name"].cat.categories]
    wanted = np.array([part is not None for part in known], dtype=bool)[codes]
    rows, of_row = runs.metrics[wanted], codes[wanted]
    columns = zip(*(part or ("", "", "") for part in known), strict=True) if known else ((), (), ())
    labels = {
        name: np.array(column, dtype=object)[of_row]
        for name, column in zip(("task", "language", "tier"), columns, strict=True)
    }
    frame = pd.DataFrame({**labels, "metric": "score", "value": rows["value"].to_numpy(), "n": np.nan})
    return _with_cells(runs, frame.assign(mlflow=rows["run"].array))


def tidy_from_scores(runs: StoredRuns, client: MlflowClient) -> tuple[pd.DataFrame, list[str]]:
    """The whole tidy table, from each run's scores.parquet; and the runs whose file cannot be read from here."""
    with ThreadPoolExecutor(DOWNLOADS) as pool:
        found = dict(zip(runs.tags, pool.map(lambda run: _scores(runs, client, run), runs.tags), strict=True))
    parts = [table[list(SCORE_COLUMNS)].assign(mlflow=run) for run, table in found.items() if table is not None]
    parts = parts or [pd.DataFrame(columns=[*SCORE_COLUMNS, "mlflow"])]
    frame = pd.concat(parts, ignore_index=True)
    frame["tier"] = frame["language"].map({code: language(code).tier for code in frame["language"].unique()})
    return _with_cells(runs, frame), [run for run, table in found.items() if table is None]


def export_from_store(place: Place, source: str, *, overrides: Sequence[str] = ()) -> tuple[Export, int]:
    """Write results, budget and origin of a study into its folder, and how many of the runs are in them by their
    metrics alone. `source` is how the user names the study."""
    home, study = place.home, place.study
    runs = read_runs(home, study, overrides=overrides)
    if not runs.tags:
        raise InputError(f"The MLflow store {shown(tracking_uri(home))} has no finished run of '{study}' yet.")
    table, without = tidy_from_scores(runs, connect(home))
    if without:
        rest = tidy_from_metrics(runs)
        cells = {runs.tags[run]["cell_id"] for run in without}
        table = pd.concat([part for part in (table, rest[rest["run"].isin(cells)]) if len(part)], ignore_index=True)
    results = write_results(place.folder, table, budget=_budget(runs), origin=_origin(runs, source))
    return Export(results, None, runs=len(runs.tags), planned=_planned(runs)), len(without)


def _with_cells(runs: StoredRuns, frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` with the columns of each run's cell in front of its rows, one level for each factor."""
    levels = {run: json.loads(tags["levels"]) for run, tags in runs.tags.items()}
    factors = list(dict.fromkeys(name for found in levels.values() for name in found))
    codes = frame.pop("mlflow").astype(pd.CategoricalDtype(list(runs.tags))).cat.codes.to_numpy()
    cells = pd.DataFrame(
        {
            "study": [tags["study"] for tags in runs.tags.values()],
            "arm": [tags["arm"] for tags in runs.tags.values()],
            "seed": [int(tags["seed"]) for tags in runs.tags.values()],
            **{name: pd.Series([found.get(name) for found in levels.values()], dtype=object) for name in factors},
            "run": [tags["cell_id"] for tags in runs.tags.values()],
        }
    )
    columns = {str(name): cells[name].to_numpy()[codes] for name in cells}
    table = frame.assign(**columns)[[*LEADING, *factors, *TRAILING]]
    return table.infer_objects()


def _from_server(
    client: MlflowClient, _uri: str, experiment: str, parent: str
) -> tuple[dict[str, dict[str, str]], dict[str, str], pd.DataFrame]:
    tags: dict[str, dict[str, str]] = {}
    artifacts: dict[str, str] = {}
    rows: list[tuple[str, str, float]] = []
    where, token = f"tags.`mlflow.parentRunId` = '{parent}' and attributes.status = 'FINISHED'", None
    while True:
        page = client.search_runs([experiment], where, max_results=PAGE, page_token=token)
        for run in page:
            tags[run.info.run_id] = dict(run.data.tags)
            artifacts[run.info.run_id] = run.info.artifact_uri
            rows += [(run.info.run_id, name, value) for name, value in run.data.metrics.items()]
        token = page.token
        if not token:
            return tags, artifacts, _metrics(rows)


def _from_database(
    _client: MlflowClient, uri: str, _experiment: str, parent: str
) -> tuple[dict[str, dict[str, str]], dict[str, str], pd.DataFrame]:
    """Three queries, past MLflow's own objects: it would make one for every number."""
    import sqlalchemy

    children = (
        "SELECT tags.run_uuid FROM tags JOIN runs ON runs.run_uuid = tags.run_uuid WHERE tags.key = "
        "'mlflow.parentRunId' AND tags.value = :parent AND runs.status = 'FINISHED' AND "
        "runs.lifecycle_stage = 'active'"
    )
    engine = sqlalchemy.create_engine(uri)
    try:
        with engine.connect() as connection:

            def rows(query: str) -> list[Any]:
                return list(connection.execute(sqlalchemy.text(query), {"parent": parent}).cursor.fetchall())

            tags: dict[str, dict[str, str]] = {}
            for run, key, value in rows(f"SELECT run_uuid, key, value FROM tags WHERE run_uuid IN ({children})"):
                tags.setdefault(run, {})[key] = value
            artifacts = dict(rows(f"SELECT run_uuid, artifact_uri FROM runs WHERE run_uuid IN ({children})"))
            found = rows(
                "SELECT run_uuid, key, CASE WHEN is_nan THEN NULL ELSE value END FROM latest_metrics "
                f"WHERE run_uuid IN ({children})"
            )
    finally:
        engine.dispose()
    return tags, artifacts, _metrics(found)


def _metrics(rows: list[Any]) -> pd.DataFrame:
    """Rows of run, name and value as columns; a run and a name stand in many of them, so as categories."""
    columns: dict[str, Any] = {}
    for position, column in enumerate(("run", "name")):
        index: dict[str, int] = {}
        codes = np.fromiter((index.setdefault(row[position], len(index)) for row in rows), np.int32, len(rows))
        columns[column] = pd.Categorical.from_codes(codes, pd.Index(list(index)))
    values = (math.nan if row[2] is None else row[2] for row in rows)
    return pd.DataFrame(columns | {"value": np.fromiter(values, np.float64, len(rows))})


def _task_and_language(name: str) -> tuple[str, str, str] | None:
    """Task, language and tier of a metric's name; None where it is none of a task and a language."""
    task, _, code = name.partition("/")
    if task not in TASKS or not code:
        return None
    found = find(code)
    return (task, found.language.code, found.language.tier) if found else None  # not for `multilingual`


def _scores(runs: StoredRuns, client: MlflowClient, run: str) -> pd.DataFrame | None:
    try:
        place = urlsplit(runs.artifacts[run])
        if place.scheme in ("", "file"):
            path = Path(unquote(place.path)) / SCORES_FILE
        else:
            path = Path(client.download_artifacts(run, SCORES_FILE))
        return pd.read_parquet(path)
    except Exception:  # a folder of another machine, a server without artifacts: the metrics have to do
        return None


def _budget(runs: StoredRuns) -> pd.DataFrame:
    spent = runs.metrics[runs.metrics["name"].isin([f"budget/{name}" for name in BUDGET_COLUMNS])]
    wide = spent.pivot(index="run", columns="name", values="value").reindex(list(runs.tags))
    columns = {name: wide.get(f"budget/{name}", pd.Series(math.nan, wide.index)).to_numpy() for name in BUDGET_COLUMNS}
    who = [(tags["cell_id"], tags["arm"], int(tags["seed"])) for tags in runs.tags.values()]
    return pd.DataFrame(who, columns=["run", "arm", "seed"]).assign(**columns)


def _origin(runs: StoredRuns, source: str) -> Origin:
    parent = runs.parent
    return Origin(
        study=parent["study"],
        source=source,
        version=parent["version"],
        budget=parent.get("budget", "default"),
        overrides=tuple(json.loads(parent.get("overrides", "[]"))),
        held_equal=parent.get("held_equal", "samples"),
        search=parent.get("search", ""),
        seeds=tuple(sorted({int(tags["seed"]) for tags in runs.tags.values()})),
        git_commits=tuple(dict.fromkeys(tags.get("git_commit", "unknown") for tags in runs.tags.values())),
    )


def _planned(runs: StoredRuns) -> int:
    return int(runs.parent.get("cells", len(runs.tags)))
