"""What MLflow shows of a sweep: one experiment per study, a parent run per version, a child run per cell. Used by
`worker`, `launch`, `cli`.

A child is RUNNING from the start of its cell; everything else is read from run folders, after the fact, so a tracker
that is down costs nothing: what was not sent is sent at the end of the launch, or by the next one.
"""

from __future__ import annotations

import contextlib
import json
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

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
from sweeps.datasets import dataset_inputs
from sweeps.metrics import Point, run_points, usage_points
from sweeps.models import log_model
from sweeps.notes import parent_note
from sweeps.plan import TRACEBACK_FILE, Place, Plan, PlannedCell
from sweeps.queue import CellState, count
from sweeps.tables import TABLES_TAG, as_json, report_tables, run_tables, tables_tag
from sweeps.tracking_store import artifacts_of, connect, owner_of, shown, tracking_uri
from sweeps.views import view_tag

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

TRACKED_FILE = "tracked.json"  # parent run -> the cell's run and the state that has arrived there whole
UNTRACKED_FILE = "untracked.txt"  # why the tracker does not have this cell yet
ARTIFACTS = (CONFIG_FILE, PLAN_FILE, SCORES_FILE, PREDICTIONS_FILE)
ENDED = {"done": "FINISHED", "failed": "FAILED", "pruned": "KILLED"}
"""How a cell ended -> status of its run; the tag `state` tells a pruned cell from an interrupted one."""
LABEL_TAG = "tag."  # before each of a run's labels
MAX_TEXT = 6000  # characters of an MLflow param; config.yaml holds the whole
BATCH_METRICS, BATCH_PARAMS = 900, 100  # of one MLflow request, which holds 1,000 of all kinds together


