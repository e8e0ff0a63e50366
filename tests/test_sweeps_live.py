"""The live view of a sweep: what it counts, that it is the same on a terminal, in a log and in a notebook, and that it
outlives its storage."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from optuna.trial import TrialState
from rich.console import Console

from ablations.studies import Study
from lvlm.errors import InputError
from lvlm.records import RunRecord
from sweeps import cli, status, watch
from sweeps.live import follow
from sweeps.plan import Place, Plan
from sweeps.planner import make_plan
from sweeps.progress import PROGRESS_FILE
from sweeps.queue import CellState, Queue
from sweeps.standing import Finished, Lookout, Standing
from sweeps.storage import StorageDown
from sweeps.worker import Worker
from tests.sweeps_fakes import RUNNER, fake_study, write_run
from tests.sweeps_home import enqueued, lay_database
from tests.sweeps_storages import grpc_url

ROOT = Path(__file__).parents[1]
SECONDS = {"start-up": 1.0, "data": 2.0, "train/instruct": 5.0, "evaluate": 2.0, "other": 0.0, "total": 10.0}


def laid(home: Path, study: Study | None = None, *, storage: str | None = None) -> Plan:
    """A launched study whose cells all wait."""
    return enqueued(home, study or fake_study(), storage=storage)[0]


def advance(home: Path, plan: Plan, *outcomes: str) -> None:
    """Claim the next cells, each to end so: done, failed, running."""
    place = plan.place(home)
    queue = Queue(plan, place.storage)
    for outcome in outcomes:
        claim = queue.claim()
        assert claim is not None
        folder = place.cell(claim.cell.id)
        if outcome == "done":
            record = write_run(claim.cell.run_config(), folder)
            record.provenance["seconds"] = SECONDS
            record.save(folder)
            queue.complete(claim, record.scores[plan.primary])
        elif outcome == "failed":
            queue.fail(claim, "ValueError: no <such> tiles\nmore", "Traceback")
        else:
            folder.mkdir(parents=True)
            event = {"kind": "step", "stage": "instruct", "step": 5, "steps": 10, "loss": 0.25}
            (folder / PROGRESS_FILE).write_text(json.dumps(event))


def text_of(standing: Standing, *, size: tuple[int, int] | None = None, width: int = 140) -> str:
    screen = io.StringIO()
    Console(file=screen, width=width, height=size[1] if size else None).print(status.view(standing, size=size))
    return screen.getvalue()


def test_one_look_says_arms_best_time_and_who_does_what(tmp_path: Path) -> None:
    plan = laid(tmp_path)
    advance(tmp_path, plan, "done", "done", "failed", "running")
    standing = Lookout(plan.place(tmp_path)).look()
    said = text_of(standing)
    assert "fake: 2 of 8 cells done (1 running, 4 waiting, 1 failed)" in said
    assert "arms: 1 running, 1 failed, 2 waiting" in said, "an arm is done when its seeds are"
    two_tiles = next(cell.arm for cell in plan.cells if cell.levels["tiles"] == 2)
    assert f"best score/multilingual: 60.0 (mean of 1 of 2 seeds), {two_tiles}" in said
    assert re.search(r"time: 50% training, 20% data, 20% evaluation, 10% start-up", said)
    here = os.uname().nodename
    assert f"{here}: 1 worker(s)" in said and f"process {os.getpid()}: " in said
    assert "instruct 5/10 loss 0.25" in said and "ValueError: no <such> tiles" in said


def made(plan: Plan, states: dict[str, CellState], finished: dict[str, Finished], home: Path) -> Standing:
    return Standing(plan.place(home), plan, states, {}, finished, at=0.0)


def test_the_best_is_a_mean_over_the_seeds_that_there_are_and_never_a_pruned_arm(tmp_path: Path) -> None:
    plan = make_plan(fake_study(seeds=(0, 1)), runner=RUNNER)
    first, second, third = plan.arms[:3]
    score = {(first, 0): 40.0, (first, 1): 50.0, (second, 0): 44.0, (third, 0): 90.0}
    finished = {
        cell.id: Finished({plan.primary: found, "score/en": 100 - found}, {})
        for cell in plan.cells
        if (found := score.get((cell.arm, cell.seed))) is not None
    }
    states = {cell.id: CellState("done" if cell.id in finished else "waiting") for cell in plan.cells}
    states |= {cell.id: CellState("pruned") for cell in plan.cells if (cell.arm, cell.seed) == (third, 1)}
    standing = made(plan, states, finished, tmp_path)
    best = standing.best(plan.primary)
    assert best is not None and (best.arm, best.mean, best.n, best.seeds) == (first, 45.0, 2, 2)
    assert standing.arm_states == {first: "done", second: "waiting", third: "pruned", plan.arms[3]: "waiting"}
    other = standing.best("score/en")
    assert other is not None and (other.arm, other.mean, other.n) == (second, 56.0, 1)
    assert standing.best("score/T3") is None


def test_what_a_cell_takes_beside_its_run_is_the_tracking_and_small_shares_are_told_together(tmp_path: Path) -> None:
    plan = make_plan(fake_study(seeds=(0,)), runner=RUNNER)
    cell = plan.cells[0].id
    states = {one.id: CellState("waiting") for one in plan.cells}
    states[cell] = CellState("done", started=100.0, finished=120.0)
    seconds = {"train/pretrain": 3.0, "train/instruct": 6.8, "save": 0.1, "features": 0.1, "other": 0.0, "total": 10.0}
    standing = made(plan, states, {cell: Finished({}, seconds)}, tmp_path)
    assert standing.shares == pytest.approx({"tracking": 0.5, "training": 0.49, "rest": 0.01})
    found = {**states, cell: replace(states[cell], found=True)}
    assert "tracking" not in made(plan, found, {cell: Finished({}, seconds)}, tmp_path).shares


def test_a_small_terminal_shows_the_arms_that_matter_and_counts_the_others(tmp_path: Path) -> None:
    groups = ("en", "T5", "T5-T4", "T5-T3", "T5-T2", "L100", "script:Arab", "script:Latn", "family:Turkic", "all")
    study = fake_study(languages=groups, seeds=(0,))
    plan = laid(tmp_path, study)
    advance(tmp_path, plan, "done", "done", "failed", "running")
    standing = Lookout(plan.place(tmp_path)).look()
    names = {standing.states[cell.id].state: cell.arm for cell in plan.cells}
    assert len(plan.arms) == 20 and text_of(standing).count("· tiles") > 20
    said = text_of(standing, size=(140, 20))
    assert len(said.splitlines()) < 20 and "more arms" in said
    table = said.partition("arms:")[0]
    assert all(table.count(names[state]) == 1 for state in ("running", "failed", "done"))


def test_a_log_has_the_view_once_and_a_line_for_every_event(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lay_database(tmp_path)
    plan = laid(tmp_path, fake_study(seeds=(0,)))
    worker = threading.Timer(0.3, Worker(plan, plan.place(tmp_path)).work)
    worker.start()
    assert cli.main(["status", "fake", "--watch", "--every", "0.05", "--home", str(tmp_path)]) == 0
    worker.join()
    said = capfd.readouterr().out
    assert said.count("seed 0 ") >= 1 and said.count("┏") == 1, "the table once"
    assert len(re.findall(r"^done ", said, re.MULTILINE)) == 4 and "\x1b[" not in said
    assert said.rstrip().endswith("[fake: 4 of 4 cells done]")


def test_a_watcher_outlives_its_storage_and_says_how_old_its_view_is(tmp_path: Path) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120, height=40)
    journal = tmp_path / "proxy.log"
    with grpc_url(journal) as url:
        plan = laid(tmp_path, fake_study(seeds=(0,)), storage=url)
        advance(tmp_path, plan, "done", "running")
        lookout = Lookout(plan.place(tmp_path))
        assert not lookout.look().trouble
    watcher = threading.Thread(target=follow, args=(lookout, console), kwargs={"every_seconds": 0.05}, daemon=True)
    watcher.start()
    deadline = time.monotonic() + 30
    while "as it stood at" not in screen.getvalue() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "does not answer" in screen.getvalue() and watcher.is_alive()
    assert lookout.look().numbers["done"] == 1, "what was seen last stays"
    with grpc_url(journal, int(url.rpartition(":")[2])):
        finish_all(Queue(plan, plan.place(tmp_path).storage))
        watcher.join(timeout=60)
        assert not watcher.is_alive() and "the storage answers again" in screen.getvalue()
    assert "fake: 4 of 4 cells done" in screen.getvalue()


def finish_all(queue: Queue) -> None:
    """End every trial, as soon as the storage answers: a connection waits before it is tried again."""
    deadline = time.monotonic() + 60
    while True:
        try:
            while (claim := queue.claim()) is not None:
                queue.complete(claim, 1.0)
            for trial in queue._trials.trials((TrialState.RUNNING,)):
                queue._trials.finish(queue._trials.handle(trial), TrialState.COMPLETE, [1.0])
            return
        except StorageDown:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def test_a_storage_that_was_never_there_is_an_error_and_no_empty_view(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with grpc_url(tmp_path / "proxy.log") as url:
        laid(tmp_path, fake_study(seeds=(0,)), storage=url)
    assert cli.main(["status", "fake", "--watch", "--home", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "does not answer" in said and said.count("\n") == 1
    with pytest.raises(StorageDown):
        watch("fake", home=tmp_path)


def test_ctrl_c_ends_a_watcher_without_a_traceback_and_leaves_the_sweep_alone(tmp_path: Path) -> None:
    plan = laid(tmp_path)
    command = [sys.executable, "-m", "sweeps", "status", "fake", "--watch", "--every", "0.1", "--home", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    watcher = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert watcher.stdout is not None
    while "arms: " not in watcher.stdout.readline():
        assert watcher.poll() is None
    watcher.send_signal(signal.SIGINT)
    _, errors = watcher.communicate(timeout=60)
    assert watcher.returncode == 130 and "Traceback" not in errors
    states = Queue(plan, plan.place(tmp_path).storage).states()
    assert all(state == CellState("waiting", attempt=1) for state in states.values())


def test_a_watcher_goes_on_with_the_plan_of_a_later_launch(tmp_path: Path) -> None:
    plan = laid(tmp_path, fake_study(seeds=(0,)))
    lookout = Lookout(plan.place(tmp_path))
    assert len(lookout.look().states) == 4
    laid(tmp_path, fake_study(seeds=(0, 1)))
    assert len(lookout.look().states) == 8
    plan.place(tmp_path).current_plan.write_text("{")
    assert len(lookout.look().states) == 8, "a plan that cannot be read leaves the one that could"


def named(plan: Plan) -> Plan:
    """The same plan with arms named in HTML."""
    return replace(plan, cells=[replace(cell, arm=f"<b>{cell.arm}</b> & more") for cell in plan.cells])


def test_a_notebook_sees_words_for_states_and_escaped_names(tmp_path: Path) -> None:
    plan = named(make_plan(fake_study(), runner=RUNNER))
    place = plan.place(tmp_path)
    plan.save(place)
    Queue(plan, place.storage).add_missing()
    advance(tmp_path, plan, "done", "failed", "running")
    view = watch(fake_study(), home=tmp_path)
    page = view._repr_html_()
    for state in ("done", "failed", "running", "waiting"):
        assert re.search(rf"<td style=[^>]*color:#[^>]*>{state}</td>", page)
    assert "<b>" not in page and "&lt;b&gt;" in page and "&amp; more" in page and "no &lt;such&gt; tiles" in page
    assert "<script" not in page and "http" not in page
    assert ">50.0 (1)</td>" in page or ">60.0 (1)</td>" in page
    advance(tmp_path, plan, "done")
    assert "fake: 1 of 8" in page and "fake: 2 of 8" in view._repr_html_(), "refreshed whenever it is shown"
    assert repr(view).startswith("fake: 2 of 8")


def test_the_frame_has_a_row_for_every_cell(tmp_path: Path) -> None:
    plan = laid(tmp_path)
    advance(tmp_path, plan, "done", "failed")
    frame = watch("fake", home=tmp_path).frame
    assert list(frame.columns) == ["cell", "arm", "seed", "state", "seconds", "score"]
    assert frame["cell"].tolist() == [cell.id for cell in plan.cells]
    assert frame["state"].value_counts().to_dict() == {"waiting": 6, "done": 1, "failed": 1}
    done = frame[frame["state"] == "done"]
    assert done["score"].between(50, 70).all() and (done["seconds"] >= 0).all()
    assert frame.loc[frame["state"] != "done", ["seconds", "score"]].isna().all(axis=None)


def test_watching_what_was_never_launched_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Nothing has been launched"):
        watch("fake", home=tmp_path)


def run_notebook(tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The outputs of one cell."""
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(source)]
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    return list(notebook.cells[0].outputs)


def test_launch_and_follow_replace_one_output_of_a_notebook_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One cell launches and another kernel could have: both views are one HTML output, the last one of the sweep."""
    lay_database(tmp_path)
    source = (
        "from sweeps import launch, watch\nfrom tests.sweeps_fakes import RUNNER, fake_study\n"
        "study = fake_study(seeds=(0,))\n"
        f"outcome = launch(study, workers=1, runner=RUNNER, home={str(tmp_path)!r})\n"
        f"watch(study, home={str(tmp_path)!r}).follow(every_seconds=0.1)"
    )
    outputs = run_notebook(tmp_path, source, monkeypatch)
    pages = [output["data"]["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    views = [page for page in pages if "best score/multilingual" in page and "<table" in page]
    assert len(views) == 2 and all("fake: 4 of 4 cells done" in view for view in views)
    assert not any('install "ipywidgets"' in str(output) for output in outputs), "rich's own display needs them"


def test_records_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = laid(tmp_path)
    advance(tmp_path, plan, "done", "done")
    read: list[Path] = []
    load = RunRecord.load
    monkeypatch.setattr(RunRecord, "load", lambda folder: read.append(folder) or load(folder))
    lookout = Lookout(Place(tmp_path, "fake"))
    for _ in range(3):
        assert len(lookout.look().finished) == 2
    assert len(read) == 2
