"""Whole sweeps with a runner that trains nothing: killed, interrupted, resumed, and what they show meanwhile."""

from __future__ import annotations

import contextlib
import io
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from optuna.trial import TrialState
from rich.console import Console

from ablations.table import load_results
from sweeps import cli
from sweeps.identity import is_alive
from sweeps.launcher import launch
from sweeps.live import shown
from sweeps.plan import Place
from sweeps.planner import make_plan
from sweeps.queue import CellState, Queue
from sweeps.standing import Lookout
from sweeps.storage import Trials
from sweeps.tracking_store import connect
from sweeps.worker import Worker
from tests import sweeps_home
from tests.sweeps_fakes import RUNNER, fake_study
from tests.sweeps_home import calls, enqueued, runs_of, when, work_alone

KILLS = 20

home = sweeps_home.home  # the fixture


def workers_of(home: Path) -> Iterator[int]:
    """Process numbers of the workers that hold a cell."""
    if not Place(home, "fake").storage.exists:
        return
    for trial in Trials(Place(home, "fake").storage).trials((TrialState.RUNNING,)):
        if (who := trial.user_attrs.get("owner")) and is_alive(who):
            yield who["pid"]


def children() -> list[int]:
    """Process numbers of all workers, whatever they do: start, claim, train, write to the tracker."""
    return [child.pid for child in psutil.Process().children() if "worker" in child.cmdline()]


def test_a_storm_of_kills_costs_no_cell_and_repeats_none(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SECONDS", "0.6")
    study, killed, over = fake_study(seeds=(0, 1, 2)), [], threading.Event()
    moments = random.Random(0)
    (home / "held").touch()  # the last four cells outlast the storm

    def storm() -> None:
        while len(killed) < KILLS and not over.wait(moments.uniform(0.1, 1.5)):
            for pid in moments.sample(alive := children(), k=min(1, len(alive))):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
        (home / "held").unlink()

    thread = threading.Thread(target=storm)
    thread.start()
    try:
        outcome = launch(study, workers=3, home=home, runner=RUNNER)
    finally:
        over.set()
        thread.join()

    assert len(killed) == KILLS
    assert outcome.is_complete and outcome.done == 12
    assert not [call for call in calls(home) if call[1] == "repeated"]
    trials = Trials(Place(home, "fake").storage).trials((TrialState.COMPLETE,))
    assert Counter(trial.user_attrs["cell_id"] for trial in trials).most_common(1)[0][1] == 1 and len(trials) == 12
    recorded = runs_of(home)
    assert len(recorded) == len({run.data.tags["cell_id"] for run in recorded}) == 12
    assert {run.info.status for run in recorded} == {"FINISHED"}
    assert [run.data.metrics["cells_done"] for run in runs_of(home, parents=True)] == [12]
    assert not list((home / "studies/fake/cells").glob("*/untracked.txt"))
    assert load_results(home / "studies/fake").table["run"].nunique() == 12


def test_an_override_is_another_version_with_other_cells() -> None:
    plain, changed = make_plan(fake_study()), make_plan(fake_study(), overrides=["instruct.optim.lr=0.5"])
    assert plain.version != changed.version
    assert not {cell.id for cell in plain.cells} & {cell.id for cell in changed.cells}
    assert {cell.config["instruct"]["optim"]["lr"] for cell in changed.cells} == {0.5}


def test_a_runner_is_part_of_what_a_cell_is() -> None:
    plain, other = make_plan(fake_study()), make_plan(fake_study(), runner=RUNNER)
    assert plain.version != other.version
    assert not {cell.id for cell in plain.cells} & {cell.id for cell in other.cells}


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
    plan, place, _ = enqueued(home, fake_study(seeds=(0,)))
    worker = threading.Timer(0.3, Worker(plan, place).work)
    worker.start()
    assert cli.main(["status", "fake", "--watch", "--every", "0.05", "--home", str(home)]) == 0
    worker.join()
    assert "fake: 4 of 4 cells done" in capfd.readouterr().out


def test_a_log_says_now_and_then_how_the_sweep_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, log = make_plan(fake_study(), runner=RUNNER), io.StringIO()
    waiting = {cell.id: CellState("waiting") for cell in plan.cells}
    standing = Lookout(Place(tmp_path, "fake"), plan).standing(waiting)
    with shown(Console(file=log, width=200), standing) as show:
        show(standing, ())
        assert log.getvalue() == ""
        monkeypatch.setattr("sweeps.live.HEADLINE_SECONDS", 0.0)
        show(standing, ())
    assert log.getvalue() == "fake: 0 of 8 cells done (8 waiting)\n"


def test_a_crash_between_record_and_complete_costs_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, place, queue = enqueued(home, fake_study(seeds=(0,)))
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

    trial = next(t for t in Trials(queue.storage).trials((TrialState.RUNNING,)) if t.user_attrs["cell_id"] == cell_id)
    return Claim(next(cell for cell in queue.plan.cells if cell.id == cell_id), 1, Trials.handle(trial))


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
    timer = when(lambda: list(workers_of(home)), lambda: signal.raise_signal(signal.SIGINT))
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
