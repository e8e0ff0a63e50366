"""What machines, disks, servers and people do to a sweep: it loses nothing that finished and runs nothing twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from ablations.table import load_results
from lvlm.errors import InputError
from sweeps import cli
from sweeps.exits import EXIT_DISK_FULL, EXIT_FENCED
from sweeps.launcher import Outcome, launch
from sweeps.planner import make_plan
from sweeps.worker import Worker
from tests import sweeps_home
from tests.sweeps_fakes import RUNNER, fake_study
from tests.sweeps_home import calls, enqueued, runs_of, when, work_alone
from tests.sweeps_storages import grpc_url, postgres_away, postgres_url

home = sweeps_home.home  # the fixture
ROOT = Path(__file__).parents[1]
WORKER = [sys.executable, "-m", "sweeps", "worker", "fake"]
STUDY_FILE = """
from tests.sweeps_fakes import fake_study
study = fake_study(seeds={seeds}, languages={languages}, name="mine")
"""


def ran_once(home: Path, cells: int) -> bool:
    """Whether every cell was run to its end by one worker, and is in MLflow once."""
    ids = Counter(call[0] for call in calls(home))
    children = runs_of(home)
    return (
        len(ids) == cells
        and not [call for call in calls(home) if call[1] == "repeated"]
        and len(children) == len({run.data.tags["cell_id"] for run in children}) == cells
        and {run.info.status for run in children} == {"FINISHED"}
    )


class Sweep(threading.Thread):
    """A sweep of four cells of two seconds, whose storage goes away for longer than cells and heartbeats last."""

    def __init__(self, home: Path, url: str) -> None:
        super().__init__()
        self.home, self.url = home, url
        self.outcome: Outcome | None = None

    def run(self) -> None:
        self.outcome = launch(fake_study(seeds=(0,)), workers=2, home=self.home, runner=RUNNER, storage=self.url)

    def until_cells_run(self) -> None:
        self.start()
        when(lambda: len(calls(self.home)) >= 2, lambda: None).join()

    def outlasts(self) -> None:
        time.sleep(6)
        assert self.is_alive()

    def survived(self, said: str) -> bool:
        """Whether every cell was run to its end, once, and it told what happened."""
        logs = "".join(log.read_text() for log in (self.home / "studies/fake/logs").iterdir())
        assert "does not answer" in said and "The workers train on." in said and "the storage answers again" in said
        assert "waiting: The storage" in logs and "lease is lost" not in logs
        return bool(self.outcome and self.outcome.is_complete) and ran_once(self.home, 4)


def test_training_goes_on_while_the_storage_is_away(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE_SECONDS", "2")
    journal = home / "proxy.log"
    with grpc_url(journal) as url:
        sweep = Sweep(home, url)
        sweep.until_cells_run()
    sweep.outlasts()
    with grpc_url(journal, int(url.rpartition(":")[2])):
        sweep.join(timeout=300)
    assert sweep.survived(capfd.readouterr().out), "a cell that ends while the storage is away is not run again"


@pytest.mark.system
def test_training_goes_on_while_postgresql_is_away(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE_SECONDS", "2")
    with postgres_url() as url:
        sweep = Sweep(home, url)
        sweep.until_cells_run()
        with postgres_away(url):
            sweep.outlasts()
        sweep.join(timeout=300)
        assert sweep.survived(capfd.readouterr().out), "a cell that ends while the storage is away is not run again"


def test_a_storage_that_cannot_be_reached_is_one_paragraph_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkey = ["launch", "drivers", "--home", str(tmp_path / "home"), "--runner", RUNNER, "--storage"]
    for url, why in (
        ("grpc://127.0.0.1:9", "does not answer"),
        ("postgresql://nobody@127.0.0.1:9/none", "does not answer"),
        ("mysql://somewhere/x", "is no storage that sweeps can use"),
        ("grpc://somewhere", "is no storage that sweeps can use"),
        ("sqlite://", "is no storage that sweeps can use"),
        ("sqlite:///:memory:", "is no storage that sweeps can use"),
        ("postgresql://me:secret@127.0.0.1/x", "PGPASSWORD"),
        ("postgresql://me@127.0.0.1/x?password=secret", "PGPASSWORD"),
        (f"sqlite:///{tmp_path}/x.db", "two workers can be given one cell"),
    ):
        workers = ["--workers", "2"]
        assert cli.main([*monkey, url, *workers]) == 2
        text = capsys.readouterr().err
        assert why in text and text.count("\n") == 1 and "secret" not in text
    assert not (tmp_path / "home").exists()


def test_one_worker_may_keep_its_trials_in_sqlite_and_another_storage_is_refused(home: Path, tmp_path: Path) -> None:
    study = fake_study(seeds=(0,))
    url = f"sqlite:///{tmp_path}/trials.db"
    assert launch(study, workers=1, home=home, runner=RUNNER, storage=url).is_complete
    assert launch(study, workers=1, home=home, runner=RUNNER).is_complete, "a later launch finds the storage by itself"
    with pytest.raises(InputError, match=r"trials\.db, and this launch names grpc://here:1"):
        launch(study, workers=1, home=home, runner=RUNNER, storage="grpc://here:1")


def test_a_second_worker_on_sqlite_is_refused_however_it_is_started(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = fake_study(seeds=(0,))
    plan, place, _ = enqueued(home, study, storage="sqlite:///trials.db")
    kept = place.storage
    assert kept.url == f"sqlite:///{tmp_path}/trials.db", "the same file wherever a worker is started"
    with kept.occupied():
        with pytest.raises(InputError, match="two workers can be given one cell"):
            Worker(plan, place).work()
        with pytest.raises(InputError, match="A worker is at work on sqlite:"):
            launch(study, workers=1, home=home, runner=RUNNER)
    assert not calls(home)
    assert Worker(plan, place).work() == 0 and len(calls(home)) == 4


@pytest.mark.system
def test_four_workers_on_an_empty_postgresql_run_every_cell_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SECONDS", "0.3")
    with postgres_url() as url:
        outcome = launch(fake_study(seeds=(0, 1, 2)), workers=4, home=home, runner=RUNNER, storage=url)
        assert outcome.is_complete and ran_once(home, 12)


def test_four_processes_that_come_to_an_empty_home_at_once_all_work(tmp_path: Path) -> None:
    plan = make_plan(fake_study(seeds=(0, 1, 2)), runner=RUNNER)
    place = plan.place(tmp_path)
    plan.save(place)  # no database of MLflow yet, and no trials
    processes = [
        subprocess.Popen([*WORKER, "--home", str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE) for _ in range(4)
    ]
    for process in processes:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said.decode()
    assert ran_once(tmp_path, 12)


def test_two_launches_of_one_study_at_once_share_the_work(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SECONDS", "0.5")
    command = [sys.executable, "-m", "sweeps", "launch", str(home / "mine.py"), "--workers", "1", "--runner", RUNNER]
    (home / "mine.py").write_text(STUDY_FILE.format(seeds=(0, 1), languages=("en", "all")))
    both = [
        subprocess.Popen([*command, "--home", str(home)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=300)[0].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    ids = Counter(call[0] for call in calls(home))
    assert len(ids) == 8 and set(ids.values()) == {1}
    assert load_results(home / "studies/mine").table["run"].nunique() == 8


def test_a_full_disk_stops_the_sweep_and_costs_no_cell(
    home: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "full").touch()
    plan, place, queue = enqueued(home, fake_study(seeds=(0,)))
    assert Worker(plan, place).work() == EXIT_DISK_FULL
    assert "no room left on the disk" in capfd.readouterr().err
    assert {state.state for state in queue.states().values()} == {"waiting"}, "no fault of the cell"
    outcome = launch(fake_study(seeds=(0,)), workers=1, home=home, runner=RUNNER)
    said = capfd.readouterr().out
    assert not outcome.is_complete and outcome.failed == 0 and "there is no room left on the disk" in said
    (home / "full").unlink()
    assert work_alone(home, fake_study(seeds=(0,))).is_complete


def test_a_worker_that_slept_past_its_lease_is_fenced_off_and_says_so(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_SECONDS", "3")
    plan, place, _ = enqueued(home, fake_study(seeds=(0,)))
    code = (
        "import sys, sweeps.worker as w; w.BEAT_SECONDS = 0.1; from sweeps.plan import *; place = find_place('fake', "
    )
    code += "sys.argv[1]); w._Heartbeat.__init__.__kwdefaults__['every_seconds'] = 0.1; sys.exit(w.work(place))"
    sleeper = subprocess.Popen([sys.executable, "-c", code, str(home)], cwd=ROOT, stderr=subprocess.PIPE)
    when(lambda: calls(home), lambda: os.kill(sleeper.pid, signal.SIGSTOP)).join()
    monkeypatch.setenv("FAKE_SECONDS", "0")
    other = Worker(plan, place)
    other.queue.lease_seconds = 1.0
    assert other.work() == 0
    assert {state.state for state in other.queue.states().values()} == {"done"}
    os.kill(sleeper.pid, signal.SIGCONT)
    _, said = sleeper.communicate(timeout=120)
    assert sleeper.returncode == EXIT_FENCED and b"the lease is lost, another worker has this cell" in said
    assert len(runs_of(home)) == 4


def test_a_second_ctrl_c_kills_workers_that_do_not_leave(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.crew.PATIENCE_SECONDS", 60.0)
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(99)"
    )
    monkeypatch.setattr("sweeps.crew.command_of", lambda *_: [sys.executable, "-c", deaf])
    logs = home / "studies/fake/logs"
    twice = when(
        lambda: logs.exists() and len([log for log in logs.iterdir() if log.read_text()]) == 2,
        lambda: [signal.raise_signal(signal.SIGINT), time.sleep(1), os.kill(os.getpid(), signal.SIGINT)],
    )
    began = time.monotonic()
    outcome = launch(fake_study(seeds=(0,)), workers=2, home=home, runner=RUNNER)
    twice.join()
    assert outcome.interrupted and time.monotonic() - began < 40


def test_a_changed_study_shows_what_differs_and_goes_on_only_as_a_new_version(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = home / "mine.py"
    command = ["launch", str(file), "--workers", "1", "--home", str(home), "--runner", RUNNER]
    file.write_text(STUDY_FILE.format(seeds=(0,), languages=("en", "all")))
    assert cli.main(command) == 0
    file.write_text(STUDY_FILE.format(seeds=(0, 1), languages=("en", "T5", "all")))
    assert cli.main(command) == 0, "more levels and seeds only add cells"
    assert len(calls(home)) == 12
    file.write_text(STUDY_FILE.format(seeds=(0, 1), languages=("en", "T5")))
    capsys.readouterr()
    assert cli.main(command) == 2
    said = capsys.readouterr().err
    assert "languages: ['en', 'T5', 'all'] -> ['en', 'T5']" in said and said.count("\n") == 1
    assert "4 of its cells (4 of them finished) are no longer part of it, 0 are new" in said
    assert load_results(home / "studies/mine").table["run"].nunique() == 12, "nothing is touched"
    assert cli.main([*command, "--new-version"]) == 0
    assert len(calls(home)) == 12 and load_results(home / "studies/mine").table["run"].nunique() == 8
    assert cli.main(command) == 0, "asked once"


def test_a_trial_out_of_memory_fails_alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(config: object, folder: Path, **_: object) -> None:
        raise MemoryError("no room for a batch of one sample")

    monkeypatch.setattr("sweeps.worker.load_runner", lambda name: run)
    plan, place, queue = enqueued(home, fake_study(seeds=(0,)))
    claim = (worker := Worker(plan, place)).queue.claim()
    assert claim is not None
    worker._run_cell(claim)
    state = queue.states()[claim.cell.id]
    assert state.state == "failed" and state.error == "MemoryError: no room for a batch of one sample"
    assert queue.requeue_killed() == [], "it would run out of memory again"
