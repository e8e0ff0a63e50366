"""Workers as jobs of Slurm: what is asked of it, what a job does when its time is over, and whole sweeps on a real
cluster of one node (`.ci/services start`)."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

from lvlm.errors import InputError
from sweeps.cluster import PullWorker, SlurmCrew, slurm_options
from sweeps.exits import EXIT_INTERRUPTED
from sweeps.launcher import Outcome, launch
from sweeps.plan import Place
from sweeps.planner import make_plan
from sweeps.progress import ProgressFile
from sweeps.queue import CellState
from sweeps.storage import Trials
from sweeps.worker import Worker
from tests import sweeps_home
from tests.sweeps_fakes import RUNNER, fake_study
from tests.sweeps_home import calls, enqueued, runs_of, when

home = sweeps_home.home  # the fixture


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A real cluster, whose jobs are cancelled at the end."""
    if not (file := os.environ.get("LVLM_TEST_SLURM")):
        pytest.skip('no Slurm to test on (LVLM_TEST_SLURM is not set): eval "$(.ci/services start)"')
    monkeypatch.setenv("SLURM_CONF", file)
    monkeypatch.setattr("sweeps.cluster.LOOK_SECONDS", 1.0)
    yield
    subprocess.run(["scancel", "--me"], check=True)


def trials_of(home: Path, *states: TrialState) -> list[FrozenTrial]:
    storage = Place(home, "fake").storage
    return Trials(storage).trials(states) if storage.exists else []


def launch_in_slurm(home: Path) -> Outcome:
    asked = ["signal_delay_s=20", "timeout_min=10", "cpus_per_task=1"]
    study = fake_study(seeds=(0,))
    return launch(study, workers=2, home=home, runner=RUNNER, cluster="slurm", cluster_options=asked)


@pytest.mark.system
def test_two_jobs_work_off_a_study_although_the_launcher_goes_and_slurm_takes_their_machines(
    slurm: None, home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE_SECONDS", "3")

    def running() -> bool:
        return len(trials_of(home, TrialState.RUNNING)) == 2

    thread = when(running, lambda: signal.raise_signal(signal.SIGINT))
    outcome = launch_in_slurm(home)
    thread.join()
    said = capfd.readouterr().out
    (job,) = re.findall(r"scancel (\d+)\n", said)
    assert outcome.interrupted and not outcome.is_complete
    assert f"job {job}" in said and f"python -m sweeps status fake --home {home} --watch" in said
    assert {run.info.status for run in runs_of(home, parents=True)} == {"RUNNING"}

    def take_away() -> None:
        for task in (0, 1):
            subprocess.run(["scancel", "--signal=USR2", f"{job}_{task}"], check=True)

    thread = when(running, take_away)
    outcome = launch_in_slurm(home)
    thread.join()
    said = capfd.readouterr().out
    assert "2 worker(s) of an earlier launch still run" in said and f"job {job}\n" in said
    assert outcome.is_complete and outcome.done == 4
    done = Counter(trial.user_attrs["cell_id"] for trial in trials_of(home, TrialState.COMPLETE))
    assert len(done) == done.total() == 4
    given_back = trials_of(home, TrialState.FAIL)
    assert given_back and all(trial.user_attrs.get("interrupted") for trial in given_back), "no attempt was a kill"
    assert not [call for call in calls(home) if call[1] == "repeated"]
    logs = [path.read_text() for path in (home / "studies/fake/logs/slurm").rglob("*_log.out")]
    assert len(logs) == 2 and all(log.count("Starting with JobEnvironment") == 2 for log in logs), "both came back"


@pytest.mark.system
def test_a_launch_says_that_no_job_is_left(
    slurm: None, home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE_SECONDS", "60")
    thread = when(
        lambda: len(trials_of(home, TrialState.RUNNING)) == 2,
        lambda: subprocess.run(["scancel", "--me"], check=True),
    )
    outcome = launch_in_slurm(home)
    thread.join()
    assert not outcome.is_complete and not outcome.interrupted
    said = capfd.readouterr().out
    assert "No job is left in Slurm's queue, and 4 cell(s) are not done." in said and "Go on with:" in said
    assert all(trial.user_attrs.get("interrupted") for trial in trials_of(home, TrialState.FAIL))


@pytest.mark.system
def test_what_slurm_refuses_is_one_paragraph(slurm: None, home: Path) -> None:
    options = ["partition=nowhere"]
    with pytest.raises(InputError, match=r"Slurm does not take the workers: .*[Ii]nvalid partition"):
        launch(fake_study(), workers=2, home=home, runner=RUNNER, cluster="slurm", cluster_options=options)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Slurm's programs, which do nothing."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sbatch", "srun", "squeue"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def test_options_are_those_of_submitit_or_of_sbatch(programs: Path) -> None:
    texts = ["partition=gpu", "gpus_per_node=1", "timeout_min=60", "mem_gb=7.5", "sbatch.reservation=day"]
    options = slurm_options([*texts, "setup=module load cuda", "setup=ulimit -n 4096", "sbatch.hold=true"])
    assert options == {
        "partition": "gpu",
        "gpus_per_node": "1",
        "timeout_min": 60,
        "mem_gb": 7.5,
        "signal_delay_s": 120,
        "sbatch.reservation": "day",
        "sbatch.hold": True,
        "setup": ["module load cuda", "ulimit -n 4096"],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partitoin=gpu", "partitoin=gpu' is not understood.*partition.*sbatch.NAME=VALUE"),
        ("partition", "KEY=VALUE"),
        ("nodes=2", "is not understood"),
        ("timeout_min=3", "no time is left to work"),
        ("timeout_min=soon", "timeout_min is a number above 0, not 'soon'"),
        ("gpus_per_node=4", "ask for one, and for more workers .--workers 4."),
        ("gpus_per_node=a100:2", "several GPUs"),
        ("gres=gpu:h100:8", "several GPUs"),
    ],
)
def test_an_option_that_cannot_be_meant_is_refused(programs: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        slurm_options([text])


def test_without_slurm_nothing_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"sbatch, srun, squeue cannot be found here. Launch from a\s+login node"):
        launch(fake_study(), home=tmp_path / "home", cluster="slurm")
    with pytest.raises(InputError, match="'partition=gpu' is for --cluster slurm, which is not given"):
        launch(fake_study(), home=tmp_path / "home", cluster_options=["partition=gpu"])
    assert not (tmp_path / "home").exists()


def test_what_sbatch_is_given(programs: Path, tmp_path: Path) -> None:
    (programs / "sbatch").write_text(f'#!/bin/sh\ncp "$1" {tmp_path}/script\necho Submitted batch job 71\n')
    plan = make_plan(fake_study(), runner=RUNNER)
    options = slurm_options(["partition=gpu", "cpus_per_task=6", "mem_gb=7.5", "sbatch.reservation=day", "qos=low"])
    crew = SlurmCrew(plan.place(tmp_path), plan, workers=3, since=0.0, options=options)
    crew.start(3)
    script = (tmp_path / "script").read_text()
    wanted = "partition=gpu cpus-per-task=6 mem=7680MB reservation=day qos=low time=240 signal=USR2@120 array=0-2%3"
    for text in [*wanted.split(), "requeue\n", "job-name=sweep-fake"]:
        assert f"#SBATCH --{text}" in script
    assert "srun" in script and " --cpus-per-task=6 " in script
    assert crew.jobs == ["71"]
    (programs / "squeue").write_text("#!/bin/sh\nfor job in 71 71 9; do echo $job PENDING PartitionTimeLimit; done\n")
    assert crew.earlier({}) == 2 and "job 71" in crew.about()[0]
    assert "scancel 71" in crew.parting()[1]


def test_jobs_that_are_gone_end_the_watch_only_where_cells_are_left_that_nobody_runs(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.cluster.LOOK_SECONDS", 0.0)
    plan = make_plan(fake_study(), runner=RUNNER)
    crew = SlurmCrew(plan.place(tmp_path), plan, workers=2, since=0.0, options=slurm_options([]))
    waiting, running, done = {"a": CellState("waiting")}, {"b": CellState("running")}, {"c": CellState("done")}
    assert crew.is_working(waiting), "the queue has not been looked at"
    (programs / "squeue").write_text("#!/bin/sh\necho 7 PENDING Dependency\n")
    crew.folder.mkdir(parents=True)
    (crew.folder / "7_submission.sh").touch()
    assert crew.tend() == ["1 job(s) wait in Slurm's queue: Dependency"] and crew.tend() == []
    assert crew.is_working(waiting)
    (programs / "squeue").write_text("#!/bin/sh\n")
    crew.tend()
    assert crew.is_working(waiting | running)
    assert not crew.is_working(waiting) and "1 cell(s) are not done" in crew.ended(waiting)[0]
    assert not crew.is_working(done) and not crew.ended(done)
    (programs / "squeue").write_text("#!/bin/sh\nexit 1\n")
    crew.tend()
    assert crew.is_working(waiting), "a controller that is away says nothing about the jobs"


HEEDS = "import signal, sys, time; signal.signal(signal.SIGUSR2, lambda *_: sys.exit(130)); time.sleep(60)"
DEAF = "import signal, time; signal.signal(signal.SIGUSR2, signal.SIG_IGN); time.sleep(60)"


@pytest.mark.parametrize(("code", "least_seconds"), [(HEEDS, 0.0), (DEAF, 1.5)])
def test_a_job_that_is_told_to_go_waits_for_its_worker_and_requeues(code: str, least_seconds: float) -> None:
    """`least_seconds` is the patience with a worker that does not heed."""
    requeued: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}
    signal.signal(signal.SIGUSR2, lambda number, _: _requeue(requeued, number))
    told = threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGUSR2))
    job = PullWorker([sys.executable, "-c", code], patience_seconds=1.5)
    began = time.monotonic()
    told.start()
    try:
        with pytest.raises(SystemExit):
            job(0)
    finally:
        told.join()
        for number, handler in before.items():
            signal.signal(number, handler)
    assert requeued == [signal.SIGUSR2]
    assert least_seconds <= time.monotonic() - began - 1.0 < 10
    assert job._process is not None and job._process.returncode == (130 if code == HEEDS else -signal.SIGTERM)


