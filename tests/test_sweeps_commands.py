"""The commands: cheap to ask for help, clear about bad input, and what `plan`, `status`, `new` show."""

from __future__ import annotations

import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ablations.studies import load_study
from sweeps.cli import main
from sweeps.plan import Place, find_place
from sweeps.planner import describe, make_plan
from sweeps.progress import Progress
from sweeps.queue import CellState
from sweeps.stages import arranged, count_stages, in_training, stage_keys, without_waiting
from sweeps.standing import part_over, seconds_left
from sweeps.storage import Storage
from tests.sweeps_fakes import RUNNER, fake_study
from tests.sweeps_home import enqueued

COMMANDS = ("launch", "plan", "worker", "status", "export", "attach", "cache", "ui", "new")
HEAVY = {"torch", "transformers", "mlflow", "pandas", "pyarrow"}


def imported_by(home: Path, *arguments: str) -> set[str]:
    call = f"try:\n    status = main({list(arguments)!r})\nexcept SystemExit as stopped:\n    status = stopped.code"
    code = f"import sys\nfrom sweeps.cli import main\n{call}\nprint('MODULES', *sys.modules)\nsys.exit(status)"
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, env={"LVLM_HOME": str(home)}
    )
    assert done.returncode == 0 and "MODULES" in done.stdout, done.stderr
    return set(done.stdout.rpartition("MODULES")[2].split())


def planned(home: Path) -> Place:
    _, place, queue = enqueued(home, fake_study())
    for outcome in ("done", "failed", "running"):
        claim = queue.claim()
        assert claim is not None
        if outcome == "done":
            queue.complete(claim, 1.0)
        if outcome == "failed":
            queue.fail(claim, "ValueError: no such tiles\nmore", "Traceback")
    return place


