"""A home whose MLflow database is there already, sweeps in it, and what they left. Shared by the tests of `sweeps`."""

from __future__ import annotations

import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from sweeps.launcher import Outcome, launch
from sweeps.plan import Place, Plan
from sweeps.planner import make_plan
from sweeps.queue import Queue
from sweeps.storage import choose_storage
from sweeps.tracking_store import connect, database
from sweeps.worker import Worker
from tests.sweeps_fakes import CALLS, RUNNER


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    lay_database(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    monkeypatch.setattr("sweeps.launcher.POLL_SECONDS", 0.1)
    return tmp_path


def lay_database(home: Path) -> None:
    """A database without runs, copied into a test's folder. Creating MLflow's tables takes seconds: once is enough."""
    shutil.copyfile(_empty_database(home.parent), database(home))


@cache
def _empty_database(session: Path) -> Path:
    folder = session / "mlflow"
    folder.mkdir()
    connect(folder)
    with sqlite3.connect(database(folder)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return database(folder)


def enqueued(
    home: Path, study: Any, *, runner: str = RUNNER, overrides: Sequence[str] = (), storage: str | None = None
) -> tuple[Plan, Place, Queue]:
    """A study as a launch leaves it to its workers: planned, and every cell waits."""
    plan = make_plan(study, runner=runner, overrides=overrides)
    place = plan.place(home)
    kept = choose_storage(place.folder, plan.study, storage)
    queue = Queue(plan, kept)
    queue.add_missing()
    kept.save()
    plan.save(place)
    return plan, place, queue


def work_alone(
    home: Path, study: Any, *, overrides: Sequence[str] = (), retry_failed: bool = False, runner: str = RUNNER
) -> Outcome:
    """A launch whose cells are run in this process, so that no worker has to start."""
    plan, place, queue = enqueued(home, study, runner=runner, overrides=overrides)
    if retry_failed:
        queue.requeue_failed()
    Worker(plan, place).work()
    return launch(study, workers=1, home=home, runner=runner, overrides=overrides)


def runs_of(home: Path, *, parents: bool = False) -> list[Any]:
    client = connect(home)
    experiment = client.get_experiment_by_name("fake")
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    return [run for run in runs if ("mlflow.parentRunId" not in run.data.tags) == parents]


def calls(home: Path) -> list[list[str]]:
    path = home / CALLS
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def when(condition: Callable[[], object], act: Callable[[], object]) -> threading.Thread:
    """Act once, in a thread, as soon as the condition holds."""

    def watch() -> None:
        deadline = time.monotonic() + 120
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.05)
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread
