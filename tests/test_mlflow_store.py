"""One MLflow store for launches, workers and pages, whatever it is; a server that goes away costs nothing; and a study
read back from the store alone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from ablations.origin import Origin
from lvlm.errors import InputError
from sweeps.cli import main
from sweeps.launcher import launch
from sweeps.plan import Place
from sweeps.planner import make_plan
from sweeps.queue import CellState
from sweeps.tracking import Tracker
from sweeps.tracking_store import connect, database, keep_uri, owner_of, shown, tracking_uri
from sweeps.usage import USAGE_FILE, Usage, usage_rows
from tests import sweeps_home
from tests.sweeps_fakes import RUNNER, fake_study, searched_study, write_run
from tests.sweeps_home import calls, lay_database, runs_of, work_alone

home = sweeps_home.home  # the fixture


class Server:
    """An MLflow server of its own, to be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        lay_database(folder)
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"

    @contextmanager
    def running(self) -> Iterator[None]:
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{database(self.folder)}"]
        command += ["--artifacts-destination", (self.folder / "artifacts").as_uri()]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        process = subprocess.Popen(command, env=environment, cwd=self.folder, start_new_session=True)
        try:
            self._wait()
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=60)

    def _wait(self) -> None:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.address}/health", timeout=5).close()
                return
            except OSError:
                time.sleep(0.3)
        raise AssertionError("the MLflow server does not start")


def history(home: Path, run: Any, name: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in connect(home).get_metric_history(run.info.run_id, name))


def test_a_server_that_is_away_for_a_while_costs_no_training_and_gets_everything_once(
    home: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    server, study = Server(tmp_path_factory.mktemp("server")), fake_study(seeds=(0,))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    began = time.monotonic()
    assert work_alone(home, study).is_complete and len(calls(home)) == 4
    assert time.monotonic() - began < 60, "nobody waits for a server that is down"
    assert "MLflow does not answer" in capfd.readouterr().out
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking_uri(home) == server.address, "the launch wrote down where the runs are"

    with server.running():
        assert launch(study, home=home, runner=RUNNER).is_complete
        assert "sending 4 cells" in capfd.readouterr().out
        first = {run.info.run_id: run for run in runs_of(home)}
        assert len(first) == 4 and {run.info.status for run in first.values()} == {"FINISHED"}

    monkeypatch.setenv("FAKE_FAIL", "2")
    larger = fake_study(seeds=(0, 1))
    assert work_alone(home, larger).failed == 2, "two more cells, two that fail, and nobody to tell"
    monkeypatch.setenv("FAKE_FAIL", "")
    with server.running():
        assert launch(larger, home=home, runner=RUNNER, retry_failed=True).is_complete
        runs = runs_of(home)
        assert len(runs) == 4 + 8 and {run.info.status for run in runs} == {"FINISHED"}
        for run in runs:
            assert history(home, run, "train/loss") == [
                (1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3)), (4, 1.0), (5, 0.5), (6, pytest.approx(1 / 3))
            ]  # fmt: skip
            files = {file.path for file in connect(home).list_artifacts(run.info.run_id)}
            assert {"scores.parquet", "predictions.parquet", "scores.json"} <= files
        assert len(calls(home)) == 8 + 2, "four cells, four more, and the two that failed again"
        before = pd.read_parquet(home / "studies/fake/results.parquet")
        _read_elsewhere(server, before, tmp_path_factory.mktemp("elsewhere"), monkeypatch)
    assert not list((home / "studies/fake/cells").glob("*/untracked.txt"))


