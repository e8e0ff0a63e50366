"""What MLflow and the study's folder hold of a sweep, and that a tracker that is down costs nothing."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ablations.table import load_results
from lvlm.records import RunRecord
from sweeps.launcher import launch
from sweeps.plan import Place, find_place
from sweeps.planner import make_plan
from sweeps.queue import CellState
from sweeps.tracking import Tracker
from sweeps.tracking_store import connect, database
from tests import sweeps_home
from tests.sweeps_fakes import RUNNER, fake_study, write_run
from tests.sweeps_home import calls, lay_database, runs_of, work_alone

home = sweeps_home.home  # the fixture


def test_what_mlflow_and_the_folder_hold_after_a_sweep(home: Path) -> None:
    changed = ["instruct.optim.lr=0.5"]
    assert work_alone(home, fake_study(seeds=(0,)), overrides=changed).is_complete
    folder = find_place("fake", home, changed).folder
    assert folder.name.startswith("fake@") and not (home / "studies/fake").exists()
    (parent,), children = runs_of(home, parents=True), runs_of(home)
    counts = {"cells_done": 4.0, **dict.fromkeys(("cells_failed", "cells_running", "cells_waiting", "cells_pruned"), 0)}
    assert parent.data.metrics == counts and parent.info.status == "FINISHED"
    assert "| all · tiles 2 | 1 of 1 |  | 60.0 |" in parent.data.tags["mlflow.note.content"]
    child = next(run for run in children if run.data.params["tiles"] == "2" and run.data.params["languages"] == "all")
    tags = child.data.tags
    assert tags["mlflow.parentRunId"] == parent.info.run_id
    assert (tags["study"], tags["arm"], tags["seed"], tags["plan_hash"]) == (
        "fake",
        "all · tiles 2",
        "0",
        "0123456789ab",
    )
    assert (tags["stage_keys"], tags["git_commit"]) == ('{"pretrain": "aaa", "instruct": "bbb"}', "c0ffee")
    assert len(tags["cell_id"]) == 12
    params = child.data.params
    assert (params["model.tiles"], params["instruct.optim.lr"], params["instruct.mix.languages"], params["seed"]) == (
        "2",
        "0.5",
        "all",
        "0",
    )
    metrics = child.data.metrics
    assert (
        metrics["score/multilingual"] == 60.0
        and metrics["vqa/sw"] == 60.0
        and metrics["tune/score/multilingual"] == 12.0
    )
    client = connect(home)
    loss = sorted((point.step, point.value) for point in client.get_metric_history(child.info.run_id, "train/loss"))
    assert loss == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3)), (4, 1.0), (5, 0.5), (6, pytest.approx(1 / 3))]
    assert metrics["train/tokens_per_second"] == 1000.0
    artifacts = {file.path for file in client.list_artifacts(child.info.run_id)}
    files = {"config.yaml", "plan.json", "scores.parquet", "predictions.parquet", "checkpoint.txt"}
    assert artifacts == files | {"scores.json", "mix.json", "answers.json"}
    with sqlite3.connect(database(home)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)

    table = pd.read_parquet(folder / "results.parquet")
    assert list(table.columns[:5]) == ["study", "arm", "seed", "languages", "tiles"] and len(table) == 4 * 6
    results = load_results("fake", home=home, overrides=changed)
    assert results.origin is not None and results.origin.overrides == ("instruct.optim.lr=0.5",)
    assert (results.origin.git_commits, results.origin.seeds, results.origin.budget) == (("c0ffee",), (0,), "default")
    assert results.origin.backbones == {"tower": ("1234",)}
    assert results.budget()["samples"].to_dict() == dict.fromkeys(results.arms().index, 96.0)
    answers = pd.read_parquet(folder / "predictions.parquet")
    assert (
        len(answers) == 4 * 3 and set(answers["run"]) == set(table["run"]) and set(answers["arm"]) == set(table["arm"])
    )


def test_a_label_is_one_tag_that_a_search_finds_and_changes_no_cell(home: Path, capfd: Any) -> None:
    study = fake_study(seeds=(0,))
    labelled = ["tags=[english_only, eval 2]"]
    assert make_plan(study).cells[0].id == make_plan(study, overrides=labelled).cells[0].id
    assert work_alone(home, study, overrides=labelled).is_complete
    client, (run, *_) = connect(home), runs_of(home)

    def found(*labels: str) -> int:
        where = " and ".join(f"tags.`tag.{label}` = 'true'" for label in labels)
        return len(client.search_runs([run.info.experiment_id], where))

    assert (found("english_only"), found("eval 2"), found("english_only", "eval 2"), found("english")) == (4, 4, 4, 0)
    plan = make_plan(study, runner=RUNNER)
    cell = plan.cells[0]
    Tracker(Place(home, "fake"), plan)._set_labels(client.get_run(run.info.run_id), ["eval 2", "again"])
    kept = {key for key in client.get_run(run.info.run_id).data.tags if key.startswith("tag.")}
    assert kept == {"tag.eval 2", "tag.again"}
    before = len(calls(home))
    assert launch(study, home=home, runner=RUNNER, overrides=["tags=[other]"]).is_complete
    assert len(calls(home)) == before, "other labels are the same cells in the same folder"
    assert RunRecord.load(home / "studies/fake/cells" / cell.id).tags == ["english_only", "eval 2"]


def test_a_tracker_that_is_down_costs_no_training_and_gets_everything_later(
    home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    study = fake_study(seeds=(0,))
    database(home).unlink()
    database(home).mkdir()  # no database can be opened here
    outcome = work_alone(home, study)
    assert outcome.is_complete and len(calls(home)) == 4
    assert "MLflow does not answer" in capfd.readouterr().out
    notes = list((home / "studies/fake/cells").glob("*/untracked.txt"))
    assert len(notes) == 4 and "Traceback" in notes[0].read_text()

    database(home).rmdir()
    lay_database(home)
    assert launch(study, home=home, runner=RUNNER).is_complete
    assert len(calls(home)) == 4, "nothing is trained again"
    assert len(runs_of(home)) == 4 and {run.info.status for run in runs_of(home)} == {"FINISHED"}
    assert not list((home / "studies/fake/cells").glob("*/untracked.txt"))


def test_a_full_disk_beside_a_tracker_that_is_down_stops_no_worker(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(fake_study(seeds=(0,)), runner=RUNNER)
    tracker, cell = Tracker(Place(home, "fake"), plan), plan.cells[0]
    write_run(cell.run_config(), tracker.place.cell(cell.id))
    states = {one.id: CellState("done" if one is cell else "waiting") for one in plan.cells}

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("write_json", "write_text"):
        monkeypatch.setattr(f"sweeps.tracking.{name}", full)
    assert not tracker.send(cell, states) and "No space left" in str(tracker.trouble)
    monkeypatch.undo()
    assert tracker.unsent(states) == [cell] and tracker.send(cell, states) and tracker.unsent(states) == []
    (run,) = runs_of(home)
    assert len(connect(home).get_metric_history(run.info.run_id, "train/loss")) == 6, "sent twice, there once"


def test_a_failed_cell_that_is_mended_while_the_tracker_is_down_is_finished_there_later(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE_FAIL", "2")
    study = fake_study(seeds=(0,))
    assert work_alone(home, study).failed == 2
    monkeypatch.setenv("FAKE_FAIL", "")
    monkeypatch.setattr("sweeps.tracking.Tracker._send", lambda *_: False)
    assert work_alone(home, study, retry_failed=True).is_complete
    assert "2 cell(s) are not in MLflow yet" in capfd.readouterr().out
    assert Counter(run.data.tags["state"] for run in runs_of(home)) == {"done": 2, "unsent": 2}

    monkeypatch.undo()
    assert launch(study, home=home, runner=RUNNER).is_complete
    assert "sending 2 cells to MLflow" in capfd.readouterr().out
    assert Counter(run.info.status for run in runs_of(home)) == {"FINISHED": 4}
    launch(study, home=home, runner=RUNNER)
    assert "sending" not in capfd.readouterr().out, "what has arrived is not sent again"

    for file in home.glob("mlflow.db*"):
        file.unlink()
    lay_database(home)
    launch(study, home=home, runner=RUNNER)
    assert Counter(run.info.status for run in runs_of(home)) == {"FINISHED": 4}, "a new parent gets its children"


def test_a_cell_that_was_given_up_is_in_mlflow_too(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(fake_study(seeds=(0,)), runner=RUNNER)
    told: list[int] = []
    tracker = Tracker(Place(home, "fake"), plan)
    monkeypatch.setattr(tracker, "_update_parent", lambda states: told.append(len(states)))
    given_up = CellState("failed", started=10.0, finished=20.0, error="its worker was killed 10 times")
    states = {cell.id: given_up for cell in plan.cells[:2]} | {cell.id: CellState("waiting") for cell in plan.cells[2:]}
    assert tracker.send_unsent(states) == 0 and tracker.unsent(states) == []
    assert [(run.info.status, run.data.tags["error"]) for run in runs_of(home)] == [("FAILED", given_up.error)] * 2
    assert told == [4], "the parent's table is made once for all"


def test_a_metric_per_language_only_while_the_run_has_few_names(tmp_path: Path) -> None:
    from sweeps.metrics import MAX_KEYS, language_scores

    cell = make_plan(fake_study()).cells[0]
    many = tuple(f"l{number}" for number in range(MAX_KEYS))
    assert isinstance(write_run(cell.run_config(), tmp_path / "few"), RunRecord)
    write_run(cell.run_config(), tmp_path / "many", languages=many)
    assert len(language_scores(tmp_path / "few", taken=20)) == 3
    assert language_scores(tmp_path / "few", taken=MAX_KEYS - 3) == {}
    assert language_scores(tmp_path / "many", taken=0) == {}
