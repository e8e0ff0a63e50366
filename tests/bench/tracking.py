"""What tracking costs: a cell's share of MLflow and Optuna, 2,000 metrics of a run, a study of 1,000 runs read back;
beside each the calls that one would write first.

    python tests/bench/tracking.py [--only cell,metrics,read] [--runs 1000]        about three minutes on a free core

On SQLite, and on PostgreSQL where LVLM_TEST_POSTGRES names one (eval "$(.ci/services start)").
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from loops.measure import load, table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lvlm.languages import table as languages
from lvlm.records import TASKS
from sweeps.metrics import Point
from sweeps.planner import make_plan
from sweeps.queue import Queue
from sweeps.stored_runs import read_runs, tidy_from_metrics
from sweeps.tracking import Tracker
from sweeps.tracking_store import URI_VARIABLE, connect, tracking_uri
from sweeps.worker import Worker
from tests.sweeps_fakes import RUNNER, fake_study
from tests.sweeps_storages import POSTGRES, postgres_url

CELLS = 20
TRIAL_SECONDS = 60.0
METRICS = 2000
NAMES = 500
"""Metrics of a run in the study that is read back."""


def stores() -> Iterator[tuple[str, str | None]]:
    """The name of each store, and its URL where that is no file of the work folder."""
    yield "SQLite", None
    if POSTGRES in os.environ:
        with postgres_url() as url:
            yield "PostgreSQL", url


def seconds(action: Callable[[], Any]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def cell_seconds(home: Path) -> tuple[float, float]:
    """Seconds that a cell takes beside its run: all of a worker's; and those that the naive calls take to record it."""
    plan = make_plan(fake_study(seeds=tuple(range(CELLS // 4 + 1))), runner=RUNNER)
    place = plan.place(home)
    plan.save(place)
    queue = Queue(plan, place.storage)
    queue.add_missing()
    Tracker(place, plan).mark("RUNNING", queue.states())
    worker = Worker(plan, place)
    one = queue.claim()
    assert one is not None
    worker._run_cell(one)  # imports
    whole = seconds(worker.work) / (len(plan.cells) - 1)

    import mlflow

    mlflow.set_tracking_uri(tracking_uri(home))
    mlflow.set_experiment("naive")
    folder, config = place.cell(one.cell.id), Tracker(place, plan)._params(one.cell)
    scores = json.loads((folder / "record.json").read_text())["scores"]
    curve = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]

    def naive() -> None:
        with mlflow.start_run():
            for key, value in config.items():
                mlflow.log_param(key, value)
            for step, row in enumerate(curve):
                for key in set(row) & {"loss", "tokens_per_second"}:
                    mlflow.log_metric(key, row[key], step=step)
            for key, value in scores.items():
                mlflow.log_metric(key, value)
            for file in ("config.yaml", "plan.json", "scores.parquet", "predictions.parquet"):
                mlflow.log_artifact(str(folder / file))

    return whole, min(seconds(naive) for _ in range(3))


def metrics_seconds(home: Path) -> tuple[float, float]:
    """Seconds for the metrics of one run: ours, and one call for each."""
    plan = make_plan(fake_study(seeds=(100,)), runner=RUNNER)
    tracker = Tracker(plan.place(home), plan)
    run = tracker._child(plan.cells[0])
    points = [Point(f"metric/{number % 40}", number // 40, 1.0) for number in range(METRICS)]
    ours = seconds(lambda: tracker._log(run, points, time_ms=1))
    client, other = tracker._client, tracker._child(plan.cells[1]).info.run_id
    few = points[: METRICS // 10]
    naive = seconds(lambda: [client.log_metric(other, point.name, 1.0, step=point.step) for point in few]) * 10
    return ours, naive


def read_seconds(home: Path, runs: int) -> tuple[float, float, int]:
    """Seconds from the store to the tidy table: ours, and `get_run` for each (measured on 50); rows of the table."""
    fill(home, runs)
    found: list[Any] = []
    ours = min(seconds(lambda: found.append(tidy_from_metrics(read_runs(home, "large")))) for _ in range(2))
    client = connect(home)
    experiment = client.get_experiment_by_name("large").experiment_id
    some = client.search_runs([experiment], "tags.cell_id != ''", max_results=50)
    naive = seconds(lambda: [client.get_run(run.info.run_id).data.metrics for run in some]) * runs / len(some)
    return ours, naive, len(found[-1])


def fill(home: Path, runs: int) -> None:
    """A parent and its finished cells with `NAMES` metrics each, past MLflow's own calls, which would take an hour."""
    import sqlalchemy

    client = connect(home)
    experiment = client.create_experiment("large", artifact_location=(home / "artifacts").as_uri())
    parent = client.create_run(experiment, tags={"study": "large", "version": "v", "overrides": "[]"}).info.run_id
    codes = list(languages())
    names = [f"{task}/{code}" for code in codes for task in TASKS[:10]][:NAMES]
    ids = [secrets.token_hex(16) for _ in range(runs)]
    engine = sqlalchemy.create_engine(tracking_uri(home))
    with engine.begin() as connection:

        def insert(into: str, rows: list[dict[str, Any]]) -> None:
            values = ", ".join(f":{name}" for name in rows[0])
            connection.execute(sqlalchemy.text(f"INSERT INTO {into} ({', '.join(rows[0])}) VALUES ({values})"), rows)

        base = {"status": "FINISHED", "lifecycle_stage": "active", "start_time": 1, "end_time": 2, "user_id": "u"}
        insert("runs", [{"run_uuid": run, "experiment_id": int(experiment), "name": "cell", **base} for run in ids])
        for number, run in enumerate(ids):
            tags = {
                "mlflow.parentRunId": parent, "study": "large", "arm": f"arm {number // 3}", "seed": str(number % 3),
                "cell_id": run[:12], "levels": json.dumps({"tiles": number // 3, "languages": "all"}),
            }  # fmt: skip
            insert("tags", [{"run_uuid": run, "key": key, "value": value} for key, value in tags.items()])
            point = {"timestamp": 1, "step": 0, "is_nan": False, "run_uuid": run}
            rows = [{"key": name, "value": float(number), **point} for name in names]
            insert("latest_metrics", rows)
            insert("metrics", rows)
    engine.dispose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="cell,metrics,read", help="which of them (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=1000, help="runs of the study that is read (default: %(default)s)")
    options = parser.parse_args()
    wanted, rows = options.only.split(","), []
    for store, url in stores():
        with tempfile.TemporaryDirectory(prefix="bench-tracking-") as folder:
            home = Path(folder)
            os.environ.pop(URI_VARIABLE, None)
            if url is not None:
                os.environ[URI_VARIABLE] = url
            connect(home)
            if "cell" in wanted:
                ours, naive = cell_seconds(home)
                share = f"{ours:.2f} s a cell ({ours / TRIAL_SECONDS:.1%} of a minute)"
                rows.append([store, "MLflow, Optuna, files of a cell", share, f"{naive:.2f} s, MLflow alone"])
            if "metrics" in wanted:
                ours, naive = metrics_seconds(home)
                rows.append([store, f"{METRICS:,} metrics of a run", f"{ours:.2f} s", f"{naive:.1f} s"])
            if "read" in wanted:
                ours, naive, length = read_seconds(home, options.runs)
                what = f"{options.runs:,} runs x {NAMES} metrics -> table"
                rows.append([store, what, f"{ours:.1f} s ({length:,} rows)", f"{naive:.0f} s, one call a run"])
    print(table(["store", "what", "here", "one call each"], rows))
    print(load())


if __name__ == "__main__":
    main()
