"""Cells that fail, workers that cannot start, and input that is refused before anything starts."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import sweeps.crew
from ablations.factors import Factor
from ablations.table import load_results
from lvlm.config import RunConfig
from lvlm.errors import InputError
from lvlm.model.backbones import backbone_digests
from lvlm.records import TRAINER_VERSION
from sweeps.checks import check_changes, check_making, check_source
from sweeps.crew import Crew
from sweeps.exits import EXIT_DONE
from sweeps.launcher import launch
from sweeps.plan import Place
from sweeps.planner import make_plan
from sweeps.queue import Queue
from sweeps.template import write_study
from sweeps.worker import Worker
from tests import sweeps_home
from tests.sweeps_fakes import RUNNER, fake_study, searched_study, write_run
from tests.sweeps_home import calls, enqueued, runs_of, work_alone

home = sweeps_home.home  # the fixture


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
    states = Queue(make_plan(study, runner=RUNNER), Place(home, "fake").storage).states()
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


def test_three_failures_in_a_row_stop_the_sweep_with_a_clear_message(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE_FAIL", "1,2")
    outcome = launch(fake_study(seeds=(0, 1)), workers=1, home=home, runner=RUNNER)
    assert (outcome.done, outcome.failed, len(calls(home))) == (0, 3, 3)
    assert {call[2] for call in calls(home)} == {str(sweeps.crew.cores())}, "one worker has the threads of all cores"
    said = capfd.readouterr().out
    assert "3 cells failed in a row" in said and "traceback.txt" in said and "--retry-failed" in said


def test_arms_that_diverge_do_not_stop_the_sweep(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_DIVERGE", "1,2")
    monkeypatch.setattr("sweeps.worker.Tracker.send", lambda *_: True)
    plan, place, queue = enqueued(home, fake_study(seeds=(0,)))
    assert Worker(plan, place).work() == EXIT_DONE
    assert {(state.state, state.error) for state in queue.states().values()} == {
        ("failed", "The loss is nan at step 3.")
    }


def test_workers_that_cannot_start_end_the_launch_and_what_has_finished_is_put_down(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    plan, place, queue = enqueued(home, fake_study(seeds=(0,)))
    write_run(plan.cells[0].run_config(), place.cell(plan.cells[0].id))
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


def test_a_changed_search_shows_what_differs(home: Path) -> None:
    before = make_plan(searched_study(arms=4), runner=RUNNER)
    before.save(place := before.place(home))
    lr = Factor(name="lr", path="instruct.optim.lr", range=(1e-4, 1e-1), log=True)
    given = searched_study(arms=4, sampler="gp")
    now = replace(given, factors=(*given.factors[:3], lr), baseline={**given.baseline, "lr": 0.02})
    with pytest.raises(InputError, match="has changed") as refused:
        check_changes(make_plan(now, runner=RUNNER), place)
    for line in ("lr: [1e-05, 0.1] -> [0.0001, 0.1]", "search.sampler: 'tpe' -> 'gp'", "lr: 0.01 -> 0.02"):
        assert line in str(refused.value)


def test_two_study_files_of_one_name_do_not_share_a_folder(tmp_path: Path) -> None:
    first, second = write_study("mine", tmp_path / "a"), write_study("mine", tmp_path / "b")
    plan = make_plan(first)
    plan.save(place := plan.place(tmp_path))
    check_source(make_plan(first), place)
    with pytest.raises(InputError, match="the same name") as refused:
        launch(second, home=tmp_path)
    assert str(first) in str(refused.value) and str(second) in str(refused.value)
    first.unlink()  # moved away
    check_source(make_plan(second), place)


def test_a_missing_corpus_fails_before_any_worker_and_before_the_plan_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []
    monkeypatch.setattr("sweeps.launcher.Crew", lambda *given, **options: started.append(given))
    monkeypatch.chdir(tmp_path)  # where no `shapes` lies
    with pytest.raises(InputError, match=r"instruct\.mix\.corpora: shapes does not exist"):
        launch(fake_study(seeds=(0,)), workers=1, home=tmp_path / "home")
    assert not started and not (tmp_path / "home").exists()


def test_a_corpus_is_checked_for_every_arm_that_differs_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[RunConfig] = []

    def note(config: RunConfig) -> dict[str, Any]:
        opened.append(config)
        return {}

    monkeypatch.setattr("sweeps.checks.open_corpora", note)
    check_making(make_plan(fake_study()), Place(tmp_path, "fake"))
    checked = sorted(str(config.instruct.mix.languages) for config in opened)
    assert checked == ["all", "en"], "arms that differ in tiles or seed alone share their corpora"


def test_finished_cells_of_other_backbones_corpora_or_trainers_are_not_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stamped:
        def stamp(self) -> str:
            return "now"

    monkeypatch.setattr("sweeps.checks.open_corpora", lambda config: {"shapes": Stamped()})
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
            check_making(plan, place)
