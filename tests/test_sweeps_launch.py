"""Whole sweeps with a runner that trains nothing: killed, failing, interrupted, with a tracker that is down, and what
they leave behind."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from optuna.trial import TrialState
from rich.console import Console

import sweeps.crew
from ablations.table import load_results
from lvlm.config import RunConfig
from lvlm.errors import InputError
from lvlm.model.backbones import backbone_digests
from lvlm.records import TRAINER_VERSION, RunRecord
from sweeps import cli
from sweeps.crew import Crew
from sweeps.identity import is_alive
from sweeps.journal import Journal
from sweeps.launcher import Outcome, _check_making, _check_source, _display, launch
from sweeps.plan import Place, find_place
from sweeps.planner import make_plan
from sweeps.queue import CellState, Queue
from sweeps.server import study_links
from sweeps.template import write_study
from sweeps.tracking import Tracker, connect, database
from sweeps.worker import EXIT_DONE, Worker
from tests.sweeps_fakes import CALLS, RUNNER, fake_study, write_run

KILLS = 4


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Creating MLflow's tables takes seconds: once is enough."""
    home = tmp_path_factory.mktemp("mlflow")
    connect(home)
    with sqlite3.connect(database(home)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return database(home)


@pytest.fixture
def home(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copyfile(empty_database, database(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    monkeypatch.setattr("sweeps.launcher.POLL_SECONDS", 0.1)
    return tmp_path


def runs_of(home: Path, *, parents: bool = False) -> list[Any]:
    client = connect(home)
    experiment = client.get_experiment_by_name("fake")
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    return [run for run in runs if ("mlflow.parentRunId" not in run.data.tags) == parents]


def calls(home: Path) -> list[list[str]]:
    path = home / CALLS
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def workers_of(home: Path) -> Iterator[int]:
    """Process numbers of the workers that hold a cell."""
    if not Place(home, "fake").journal.exists():
        return
    for trial in Journal(Place(home, "fake").journal, "fake").trials((TrialState.RUNNING,)):
        if (who := trial.user_attrs.get("owner")) and is_alive(who):
            yield who["pid"]


def test_a_storm_of_kills_costs_no_cell_and_repeats_none(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SECONDS", "0.6")
    study, killed, over = fake_study(seeds=(0, 1, 2)), [], threading.Event()

    def storm() -> None:
        while not over.wait(0.4) and len(killed) < KILLS:
            for pid in [pid for pid in workers_of(home) if pid not in killed][:1]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    thread = threading.Thread(target=storm)
    thread.start()
    try:
        outcome = launch(study, workers=3, home=home, runner=RUNNER)
    finally:
        over.set()
        thread.join()

    assert len(killed) == KILLS, "the storm has to hit"
    assert outcome.is_complete and outcome.done == 12
    assert not [call for call in calls(home) if call[1] == "repeated"]
    trials = Journal(Place(home, "fake").journal, "fake").trials((TrialState.COMPLETE,))
    assert Counter(trial.user_attrs["cell_id"] for trial in trials).most_common(1)[0][1] == 1 and len(trials) == 12
    children = runs_of(home)
    assert len(children) == len({run.data.tags["cell_id"] for run in children}) == 12
    assert {run.info.status for run in children} == {"FINISHED"}
    assert [run.data.metrics["cells_done"] for run in runs_of(home, parents=True)] == [12]
    assert not list((home / "studies/fake/cells").glob("*/untracked.txt"))
    assert load_results(home / "studies/fake").table["run"].nunique() == 12


def test_what_mlflow_and_the_folder_hold_after_a_sweep(home: Path) -> None:
    changed = ["instruct.optim.lr=0.5"]
    assert work_alone(home, fake_study(seeds=(0,)), overrides=changed).is_complete
    folder = find_place("fake", home, changed).folder
    assert folder.name.startswith("fake@") and not (home / "studies/fake").exists()
    (parent,), children = runs_of(home, parents=True), runs_of(home)
    assert parent.data.metrics == {"cells_done": 4.0, "cells_failed": 0.0} and parent.info.status == "FINISHED"
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
    assert artifacts == {"config.yaml", "plan.json", "scores.parquet", "predictions.parquet", "checkpoint.txt"}
    with sqlite3.connect(database(home)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    address = f"http://here:5000/#/experiments/{parent.info.experiment_id}/runs?workflowType=machine_learning"
    assert study_links(home, "http://here:5000") == [f"  fake: {address}"]

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


def test_an_override_is_another_version_with_other_cells() -> None:
    plain, changed = make_plan(fake_study()), make_plan(fake_study(), overrides=["instruct.optim.lr=0.5"])
    assert plain.version != changed.version
    assert not {cell.id for cell in plain.cells} & {cell.id for cell in changed.cells}
    assert {cell.config["instruct"]["optim"]["lr"] for cell in changed.cells} == {0.5}


def test_a_runner_is_part_of_what_a_cell_is() -> None:
    plain, other = make_plan(fake_study()), make_plan(fake_study(), runner=RUNNER)
    assert plain.version != other.version
    assert not {cell.id for cell in plain.cells} & {cell.id for cell in other.cells}


def test_a_failure_keeps_its_traceback_and_the_rest_goes_on(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE_FAIL", "2")
    monkeypatch.setattr("sweeps.launcher.FAILURES_IN_A_ROW", 9)
    study = fake_study(seeds=(0,))
    first = work_alone(home, study)
    assert (first.done, first.failed) == (2, 2)
    failed = [cell for cell in make_plan(study, runner=RUNNER).cells if cell.levels["tiles"] == 2]
    for cell in failed:
        assert "ValueError: no such tiles: 2" in (home / "studies/fake/cells" / cell.id / "traceback.txt").read_text()
    states = Queue(make_plan(study, runner=RUNNER), Place(home, "fake").journal).states()
    assert states[failed[0].id].error == "ValueError: no such tiles: 2"
    assert sorted(run.info.status for run in runs_of(home)) == ["FAILED", "FAILED", "FINISHED", "FINISHED"]
    assert {run.data.params["tiles"] for run in runs_of(home) if run.info.status == "FAILED"} == {"2"}
    planned = json.loads((home / "studies/fake/planned.json").read_text())
    assert {cell["run"]: cell["error"] for cell in planned if cell["error"]} == {
        cell.id: "ValueError: no such tiles: 2" for cell in failed
    }

    monkeypatch.setenv("FAKE_FAIL", "")
    begun = len(calls(home))
    assert launch(study, workers=1, home=home, runner=RUNNER).failed == 2 and len(calls(home)) == begun
    assert "--retry-failed" in capfd.readouterr().out
    again = work_alone(home, study, retry_failed=True)
    assert again.is_complete and len(calls(home)) == begun + 2
    assert sorted(run.info.status for run in runs_of(home)) == ["FINISHED"] * 4
    assert not (home / "studies/fake/cells" / failed[0].id / "traceback.txt").exists()


def work_alone(home: Path, study: Any, *, overrides: Sequence[str] = (), retry_failed: bool = False) -> Outcome:
    """A launch whose cells are run in this process, so that no worker has to start."""
    plan = make_plan(study, runner=RUNNER, overrides=overrides)
    place = plan.place(home)
    plan.save(place)
    queue = Queue(plan, place.journal)
    queue.add_missing()
    if retry_failed:
        queue.requeue_failed()
    Worker(plan, place).work()
    return launch(study, workers=1, home=home, runner=RUNNER, overrides=overrides)


def test_a_terminal_shows_one_table_that_is_drawn_again(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, highlight=False, soft_wrap=True)
    monkeypatch.setattr("sweeps.launcher.Console", lambda **_: console)
    study = fake_study(seeds=(0,))
    assert launch(study, workers=1, home=home, runner=RUNNER).is_complete
    shown = screen.getvalue()
    arms = make_plan(study, runner=RUNNER).arms
    assert "fake: 0 of 4 cells done" in shown and "fake: 4 of 4 cells done" in shown
    assert shown.count(arms[0]) > 2 and "\x1b[" in shown and "◐" in shown  # drawn over the last one, with what runs
    assert "4 of 4 cells done, 0 failed" in shown

    capfd.readouterr()
    assert cli.main(["status", "fake", "--watch", "--every", "0.01", "--home", str(home)]) == 0
    assert "fake: 4 of 4 cells done" in capfd.readouterr().out


def test_watching_ends_when_nothing_is_left_to_run(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    study = fake_study(seeds=(0,))
    plan = make_plan(study, runner=RUNNER)
    place = plan.place(home)
    plan.save(place)
    Queue(plan, place.journal).add_missing()
    worker = threading.Timer(0.3, Worker(plan, place).work)
    worker.start()
    assert cli.main(["status", "fake", "--watch", "--every", "0.05", "--home", str(home)]) == 0
    worker.join()
    assert "fake: 4 of 4 cells done" in capfd.readouterr().out


def test_three_failures_in_a_row_stop_the_sweep_with_a_clear_message(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE_FAIL", "1,2")
    outcome = launch(fake_study(seeds=(0, 1)), workers=1, home=home, runner=RUNNER)
    assert (outcome.done, outcome.failed, len(calls(home))) == (0, 3, 3)
    assert {call[2] for call in calls(home)} == {str(sweeps.crew.cores())}, "one worker has the threads of all cores"
    said = capfd.readouterr().out
    assert "3 cells failed in a row" in said and "traceback.txt" in said and "--retry-failed" in said


def test_a_tracker_that_is_down_costs_no_training_and_gets_everything_later(
    home: Path, empty_database: Path, capfd: pytest.CaptureFixture[str]
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
    shutil.copyfile(empty_database, database(home))
    assert launch(study, home=home, runner=RUNNER).is_complete
    assert len(calls(home)) == 4, "nothing is trained again"
    assert len(runs_of(home)) == 4 and {run.info.status for run in runs_of(home)} == {"FINISHED"}
    assert not list((home / "studies/fake/cells").glob("*/untracked.txt"))


def test_a_failed_cell_that_is_mended_while_the_tracker_is_down_is_finished_there_later(
    home: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE_FAIL", "2")
    study = fake_study(seeds=(0,))
    assert work_alone(home, study).failed == 2
    monkeypatch.setenv("FAKE_FAIL", "")
    monkeypatch.setattr("sweeps.tracking.Tracker._send", lambda *_: False)
    assert work_alone(home, study, retry_failed=True).is_complete
    assert "2 cell(s) are not in MLflow yet" in capfd.readouterr().out
    assert Counter(run.info.status for run in runs_of(home)) == {"FINISHED": 2, "FAILED": 2}

    monkeypatch.undo()
    assert launch(study, home=home, runner=RUNNER).is_complete
    assert "sending 2 cells to MLflow" in capfd.readouterr().out
    assert Counter(run.info.status for run in runs_of(home)) == {"FINISHED": 4}
    launch(study, home=home, runner=RUNNER)
    assert "sending" not in capfd.readouterr().out, "what has arrived is not sent again"

    for file in home.glob("mlflow.db*"):
        file.unlink()
    shutil.copyfile(empty_database, database(home))
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


def test_arms_that_diverge_do_not_stop_the_sweep(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_DIVERGE", "1,2")
    monkeypatch.setattr("sweeps.worker.Tracker.send", lambda *_: True)
    plan = make_plan(fake_study(seeds=(0,)), runner=RUNNER)
    plan.save(place := plan.place(home))
    queue = Queue(plan, place.journal)
    queue.add_missing()
    assert Worker(plan, place).work() == EXIT_DONE
    assert {(state.state, state.error) for state in queue.states().values()} == {
        ("failed", "The loss is nan at step 3.")
    }


def test_workers_that_cannot_start_end_the_launch_and_what_has_finished_is_put_down(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    plan = make_plan(fake_study(seeds=(0,)), runner=RUNNER)
    plan.save(place := plan.place(home))
    write_run(plan.cells[0].run_config(), place.cell(plan.cells[0].id))
    queue = Queue(plan, place.journal)
    queue.add_missing()
    claim = queue.claim(lambda cells: [cell for cell in cells if cell.id == plan.cells[0].id])
    assert claim is not None and queue.complete(claim, 1.0)
    monkeypatch.setattr("sweeps.crew.sys.executable", shutil.which("false"))
    with pytest.raises(InputError, match="Workers end at once"):
        launch(fake_study(seeds=(0,)), workers=1, home=home, runner=RUNNER)
    assert "1 of 4 cells done" in capfd.readouterr().out
    assert [run.info.status for run in runs_of(home, parents=True)] == ["FAILED"]
    assert load_results(place.folder).table["run"].nunique() == 1


def test_quick_deaths_are_counted_in_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(fake_study(), runner=RUNNER)
    crew = Crew(Place(tmp_path, "fake"), plan, workers=1, since=0.0)
    log = tmp_path / "log"
    log.touch()
    members = [_member(log, code=1, age=1.0), _member(log, code=1, age=1.0), _member(log, code=None, age=60.0)]
    monkeypatch.setattr(crew, "_start", lambda index: members.pop(0))
    crew.start()
    crew.tend(), crew.tend(), crew.tend()  # dead, dead, alive for long
    crew._members[0] = _member(log, code=1, age=1.0)
    members += [_member(log, code=1, age=1.0), _member(log, code=1, age=1.0)]
    crew.tend(), crew.tend()
    with pytest.raises(InputError, match="Workers end at once"):
        crew.tend()


def _member(log: Path, *, code: int | None, age: float) -> Any:
    return sweeps.crew._Member(SimpleNamespace(poll=lambda: code), time.monotonic() - age, log)  # type: ignore[arg-type]


def test_a_table_that_cannot_be_written_costs_no_summary(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise InputError("The study has other factors now.")

    monkeypatch.setattr("sweeps.launcher.export", refuse)
    outcome = work_alone(home, fake_study(seeds=(0,)))
    said = capfd.readouterr().out
    assert outcome.is_complete and outcome.results is None
    assert "4 of 4 cells done" in said and "The results were not written. The study has other factors now." in said


def test_a_log_says_now_and_then_how_the_sweep_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, log = make_plan(fake_study(), runner=RUNNER), io.StringIO()
    crew = Crew(Place(tmp_path, "fake"), plan, workers=1, since=0.0)
    states = {cell.id: CellState("waiting") for cell in plan.cells}
    with _display(crew, Console(file=log, width=200), states) as show:
        show(states, ())
        assert log.getvalue() == ""
        monkeypatch.setattr("sweeps.launcher.HEADLINE_SECONDS", 0.0)
        show(states, ())
    assert log.getvalue() == "fake: 0 of 8 cells done (8 waiting)\n"


def test_two_study_files_of_one_name_do_not_share_a_folder(tmp_path: Path) -> None:
    first, second = write_study("mine", tmp_path / "a"), write_study("mine", tmp_path / "b")
    plan = make_plan(first)
    plan.save(place := plan.place(tmp_path))
    _check_source(make_plan(first), place)
    with pytest.raises(InputError, match="the same name") as refused:
        launch(second, home=tmp_path)
    assert str(first) in str(refused.value) and str(second) in str(refused.value)
    first.unlink()  # moved away
    _check_source(make_plan(second), place)


def test_a_crash_between_record_and_complete_costs_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = fake_study(seeds=(0,))
    plan = make_plan(study, runner=RUNNER)
    place = Place(home, "fake")
    plan.save(place)
    queue = Queue(plan, place.journal)
    queue.add_missing()
    worker = Worker(plan, place)
    monkeypatch.setattr(worker.queue, "complete", _killed)
    with pytest.raises(_KilledError):
        worker.work()
    (recorded,) = [cell for cell in plan.cells if place.is_recorded(cell.id)]
    queue.release(queue_claim(queue, recorded.id))
    assert Worker(plan, place).work() == 0
    assert [call[1] for call in calls(home)] == ["started"] * 4
    assert len(runs_of(home)) == 4
    history = connect(home).get_metric_history(
        next(r for r in runs_of(home) if r.data.tags["cell_id"] == recorded.id).info.run_id, "train/loss"
    )
    assert len(history) == 6, "a point that is sent twice is there once"
    assert {cell_id for cell_id, state in queue.states().items() if state.found} == {recorded.id}


class _KilledError(BaseException):
    pass


def _killed(*_: object, **__: object) -> bool:
    raise _KilledError


def queue_claim(queue: Queue, cell_id: str) -> Any:
    """The claim of a cell that runs, as its worker holds it."""
    from sweeps.queue import Claim

    trial = next(
        t
        for t in Journal(Path(queue.journal_path), "fake").trials((TrialState.RUNNING,))
        if t.user_attrs["cell_id"] == cell_id
    )
    return Claim(next(cell for cell in queue.plan.cells if cell.id == cell_id), 1, Journal.handle(trial))


def test_a_larger_budget_takes_over_what_is_done_and_gets_its_own_parent_run(home: Path) -> None:
    assert work_alone(home, fake_study(seeds=(0,))).is_complete
    assert work_alone(home, fake_study(seeds=(0, 1))).is_complete
    assert len(calls(home)) == 8 and not [call for call in calls(home) if call[1] == "repeated"]
    by_parent = Counter(run.data.tags["mlflow.parentRunId"] for run in runs_of(home))
    assert sorted(by_parent.values()) == [4, 8]


def test_ctrl_c_stops_the_workers_and_the_next_launch_goes_on(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE_SECONDS", "30")
    study = fake_study(seeds=(0,))
    timer = threading.Thread(
        target=_when, args=(lambda: list(workers_of(home)), lambda: signal.raise_signal(signal.SIGINT))
    )
    timer.start()
    outcome = launch(study, workers=1, budget="full", home=home, runner=RUNNER)
    timer.join()
    assert outcome.interrupted and outcome.done == 0 and list(workers_of(home)) == []
    again = f"python -m sweeps launch fake --budget full --runner {RUNNER} --home {home}"
    assert f"Go on with:\n  {again}\n" in capfd.readouterr().out
    monkeypatch.setenv("FAKE_SECONDS", "0")
    assert work_alone(home, study).is_complete


def test_a_command_to_paste_names_budget_and_home_only_where_they_are_not_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BUDGET", raising=False)
    monkeypatch.setenv("LVLM_HOME", str(tmp_path))
    study, changed = fake_study(), ["instruct.optim.lr=0.5"]
    assert make_plan(study).launch_command == "python -m sweeps launch fake"
    plan = make_plan(study, budget="full", overrides=changed)
    assert plan.launch_command == "python -m sweeps launch fake instruct.optim.lr=0.5 --budget full"
    assert make_plan(study, runner=RUNNER).launch_command == f"python -m sweeps launch fake --runner {RUNNER}"
    assert plan.place().home_option == plan.place(tmp_path).home_option == ""
    assert plan.place(tmp_path / "my runs").home_option == f" --home '{tmp_path}/my runs'"
    monkeypatch.delenv("LVLM_HOME")
    assert plan.place(tmp_path).home_option == f" --home {tmp_path}"


def test_a_missing_corpus_fails_before_any_worker_and_before_the_plan_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []
    monkeypatch.setattr("sweeps.launcher.Crew", lambda *given, **options: started.append(given))
    monkeypatch.chdir(tmp_path)  # where no `shapes` lies
    with pytest.raises(InputError, match="The corpus shapes does not exist"):
        launch(fake_study(seeds=(0,)), workers=1, home=tmp_path / "home")
    assert not started and not (tmp_path / "home").exists()


def test_a_corpus_is_checked_for_every_arm_that_differs_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[RunConfig] = []

    def note(config: RunConfig) -> dict[str, Any]:
        opened.append(config)
        return {}

    monkeypatch.setattr("sweeps.launcher.open_corpora", note)
    _check_making(make_plan(fake_study()), Place(tmp_path, "fake"))
    checked = sorted(str(config.instruct.mix.languages) for config in opened)
    assert checked == ["all", "en"], "arms that differ in tiles or seed alone share their corpora"


def test_finished_cells_of_other_backbones_corpora_or_trainers_are_not_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stamped:
        def stamp(self) -> str:
            return "now"

    monkeypatch.setattr("sweeps.launcher.open_corpora", lambda config: {"shapes": Stamped()})
    plan, place = make_plan(fake_study()), Place(tmp_path, "fake")
    cell = plan.cells[0]
    record = write_run(cell.run_config(), place.cell(cell.id))
    digests = backbone_digests(cell.run_config().model, seed=cell.seed)
    same: dict[str, Any] = {"backbones": digests, "corpora": {"shapes": "now"}}
    for made, differs in (
        (same, None),
        ({**same, "backbones": {**digests, "llm": "another"}}, "other backbones"),
        ({**same, "corpora": {"shapes": "before"}}, "other corpora"),
        ({**same, "trainer": TRAINER_VERSION}, None),
        ({**same, "trainer": TRAINER_VERSION - 1}, "another trainer version"),
        ({"backbones": {}, "corpora": {}, "trainer": 0}, "other backbones and other corpora and another trainer"),
    ):
        record.provenance = made
        record.save(place.cell(cell.id))
        refused = pytest.raises(InputError, match=f"1 finished cells in .* were made with {differs}")
        with refused if differs else contextlib.nullcontext():
            _check_making(plan, place)


def _when(condition: Callable[[], Any], action: Callable[[], None]) -> None:
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    action()


def test_a_metric_per_language_only_while_the_run_has_few_names(tmp_path: Path) -> None:
    from sweeps.metrics import MAX_KEYS, language_scores

    cell = make_plan(fake_study()).cells[0]
    many = tuple(f"l{number}" for number in range(MAX_KEYS))
    assert isinstance(write_run(cell.run_config(), tmp_path / "few"), RunRecord)
    write_run(cell.run_config(), tmp_path / "many", languages=many)
    assert len(language_scores(tmp_path / "few", taken=20)) == 3
    assert language_scores(tmp_path / "few", taken=MAX_KEYS - 3) == {}
    assert language_scores(tmp_path / "many", taken=0) == {}