def _read_elsewhere(server: Server, before: pd.DataFrame, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    assert main(["export", "fake", "--from-mlflow", "--home", str(elsewhere)]) == 0
    _same(pd.read_parquet(elsewhere / "studies/fake/results.parquet"), before)


def test_what_a_study_holds_equal_and_its_ranges_are_in_the_store(
    home: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = searched_study(arms=2, first=1)
    plan = replace(make_plan(study, runner=RUNNER), held_equal="images")
    place = plan.place(home)
    for cell in plan.cells:
        write_run(cell.run_config(), place.cell(cell.id))
    tracker = Tracker(place, plan)
    assert not tracker.send_unsent({cell.id: CellState("done") for cell in plan.cells}), tracker.trouble
    (parent,) = runs_of(home, parents=True)
    note = parent.data.tags["mlflow.note.content"]
    assert "`share`: 0.01 to 0.99" in note and "Held equal in every arm: images." in note
    assert json.loads(parent.data.tags["factors"])["share"] == [0.01, 0.99]
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database(home)}")
    assert main(["export", "fake", "--from-mlflow", "--home", str(elsewhere)]) == 0
    origin = Origin.load(elsewhere / "studies/fake")
    assert origin is not None and origin.held_equal == "images"


def _same(found: pd.DataFrame, wanted: pd.DataFrame) -> None:
    key = ["run", "task", "language", "metric"]
    found, wanted = (table.sort_values(key, ignore_index=True) for table in (found, wanted))
    pd.testing.assert_frame_equal(found[wanted.columns], wanted, check_dtype=False)


def test_a_study_is_read_back_from_the_store_alone(
    home: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert work_alone(home, fake_study(seeds=(0,))).is_complete
    before = pd.read_parquet(home / "studies/fake/results.parquet")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database(home)}")
    assert main(["export", "fake", "--from-mlflow", "--home", str(elsewhere)]) == 0
    _same(pd.read_parquet(elsewhere / "studies/fake/results.parquet"), before)
    budget = pd.read_csv(elsewhere / "studies/fake/budget.csv")
    assert budget["samples"].tolist() == [96.0] * 4

    for file in (home / "mlartifacts").rglob("scores.parquet"):
        file.unlink()
    assert main(["export", "fake", "--from-mlflow", "--home", str(elsewhere)]) == 0
    assert "of 4 runs no scores.parquet" in capsys.readouterr().out
    scores = before[before["metric"] == "score"].assign(n=float("nan"))
    _same(pd.read_parquet(elsewhere / "studies/fake/results.parquet"), scores)
    assert main(["export", "other", "--from-mlflow", "--home", str(elsewhere)]) == 2
    assert "has no study 'other'" in capsys.readouterr().err


def test_the_store_is_named_once_and_known_to_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db" and owner_of(tmp_path) is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://ann:secret@db/mlflow")
    assert keep_uri(tmp_path) == "postgresql://ann:secret@db/mlflow"
    assert (tmp_path / "mlflow.json").stat().st_mode & 0o077 == 0, "it holds a password"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking_uri(tmp_path) == "postgresql://ann:secret@db/mlflow"
    assert shown(tracking_uri(tmp_path)) == "postgresql://ann:***@db/mlflow"
    owner = owner_of(tmp_path)
    assert owner and owner == owner_of(tmp_path), "a shared store tells the work folders apart"
    for uri in ("./mlruns", "file:///runs", "databricks"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(InputError, match="none that runs can be kept in"):
            tracking_uri(tmp_path)


def test_datasets_usage_and_tables_of_a_run(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert work_alone(home, fake_study(seeds=(0,))).is_complete
    run = runs_of(home)[0]
    inputs = {(entry.tags[0].value, entry.dataset.name, entry.dataset.digest) for entry in run.inputs.dataset_inputs}
    assert inputs == {("pretrain", "shapes", "0123"), ("instruct", "shapes", "4567")}
    assert run.data.metrics["system/system_memory_usage_megabytes"] > 10
    assert run.data.metrics["system/process_memory_usage_megabytes"] > 10
    folder = home / "studies/fake/cells" / run.data.tags["cell_id"]
    samples = usage_rows(folder)
    assert len(history(home, run, "system/cpu_utilization_percentage")) == len(samples) >= 1
    (folder / USAGE_FILE).write_text((folder / USAGE_FILE).read_text() + '\n{"time": 1.0, "cpu_ut')
    with Usage(folder):
        pass
    assert len(usage_rows(folder)) == len(samples) + 1, "what a killed worker left torn is passed over"

    tables = {entry["path"] for entry in json.loads(run.data.tags["mlflow.loggedArtifacts"])}
    assert tables == {"scores.json", "mix.json", "answers.json"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri(home))  # MLflow looks for tables in this one alone
    scores = connect(home).load_table(run.info.experiment_id, "scores.json", [run.info.run_id])
    assert set(scores["language"]) == {"en", "de", "sw"} and {"score", "fidelity", "items"} <= set(scores)


def test_optunas_dashboard_shows_the_trials_of_a_study(home: Path) -> None:
    pytest.importorskip("optuna_dashboard")
    assert work_alone(home, fake_study(seeds=(0,))).is_complete
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "sweeps", "ui", "--optuna", "--no-browser", "--port", str(port)]
    process = subprocess.Popen([*command, "--home", str(home)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(2)]
        assert said[0].startswith("Optuna's dashboard is starting") and f"127.0.0.1:{port}/dashboard" in said[1]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=30) as answer:
            (study,) = json.load(answer)["study_summaries"]
        assert study["study_name"] == "fake"
    finally:
        process.terminate()
        assert process.wait(timeout=60) == 0


def test_the_gpus_that_a_worker_may_use_are_numbered_as_it_sees_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 3,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetUUID=lambda handle: f"GPU-{handle}",
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=handle * 1e9, total=4e9),
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=10 * handle),
    )
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-1")
    with Usage(tmp_path):
        pass
    (row,) = usage_rows(tmp_path)
    assert (row["gpu_0_memory_usage_megabytes"], row["gpu_0_utilization_percentage"]) == (2000, 20)
    assert row["gpu_1_memory_usage_percentage"] == 25 and "gpu_2_utilization_percentage" not in row