@pytest.mark.parametrize(
    "command", [(), *[(name,) for name in COMMANDS]], ids=lambda command: " ".join(command) or "none"
)
def test_every_help_ends_in_a_line_to_paste(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    last = capsys.readouterr().out.strip().splitlines()[-1].strip()
    assert stopped.value.code == 0
    assert last.startswith("python -m sweeps " + (command[0] if command else ""))


def test_help_and_status_load_nothing_heavy(tmp_path: Path) -> None:
    planned(tmp_path)
    assert not imported_by(tmp_path, "--help") & (HEAVY | {"optuna", "pydantic", "rich"})
    loaded = imported_by(tmp_path, "status", "fake")
    assert "optuna" in loaded and not loaded & HEAVY


def test_status_shows_every_arm_and_why_a_cell_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planned(tmp_path)
    assert main(["status", "fake", "--home", str(tmp_path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "1 of 8 cells done (1 running, 5 waiting, 1 failed)" in said
    assert all(arm in said for arm in ("all · tiles 1", "en · tiles 2")) and "ValueError: no such tiles" in said


def test_plan_starts_nothing_and_counts_shared_stages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "drivers", "--home", str(tmp_path), "instruct.optim.lr=0.5"]) == 0
    said = capsys.readouterr().out
    cells = load_study("drivers").cells("default")
    assert "can tell apart: the effects of languages, english_share, tiles" in said
    assert f"{len(cells)} cells" in said and "pretrain: trained 6 times" in said and "instruct.optim.lr=0.5" in said
    assert {path.name for path in tmp_path.iterdir()} <= {"data"}, "what was counted is remembered"


def test_a_study_with_overrides_is_found_with_the_same_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = ["instruct.optim.lr=0.5", "evaluate.items=3"]
    plan = make_plan(fake_study(), runner=RUNNER, overrides=changed)
    place = plan.place(tmp_path)
    plan.save(place)
    assert place.name != "fake" and place == find_place("fake", tmp_path, changed[::-1])
    assert place == find_place(place.name, tmp_path), "the folder's name will do"
    assert find_place("fake", tmp_path, ["compute.evaluate_batch=2"]).name == "fake", "cannot change a result"
    assert main(["status", "fake", *changed, "--home", str(tmp_path)]) == 0
    assert "0 of 8 cells done" in capsys.readouterr().out
    assert main(["status", "fake", "--home", str(tmp_path)]) == 2
    assert f"Launched here with other settings: {place.name}." in capsys.readouterr().err
    assert main(["export", "fake", "evaluate.items=4", "--home", str(tmp_path)]) == 2


def test_attach_takes_what_the_report_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, sent = planned(tmp_path), []
    for name in ("report.html", "effects.csv", "verdicts.csv", "results.parquet"):
        (place.folder / name).touch()
    monkeypatch.setattr("sweeps.tracking.Tracker.attach", lambda _, files: sent.extend(f.name for f in files) or "id")
    assert main(["attach", "fake", "--home", str(tmp_path)]) == 0
    assert sent == ["report.html", "effects.csv", "verdicts.csv"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status", "drivers"], "Nothing has been launched"),
        (["launch", "nothing"], "There is no study"),
        (["plan", "drivers", "instruct.mix.english=1"], "not a field"),
        (["plan", "drivers", "model.tiles=2"], "varies itself"),
        (["launch", "drivers", "--runner", "lvlm.run:rum"], "runner 'lvlm.run:rum' cannot be loaded"),
        (["launch", "drivers", "--runner", "lvlm.records:RECORD_FILE"], "no function"),
        (["export", "drivers"], "Nothing has been launched"),
        (["export", "drivers", "--from-mlflow"], "has no study 'drivers'"),
        (["ui"], "no recorded runs"),
        (["ui", "--optuna"], "Nothing has been launched"),
        (["ui", "drivers", "--optuna"], "Nothing has been launched"),
        (["attach", "drivers"], "There is no report"),
        (["new", "My Study"], "lower-case"),
        (["new", "drivers"], "comes with the toolkit"),
    ],
)
def test_bad_input_is_one_paragraph_and_status_2(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = "--folder" if arguments[0] == "new" else "--home"
    assert main([*arguments, where, str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said
    assert not list(tmp_path.iterdir()), "nothing half-written"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["launch", "drivers", "--workers", "0"], "a whole number, at least 1, not '0'"),
        (["plan", "drivers", "--workers", "two"], "a whole number, at least 1, not 'two'"),
        (["status", "drivers", "--every", "-1"], "above 0, not '-1'"),
        (["status", "drivers", "--every", "nan"], "above 0, not 'nan'"),
        (["ui", "--port", "99999"], "from 1 to 65535, not '99999'"),
    ],
)
def test_a_number_out_of_range_is_one_sentence_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and message in said and "Traceback" not in said


@pytest.mark.parametrize("arguments", [["launch", "drivers", "--home"], ["ui", "--home"], ["new", "mine", "--folder"]])
def test_a_file_in_the_place_of_a_folder_is_named(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "notes.txt"
    file.touch()
    for given in (file, file / "below"):
        assert main([*arguments, str(given)]) == 2
        assert f"has to be a folder, and {file} is a file" in capsys.readouterr().err


def test_a_plan_of_another_version_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = planned(tmp_path)
    for text in ('{"study": "fake", "cells": [], "colour": 1}', "[]", "{"):
        place.current_plan.write_text(text)
        assert main(["status", "fake", "--home", str(tmp_path)]) == 2
        said = capsys.readouterr().err
        assert str(place.current_plan) in said and "another version" in said


def test_a_dashboard_that_is_not_installed_is_one_paragraph(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    planned(tmp_path)
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    assert main(["ui", "--optuna", "--home", str(tmp_path)]) == 2
    assert "pip install optuna-dashboard" in capsys.readouterr().err


def test_pages_of_a_study_that_is_not_there_are_not_started(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mlflow.db").touch()
    assert main(["ui", "drivers", "--home", str(tmp_path), "--no-browser"]) == 2
    said = capsys.readouterr()
    assert "Nothing has been launched" in said.err and said.out == ""
    Storage("postgresql://nobody@127.0.0.1:9/none", "fake", planned(tmp_path).folder).save()
    assert main(["ui", "fake", "--optuna", "--home", str(tmp_path), "--no-browser"]) == 2
    said = capsys.readouterr()
    assert "does not answer" in said.err and said.err.count("\n") == 1 and said.out == ""


def test_a_proxy_takes_no_port_that_is_in_use_and_leaves_nothing_then(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["proxy", "--port", str(taken.getsockname()[1]), "--home", str(tmp_path)]) == 2
    assert "cannot be used" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_attaching_without_mlflow_is_one_paragraph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (planned(tmp_path).folder / "report.html").touch()
    (tmp_path / "mlflow.db").mkdir()  # no database can be opened here
    assert main(["attach", "fake", "--home", str(tmp_path)]) == 2
    assert "MLflow does not answer" in capsys.readouterr().err


def test_the_time_left_counts_the_phases_of_a_cell_and_no_cell_that_took_no_time() -> None:
    plan = make_plan(fake_study(seeds=(0,)))
    cell = plan.cells[0]
    scored = replace(cell, config={**cell.config, "evaluate": {"corpora": ["a corpus"]}})
    assert part_over(scored, Progress("pretrain", "", 0.5)) == pytest.approx(0.5 / 3)
    assert part_over(scored, Progress("instruct", "", 0.5)) == pytest.approx(1.5 / 3)
    assert part_over(scored, Progress("evaluate", "", None)) == pytest.approx(2 / 3)
    unscored = replace(cell, config={**cell.config, "evaluate": None})
    assert part_over(unscored, Progress("instruct", "", 0.5)) == 0.75
    assert part_over(scored, Progress("features", "", 0.9)) is None

    states = {cell.id: CellState("done", started=1.0, finished=1.1, found=True) for cell in plan.cells}
    states[plan.cells[0].id] = CellState("running", started=50.0)
    assert seconds_left(states, {}) is None, "how long a cell takes is not known yet"
    states[plan.cells[1].id] = CellState("done", started=1.0, finished=61.0)
    assert seconds_left(states, {plan.cells[0].id: 0.25}) == 45.0
    states[plan.cells[0].id] = states[plan.cells[2].id] = CellState("waiting")
    assert describe(plan, states, workers=2)[-1] == "about 60 s a cell here, so 60 s for 2 cells on 2 worker(s)"


def test_new_writes_a_study_that_loads_and_never_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "my_study", "--folder", str(tmp_path)]) == 0
    study = load_study(tmp_path / "my_study.py")
    assert f"{len(study.cells('default'))} cells" in capsys.readouterr().out
    assert main(["plan", str(tmp_path / "my_study.py"), "--home", str(tmp_path / "home")]) == 0
    assert "4 arms x 3 seeds: 12 cells" in capsys.readouterr().out
    assert main(["new", "my_study", "--folder", str(tmp_path)]) == 2


def test_cells_share_a_stage_when_their_configs_agree_up_to_it() -> None:
    plan = make_plan(fake_study())
    assert count_stages(plan.cells) == {"pretrain": (4, 8), "instruct": (8, 8)}


def test_seeds_come_one_after_another_and_each_begins_with_different_stages() -> None:
    cells = make_plan(fake_study(seeds=(0, 1, 2))).cells
    assert [cell.seed for cell in cells] == [0] * 4 + [1] * 4 + [2] * 4
    assert len({stage_keys(cell)["pretrain"] for cell in cells[:2]}) == 2
    backwards = arranged([*reversed(cells)])
    assert sorted(cell.id for cell in backwards) == sorted(cell.id for cell in cells)


def test_a_worker_prefers_a_cell_that_does_not_wait_for_a_stage_in_training() -> None:
    cells = make_plan(fake_study(seeds=(0,))).cells
    running, waiting = cells[0], cells[1:]
    same = [cell for cell in waiting if stage_keys(cell)["pretrain"] == stage_keys(running)["pretrain"]]
    busy = in_training({running.id: "pretrain"}, cells, [])
    assert without_waiting(waiting, busy)[-1] in same and without_waiting(waiting, busy)[0] not in same
    assert in_training({running.id: "instruct"}, cells, []).isdisjoint(stage_keys(cell)["pretrain"] for cell in cells)
    assert stage_keys(running)["pretrain"] not in in_training({running.id: None}, cells, [same[0].id])
