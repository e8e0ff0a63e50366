"""What MLflow shows of a sweep: one experiment per study, a parent run per version, a child run per cell. Used by
`worker`, `launch`, `cli`.

Everything is read from run folders, after the fact, so a tracker that is down costs nothing: what was not sent is sent
by the next launch.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lvlm.config import flatten
from lvlm.errors import InputError
from lvlm.provenance import git_commit
from lvlm.records import (
    CONFIG_FILE,
    PLAN_FILE,
    PREDICTIONS_FILE,
    RECORD_FILE,
    SCORES_FILE,
    RunRecord,
    write_json,
    write_text,
)
from lvlm.train.locks import file_lock
from sweeps.metrics import curve_points, language_scores
from sweeps.plan import TRACEBACK_FILE, Place, Plan, PlannedCell
from sweeps.queue import CellState, State, count

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

TRACKED_FILE = "tracked.json"  # parent run -> the cell's run and the state that has arrived there whole
UNTRACKED_FILE = "untracked.txt"  # why the tracker does not have this cell yet
ARTIFACTS = (CONFIG_FILE, PLAN_FILE, SCORES_FILE, PREDICTIONS_FILE)
LABEL_TAG = "tag."  # before each of a run's labels
MAX_TEXT = 6000  # characters of an MLflow param; config.yaml holds the whole
BATCH_METRICS, BATCH_PARAMS = 1000, 100  # limits of one MLflow request


def database(home: Path) -> Path:
    """The SQLite file of MLflow."""
    return home / "mlflow.db"


def tracking_uri(home: Path) -> str:
    """Where MLflow keeps the runs of a work folder."""
    return f"sqlite:///{database(home)}"


def connect(home: Path) -> MlflowClient:
    """A client on the work folder's database, which is created on first use: by one process, in WAL mode, so that
    workers can write at once."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for noisy in ("alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    from mlflow import MlflowClient

    home.mkdir(parents=True, exist_ok=True)
    with file_lock(home / ".mlflow.lock", purpose="opens the MLflow database"):
        # MLflow tries a database that cannot be opened again for more than an hour: look first.
        with contextlib.closing(sqlite3.connect(database(home), timeout=20)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.rollback()
        client = MlflowClient(tracking_uri=tracking_uri(home))
        client.search_experiments(max_results=1)  # creates the tables
        with contextlib.closing(sqlite3.connect(database(home), timeout=20)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
    return client


class Tracker:
    """Sends finished cells of one plan to MLflow. Only `attach` raises for a tracker that fails; else `trouble` says
    why, and a cell that was not sent has a note beside its run."""

    def __init__(self, place: Place, plan: Plan) -> None:
        self.place = place
        self.plan = plan
        self.trouble: str | None = None
        """Why the tracker failed last, in one line."""

    def send(self, cell: PlannedCell, states: Mapping[str, CellState]) -> bool:
        """Record a finished or failed cell and the progress of its sweep; False where it has to be sent again."""
        return self._send(cell, states[cell.id]) and self._tell_parent(states)

    def unsent(self, states: Mapping[str, CellState]) -> list[PlannedCell]:
        """Cells that have finished or failed and that this version's parent run does not have as they are now. Where
        MLflow does not answer: those that no parent run has."""
        try:
            parent = self._parent
        except Exception as error:  # as in `_send`
            self._forget(error)
            parent = None
        cells = []
        for cell in self.plan.cells:
            folder = self.place.cell(cell.id)
            sent = [entry["state"] for run, entry in _tracked(folder).items() if parent in (None, run)]
            is_new = self._shown(cell) not in sent or (folder / UNTRACKED_FILE).exists()
            state = states[cell.id].state
            if is_new and (state == "failed" or (state == "done" and self.place.is_recorded(cell.id))):
                cells.append(cell)
        return cells

    def send_unsent(self, states: Mapping[str, CellState], *, say: Callable[[str], None] = lambda _: None) -> int:
        """Send what earlier launches could not, and then the progress of the sweep; how many cells are still missing
        afterwards. `say` is told how many there are, as it can take a while."""
        cells = self.unsent(states)
        if not cells:
            return 0
        say(f"sending {len(cells)} cell{'s' if len(cells) > 1 else ''} to MLflow")
        for sent, cell in enumerate(cells):
            if not self._send(cell, states[cell.id]):
                return len(cells) - sent  # it is down: the others would fail alike
        self._tell_parent(states)
        return 0

    def mark(self, status: str, states: Mapping[str, CellState]) -> bool:
        """Set the status of the parent run (RUNNING, FINISHED, FAILED, KILLED), its counts and its table."""
        try:
            self._update_parent(states)
            if status == "RUNNING":
                self._client.update_run(self._parent, status=status)
            else:
                self._client.set_terminated(self._parent, status=status)
        except Exception as error:  # as in `_send`
            self._forget(error)
            return False
        return True

    def attach(self, files: list[Path]) -> str:
        """Put files onto the parent run; its id. Unlike the rest this raises, an `InputError`, when MLflow does not
        answer: it is all that was asked for."""
        try:
            for file in files:
                self._client.log_artifact(self._parent, str(file), "report")
            return self._parent
        except Exception as error:  # as in `_send`
            self._forget(error)
            raise InputError(
                f"MLflow does not answer ({self.trouble}), so the report is not on its parent run. The database is "
                f"{database(self.place.home)}; attach again when it can be opened."
            ) from error

    def _send(self, cell: PlannedCell, state: CellState) -> bool:
        folder = self.place.cell(cell.id)
        shown = self._shown(cell)
        try:
            run_id = self._send_finished(cell) if shown == "done" else self._send_failed(cell, state)
            sent = {self._parent: {"run": run_id, "state": shown}}
        except Exception as error:  # whatever MLflow, its database or the disk raise: training goes on
            self._forget(error)
            write_text(
                folder / UNTRACKED_FILE, f"Not in MLflow yet; the next launch sends it.\n\n{traceback.format_exc()}"
            )
            return False
        (folder / UNTRACKED_FILE).unlink(missing_ok=True)
        write_json(folder / TRACKED_FILE, _tracked(folder) | sent)
        return True

    def _shown(self, cell: PlannedCell) -> State:
        """How MLflow shows a cell that has ended: a run that left its record is done, whatever its trial says."""
        return "done" if self.place.is_recorded(cell.id) else "failed"

    def _tell_parent(self, states: Mapping[str, CellState]) -> bool:
        try:
            self._update_parent(states)
        except Exception as error:  # as in `_send`
            self._forget(error)
            return False
        return True

    def _forget(self, error: Exception) -> None:
        lines = str(error).strip().splitlines() or [""]
        self.trouble = f"{type(error).__name__}: {lines[0][:300]}"
        for name in ("_client", "_experiment", "_parent"):  # found again when it is back
            self.__dict__.pop(name, None)

    @cached_property
    def _client(self) -> MlflowClient:
        return connect(self.place.home)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Between looking for a run and creating it no other process may do the same."""
        # One lock for a study, as its folders (one for each set of overrides) share an experiment.
        with file_lock(self.place.home / "studies" / f".{self.plan.study}.lock", purpose="looks for a run in MLflow"):
            yield

    @cached_property
    def _experiment(self) -> str:
        with self._alone():
            found = self._client.get_experiment_by_name(self.plan.study)
            if found is not None:
                return str(found.experiment_id)
            artifacts = (self.place.home / "mlartifacts" / self.plan.study).as_uri()
            tags = {
                "mlflow.experiment.primaryMetric.name": self.plan.primary,
                "mlflow.note.content": self.plan.question,
                "mlflow.experimentKind": "custom_model_development",  # opens on the runs, not on traces
            }
            return str(self._client.create_experiment(self.plan.study, artifact_location=artifacts, tags=tags))

    @cached_property
    def _parent(self) -> str:
        tags = {
            "study": self.plan.study,
            "version": self.plan.version,
            "budget": self.plan.budget,
            "git_commit": git_commit(),
        }
        tags["overrides"] = json.dumps(self.plan.overrides)
        name = f"{self.plan.study} · {self.plan.budget} · {self.plan.version}"
        run = self._find_or_create(f"tags.version = '{self.plan.version}'", tags=tags, name=name)
        return str(run.info.run_id)

    def _child(self, cell: PlannedCell, *, started: float | None = None) -> Run:
        tags = {"study": self.plan.study, "arm": cell.arm, "seed": str(cell.seed), "cell_id": cell.id}
        tags["mlflow.parentRunId"] = self._parent
        where = f"tags.cell_id = '{cell.id}' and tags.`mlflow.parentRunId` = '{self._parent}'"
        return self._find_or_create(where, tags=tags, name=f"{cell.arm} · seed {cell.seed}", started=started)

    def _find_or_create(self, where: str, *, tags: dict[str, str], name: str, started: float | None = None) -> Run:
        experiment = self._experiment
        with self._alone():
            found = self._client.search_runs([experiment], where, max_results=1, order_by=["attributes.start_time ASC"])
            if found:
                return found[0]
            start = int((started or time.time()) * 1000)
            return self._client.create_run(experiment, start_time=start, tags=tags, run_name=name)

    def _send_finished(self, cell: PlannedCell) -> str:
        folder = self.place.cell(cell.id)
        record = RunRecord.load(folder)
        # The same numbers sent twice carry the same time, so that MLflow keeps them once.
        finished = (folder / RECORD_FILE).stat().st_mtime
        started = finished - record.budget.get("seconds", 0.0)
        run = self._child(cell, started=started)
        run_id = run.info.run_id
        self._log_params(run, cell)
        self._set_labels(run, record.tags)
        self._log_metrics(run_id, record, folder, time_ms=int(finished * 1000))
        tags = {
            "stage_keys": json.dumps(record.stage_keys),
            "plan_hash": record.plan_hash,
            "git_commit": str(record.provenance.get("git_commit") or "unknown"),
            "error": "",
        }
        if record.notes:
            tags["mlflow.note.content"] = "\n".join(f"- {note}" for note in record.notes)[:8000]
        for key, value in tags.items():
            if value or key in run.data.tags:
                self._client.set_tag(run_id, key, value)
        for file in ARTIFACTS:
            if (folder / file).exists():
                self._client.log_artifact(run_id, str(folder / file))
        self._client.log_text(run_id, self._checkpoint(record), "checkpoint.txt")
        self._client.set_terminated(run_id, status="FINISHED", end_time=int(finished * 1000))
        return str(run_id)

    def _checkpoint(self, record: RunRecord) -> str:
        stages = [str(self.place.home / "stages" / key) for key in record.stage_keys.values()]
        return str(record.provenance.get("model") or (stages[-1] if stages else record.folder)) + "\n"

    def _send_failed(self, cell: PlannedCell, state: CellState) -> str:
        run = self._child(cell, started=state.started)
        run_id = run.info.run_id
        self._log_params(run, cell)
        self._set_labels(run, cell.run_config().tags)
        file = self.place.cell(cell.id) / TRACEBACK_FILE
        if file.exists():
            self._client.log_artifact(run_id, str(file))
        self._client.set_tag(run_id, "error", (state.error or "unknown")[:1000])
        ended = int((state.finished or time.time()) * 1000)
        self._client.set_terminated(run_id, status="FAILED", end_time=ended)
        return str(run_id)

    def _set_labels(self, run: Run, labels: Iterable[str]) -> None:
        """One tag `tag.<label>` = `true` for each label, so that a search asks for exactly one of them, as in
        tags.`tag.english_only` = 'true'; in a list a label would also be found inside a longer one. Those of an
        earlier sending that are gone are taken away."""
        wanted = {f"{LABEL_TAG}{label}" for label in labels}
        there = {key for key in run.data.tags if key.startswith(LABEL_TAG)}
        for key in sorted(wanted - there):
            self._client.set_tag(run.info.run_id, key, "true")
        for key in sorted(there - wanted):
            self._client.delete_tag(run.info.run_id, key)

    def _log_params(self, run: Run, cell: PlannedCell) -> None:
        from mlflow.entities import Param

        values = {**flatten(cell.run_config()), **cell.levels}
        # A param can be written once: one that is there already comes from an earlier, interrupted sending.
        params = [Param(key, str(value)[:MAX_TEXT]) for key, value in values.items() if key not in run.data.params]
        for start in range(0, len(params), BATCH_PARAMS):
            self._client.log_batch(run.info.run_id, params=params[start : start + BATCH_PARAMS])

    def _log_metrics(self, run_id: str, record: RunRecord, folder: Path, *, time_ms: int) -> None:
        from mlflow.entities import Metric

        points = curve_points(folder)
        final = {**record.scores, **{f"budget/{name}": value for name, value in record.budget.items()}}
        tokens, seconds = record.budget.get("llm_tokens"), record.budget.get("train_seconds")
        if tokens and seconds and not any(point.name == "train/tokens_per_second" for point in points):
            final["train/tokens_per_second"] = tokens / seconds  # the mean, as the curve does not have it by step
        keys = {point.name for point in points} | set(final)
        final |= {name: value for name, value in language_scores(folder, taken=len(keys)).items() if name not in final}
        metrics = [Metric(name, float(value), time_ms, 0) for name, value in final.items()]
        metrics += [Metric(point.name, point.value, time_ms, point.step) for point in points]
        for start in range(0, len(metrics), BATCH_METRICS):
            self._client.log_batch(run_id, metrics=metrics[start : start + BATCH_METRICS])

    def _update_parent(self, states: Mapping[str, CellState]) -> None:
        numbers = count(states.values())
        for name in ("done", "failed"):
            self._client.log_metric(self._parent, f"cells_{name}", numbers[name])
        self._client.set_tag(self._parent, "mlflow.note.content", self._note(states))

    def _note(self, states: Mapping[str, CellState]) -> str:
        lines = [self.plan.question, "", f"| arm | done | failed | {self.plan.primary} |", "| --- | --- | --- | --- |"]
        for arm in self.plan.arms:
            cells = [cell for cell in self.plan.cells if cell.arm == arm]
            numbers = count(states[cell.id] for cell in cells)
            values = [value for cell in cells if (value := self._primary(cell)) is not None]
            mean = f"{sum(values) / len(values):.1f}" if values else ""
            lines.append(f"| {arm} | {numbers['done']} of {len(cells)} | {numbers['failed'] or ''} | {mean} |")
        lines += [
            "",
            f"Means over finished seeds. Effects with intervals: `python -m ablations report {self.plan.command}`",
        ]
        return "\n".join(lines)

    def _primary(self, cell: PlannedCell) -> float | None:
        if not self.place.is_recorded(cell.id):
            return None
        return RunRecord.load(self.place.cell(cell.id)).scores.get(self.plan.primary)


def _tracked(folder: Path) -> dict[str, dict[str, str]]:
    path = folder / TRACKED_FILE
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    # Before, plan versions stood here with the run alone: what had been sent was not known, so it is sent again.
    return {parent: entry for parent, entry in found.items() if isinstance(entry, dict)}