class Tracker:
    """Sends cells of one plan to MLflow. Only `attach` raises for a tracker that fails; else `trouble` says why, and a
    cell that was not sent has a note beside its run."""

    def __init__(self, place: Place, plan: Plan) -> None:
        self.place = place
        self.plan = plan
        self.trouble: str | None = None
        """Why the tracker failed last, in one line; None while it answers."""
        self._begun: dict[str, Run] = {}
        self._scores: dict[str, float | None] = {}  # of finished cells, for the parent's table

    def begin(self, cell: PlannedCell) -> None:
        """Show a cell as running. Left out while the tracker does not answer: `send` says all that this does."""
        if self.trouble is not None:
            return
        try:
            run = self._child(cell)
            if run.info.status != "RUNNING":
                self._client.update_run(run.info.run_id, status="RUNNING")
            self._log(run, params=self._params(cell), tags={"state": "running"})
            self._begun[cell.id] = run
        except Exception as error:  # as in `_send`
            self._forget(error)

    def interrupt(self, cell: PlannedCell) -> None:
        """Show a cell as given back, to be continued; nothing where its run was not begun here."""
        if (run := self._begun.pop(cell.id, None)) is None:
            return
        try:
            self._end(run, "KILLED", tags={"state": "interrupted"})
        except Exception as error:  # as in `_send`
            self._forget(error)

    def send(self, cell: PlannedCell, states: Mapping[str, CellState]) -> bool:
        """Record a cell that has ended and the progress of its sweep; False where it has to be sent again."""
        return self._send(cell, states[cell.id]) and self._tell_parent(states)

    def unsent(self, states: Mapping[str, CellState]) -> list[PlannedCell]:
        """Cells that have ended and that this version's parent run does not have as they are now. Where MLflow does not
        answer: those that no parent run has."""
        try:
            parent = self._parent
        except Exception as error:  # as in `_send`
            self._forget(error)
            parent = None
        cells = []
        for cell in self.plan.cells:
            folder = self.place.cell(cell.id)
            sent = [entry for run, entry in _tracked(folder).items() if parent in (None, run)]
            state = self._shown(cell, states[cell.id])
            there = any(entry["state"] == state and ("model" in entry or not self._wants_model(cell)) for entry in sent)
            has_ended = states[cell.id].state in ENDED and (state != "done" or self.place.is_recorded(cell.id))
            if has_ended and (not there or (folder / UNTRACKED_FILE).exists()):
                cells.append(cell)
        return cells

    def send_unsent(self, states: Mapping[str, CellState], *, say: Callable[[str], None] = lambda _: None) -> int:
        """Send what could not be sent before, and then the progress of the sweep; how many cells are still missing
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
        """Set the status of the parent run (RUNNING, FINISHED, FAILED, KILLED), its counts and its table; cells whose
        worker was killed are shown as interrupted."""
        try:
            self._update_parent(states)
            if status == "RUNNING":
                self._client.update_run(self._parent, status=status)
                key, value = view_tag(self.plan, self._parent, name=self._name)
                self._client.set_experiment_tag(self._experiment, key, value)
            else:
                self._settle(states)
                self._client.set_terminated(self._parent, status=status)
        except Exception as error:  # as in `_send`
            self._forget(error)
            return False
        return True

    def attach(self, files: list[Path]) -> str:
        """Put a report's files onto the parent run, its CSV files also as tables; the run's id. Unlike the rest this
        raises, an `InputError`, when MLflow does not answer: it is all that was asked for."""
        try:
            for file in files:
                self._client.log_artifact(self._parent, str(file), "plots" if file.suffix == ".png" else "report")
            self._log_tables(self._parent, report_tables(files))
            return self._parent
        except Exception as error:  # as in `_send`
            self._forget(error)
            raise InputError(
                f"MLflow does not answer ({self.trouble}), so the report is not on its parent run. The store is "
                f"{shown(tracking_uri(self.place.home))}; attach again when it can be reached."
            ) from error

    def _send(self, cell: PlannedCell, state: CellState) -> bool:
        folder = self.place.cell(cell.id)
        how = self._shown(cell, state)
        try:
            entry = self._send_finished(cell) if how == "done" else self._send_other(cell, state, how)
            write_json(folder / TRACKED_FILE, _tracked(folder) | {self._parent: {**entry, "state": how}})
            (folder / UNTRACKED_FILE).unlink(missing_ok=True)
        except Exception as error:  # whatever MLflow, its database or the disk raise: training goes on
            self._forget(error)
            text = "Not in MLflow yet; the end of the launch, or the next one, sends it.\n\n" + traceback.format_exc()
            with contextlib.suppress(OSError):  # a full disk: that it is not in `TRACKED_FILE` says enough
                write_text(folder / UNTRACKED_FILE, text)
            return False
        self.trouble = None
        return True

    def _shown(self, cell: PlannedCell, state: CellState) -> str:
        """How MLflow shows a cell that has ended: a run that left its record is done, whatever its trial says."""
        if self.place.is_recorded(cell.id):
            return "done"
        return "pruned" if state.state == "pruned" else "failed"

    def _tell_parent(self, states: Mapping[str, CellState]) -> bool:
        try:
            self._update_parent(states)
        except Exception as error:  # as in `_send`
            self._forget(error)
            return False
        return True

    def _forget(self, error: Exception) -> None:
        lines = str(error).strip().splitlines() or [""]
        self.trouble = shown(f"{type(error).__name__}: {lines[0][:300]}")
        self._begun.clear()
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
            tags = {
                "mlflow.experiment.primaryMetric.name": self.plan.primary,
                "mlflow.note.content": self.plan.question,
                "mlflow.experimentKind": "custom_model_development",  # opens on the runs, not on traces
            }
            artifacts = artifacts_of(self.place.home, self.plan.study)
            return str(self._client.create_experiment(self.plan.study, artifact_location=artifacts, tags=tags))

    @property
    def _name(self) -> str:
        changed = f" · {' '.join(self.plan.overrides)}" if self.plan.overrides else ""
        return f"{self.plan.study} · {self.plan.budget} · {self.plan.version}{changed}"

    @cached_property
    def _parent(self) -> str:
        tags = {
            "study": self.plan.study,
            "version": self.plan.version,
            "budget": self.plan.budget,
            "git_commit": git_commit(),
            "question": self.plan.question,
            "factors": json.dumps(self.plan.said_factors, ensure_ascii=False)[:MAX_TEXT],
            "held_equal": self.plan.held_equal,
            "overrides": json.dumps(self.plan.overrides),
            "cells": str(self.plan.size),
            **({"search": self.plan.searched} if self.plan.search else {}),
        }
        where = f"tags.version = '{self.plan.version}'"
        if owner := owner_of(self.place.home):  # others use the store too, perhaps for the same study
            tags["work_folder"] = owner
            where += f" and tags.work_folder = '{owner}'"
        return str(self._find_or_create(where, tags=tags, name=self._name).info.run_id)

    def _child(self, cell: PlannedCell, *, started: float | None = None) -> Run:
        if cell.id in self._begun:
            return self._begun[cell.id]
        tags = {"study": self.plan.study, "arm": cell.arm, "seed": str(cell.seed), "cell_id": cell.id}
        tags["levels"] = json.dumps(cell.levels, ensure_ascii=False)
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

    def _send_finished(self, cell: PlannedCell) -> dict[str, str]:
        folder = self.place.cell(cell.id)
        record = RunRecord.load(folder)
        # The same numbers sent twice carry the same time, so that MLflow keeps them once.
        finished = (folder / RECORD_FILE).stat().st_mtime
        run = self._child(cell, started=finished - record.budget.get("seconds", 0.0))
        run_id = str(run.info.run_id)
        self._set_labels(run, record.tags)
        tags = {
            "stage_keys": json.dumps(record.stage_keys),
            "plan_hash": record.plan_hash,
            "git_commit": str(record.provenance.get("git_commit") or "unknown"),
            **({"error": ""} if "error" in run.data.tags else {}),
            "state": "done",
        }
        if record.notes:
            tags["mlflow.note.content"] = "\n".join(f"- {note}" for note in record.notes)[:8000]
        points = run_points(record, folder)
        self._log(run, points, time_ms=int(finished * 1000), params=self._params(cell), tags=tags)
        self._client.log_inputs(run_id, datasets=dataset_inputs(cell.run_config(), record))
        for file in ARTIFACTS:
            if (folder / file).exists():
                self._client.log_artifact(run_id, str(folder / file))
        self._log_tables(run_id, run_tables(folder))
        self._client.log_text(run_id, self._checkpoint(record) + "\n", "checkpoint.txt")
        entry = {"run": run_id}
        if self._wants_model(cell):
            checkpoint = Path(self._checkpoint(record))
            if checkpoint.is_dir():
                time_ms = int(finished * 1000)
                entry["model"] = log_model(
                    self._client, run_id, checkpoint, name=cell.id, scores=record.scores, time_ms=time_ms
                )
            else:  # its stage has been removed since; training it again only to keep it is not this one's to decide
                self._log(run, tags={"logged_model": f"none: {checkpoint} is gone"})
                entry["model"] = ""
        self._end(run, ENDED["done"], ended=finished)
        return entry

    def _wants_model(self, cell: PlannedCell) -> bool:
        """Whether the cell's last model is to be a logged model; one that trained nothing has none of its own."""
        return self.plan.log_models and bool(cell.run_config().stages())

    def _checkpoint(self, record: RunRecord) -> str:
        stages = [str(self.place.home / "stages" / key) for key in record.stage_keys.values()]
        return str(record.provenance.get("model") or (stages[-1] if stages else record.folder))

    def _send_other(self, cell: PlannedCell, state: CellState, how: str) -> dict[str, str]:
        run = self._child(cell, started=state.started)
        self._set_labels(run, cell.run_config().tags)
        tags = {"state": how, **({"error": (state.error or "unknown")[:1000]} if how == "failed" else {})}
        self._log(run, usage_points(self.place.cell(cell.id)), params=self._params(cell), tags=tags)
        file = self.place.cell(cell.id) / TRACEBACK_FILE
        if file.exists():
            self._client.log_artifact(run.info.run_id, str(file))
        self._end(run, ENDED[how], ended=state.finished)
        return {"run": str(run.info.run_id)}

    def _end(self, run: Run, status: str, *, tags: Mapping[str, str] | None = None, ended: float | None = None) -> None:
        self._log(run, tags=tags)
        self._client.set_terminated(run.info.run_id, status=status, end_time=int((ended or time.time()) * 1000))
        self._begun = {cell: begun for cell, begun in self._begun.items() if begun.info.run_id != run.info.run_id}

    def _set_labels(self, run: Run, labels: Iterable[str]) -> None:
        """One tag `tag.<label>` = `true` for each label, so that a search asks for exactly one of them, as in
        tags.`tag.english_only` = 'true'; in a list a label would also be found inside a longer one. Those of an
        earlier sending that are gone are taken away."""
        wanted = {f"{LABEL_TAG}{label}" for label in labels}
        there = {key for key in run.data.tags if key.startswith(LABEL_TAG)}
        self._log(run, tags=dict.fromkeys(sorted(wanted - there), "true"))
        for key in sorted(there - wanted):
            self._client.delete_tag(run.info.run_id, key)

    def _params(self, cell: PlannedCell) -> dict[str, str]:
        values = {**flatten(cell.run_config()), **cell.levels}
        return {key: str(value)[:MAX_TEXT] for key, value in values.items()}

    def _log(
        self,
        run: Run,
        points: Sequence[Point] = (),
        *,
        time_ms: int = 0,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """In as few requests as MLflow allows. `time_ms` is the time of points that have none of their own."""
        from mlflow.entities import Metric, Param, RunTag

        # A param can be written once: one that is there already comes from an earlier, interrupted sending.
        new = {key: value for key, value in (params or {}).items() if run.data.params.get(key) is None}
        left_params = [Param(key, value) for key, value in new.items()]
        left = [
            Metric(point.name, point.value, time_ms if point.time_ms is None else point.time_ms, point.step)
            for point in points
        ]
        left_tags = [RunTag(key, value) for key, value in (tags or {}).items()]
        while left or left_params or left_tags:
            room = BATCH_METRICS - BATCH_PARAMS if left_params else BATCH_METRICS
            self._client.log_batch(
                run.info.run_id, metrics=left[:room], params=left_params[:BATCH_PARAMS], tags=left_tags
            )
            left, left_params, left_tags = left[room:], left_params[BATCH_PARAMS:], []
        run.data.params.update(new)

    def _log_tables(self, run_id: str, tables: Mapping[str, pd.DataFrame]) -> None:
        """Tables as files of the run that its page shows as such; those of an earlier sending are replaced."""
        for name, table in tables.items():
            self._client.log_dict(run_id, as_json(table), name)
        if tables:
            self._client.set_tag(run_id, TABLES_TAG, tables_tag(tables))

    def _update_parent(self, states: Mapping[str, CellState]) -> None:
        from mlflow.entities import Metric, RunTag

        now, numbers = int(time.time() * 1000), count(states.values())
        metrics = [Metric(f"cells_{name}", float(number), now, 0) for name, number in numbers.items()]
        for cell in self.plan.cells:
            if cell.id not in self._scores and self.place.is_recorded(cell.id):
                self._scores[cell.id] = RunRecord.load(self.place.cell(cell.id)).scores.get(self.plan.primary)
        note = parent_note(self.plan, states, self._scores)
        self._client.log_batch(self._parent, metrics=metrics, tags=[RunTag("mlflow.note.content", note)])

    def _settle(self, states: Mapping[str, CellState]) -> None:
        """Runs whose worker was killed, or could not send them, would be RUNNING for ever: end them for now."""
        where = f"tags.`mlflow.parentRunId` = '{self._parent}' and attributes.status = 'RUNNING'"
        for run in self._client.search_runs([self._experiment], where):
            cell = states.get(run.data.tags.get("cell_id", ""))
            if cell is None or cell.state != "running":
                ended = cell is not None and cell.state in ENDED
                self._end(run, "KILLED", tags={"state": "unsent" if ended else "interrupted"})


def _tracked(folder: Path) -> dict[str, dict[str, str]]:
    path = folder / TRACKED_FILE
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    # Before, plan versions stood here with the run alone: what had been sent was not known, so it is sent again.
    return {parent: entry for parent, entry in found.items() if isinstance(entry, dict)}