def test_the_status_of_a_run_is_that_of_its_cell(home: Path) -> None:
    plan = make_plan(fake_study(seeds=(0,)), runner=RUNNER)
    tracker, (running, lost, pruned, failed) = Tracker(Place(home, "fake"), plan), plan.cells
    states = {
        running.id: CellState("running"),
        lost.id: CellState("waiting"),
        pruned.id: CellState("pruned", started=10.0, finished=20.0),
        failed.id: CellState("failed", started=10.0, finished=20.0, error="ValueError: no such tiles"),
    }

    def shown_as() -> dict[str, tuple[str, str]]:
        return {run.data.tags["cell_id"]: (run.info.status, run.data.tags["state"]) for run in runs_of(home)}

    for cell in (running, lost):
        tracker.begin(cell)
    assert set(shown_as().values()) == {("RUNNING", "running")}
    assert not tracker.send_unsent(states) and tracker.mark("KILLED", states)
    assert shown_as() == {
        running.id: ("RUNNING", "running"),
        lost.id: ("KILLED", "interrupted"),
        pruned.id: ("KILLED", "pruned"),
        failed.id: ("FAILED", "failed"),
    }
    (parent,) = runs_of(home, parents=True)
    note = parent.data.tags["mlflow.note.content"]
    assert parent.info.status == "KILLED" and "**Progress**: 0 of 4 cells done" in note and "`tiles`: 1 / 2" in note

    ids = {run.data.tags["cell_id"]: run.info.run_id for run in runs_of(home)}
    tracker.begin(lost)
    assert shown_as()[lost.id] == ("RUNNING", "running"), "it goes on as the same run"
    tracker.interrupt(lost)
    assert shown_as()[lost.id] == ("KILLED", "interrupted")
    assert {run.data.tags["cell_id"]: run.info.run_id for run in runs_of(home)} == ids