def _requeue(requeued: list[int], number: int) -> None:
    requeued.append(number)
    raise SystemExit


def test_a_worker_that_is_to_leave_gives_its_cell_back_after_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, place, queue = enqueued(tmp_path, fake_study())
    worker, steps = Worker(plan, place), []

    def told(self: ProgressFile, event: Any) -> None:
        steps.append(event["step"])
        if event["step"] == 3:
            worker.leave()

    monkeypatch.setattr(ProgressFile, "__call__", told)
    assert worker.work() == EXIT_INTERRUPTED
    assert steps == [1, 2, 3]
    (given_back,) = trials_of(tmp_path, TrialState.FAIL)
    assert given_back.user_attrs["interrupted"] and queue.states()[given_back.user_attrs["cell_id"]].state == "waiting"
    assert worker.work() == EXIT_INTERRUPTED and steps == [1, 2, 3], "told between two cells it takes no other"


def test_a_job_replaces_a_worker_that_dies_and_gives_up_where_none_can_start(tmp_path: Path) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}
    try:
        dies_once = f"test -e {tmp_path}/died || {{ touch {tmp_path}/died; kill -9 $$; }}"
        assert PullWorker(["sh", "-c", dies_once], patience_seconds=1)(0) == 0
        with pytest.raises(RuntimeError, match="Workers end at once"):
            PullWorker(["sh", "-c", "exit 7"], patience_seconds=1)(0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
