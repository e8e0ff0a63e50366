"""The queue over every storage: planned once, claimed by one, given back when lost; and the file after a torn write."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

import sweeps.queue
from ablations.designs import SpaceFilling
from ablations.factors import Factor
from lvlm.errors import InputError
from sweeps.identity import is_alive, owner
from sweeps.plan import Plan
from sweeps.planner import make_plan
from sweeps.queue import Queue, count
from sweeps.storage import Storage, Trials, choose_storage
from tests.sweeps_fakes import MIX, RUNNER, fake_study
from tests.sweeps_storages import KINDS, file_storage, storage_url


@pytest.fixture(params=KINDS)
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    with storage_url(request.param, tmp_path) as url:
        yield choose_storage(tmp_path, "fake", url)


def planned(**options: object) -> Plan:
    return make_plan(fake_study(**options), runner=RUNNER)  # type: ignore[arg-type]


def test_planning_twice_adds_nothing_and_a_larger_study_only_what_is_missing(storage: Storage) -> None:
    small, large = planned(seeds=(0,)), planned(seeds=(0, 1, 2))
    assert Queue(small, storage).add_missing() == 4
    assert Queue(small, storage).add_missing() == 0
    assert Queue(large, storage).add_missing() == 8
    trials = Trials(storage).trials()
    assert len(trials) == len({trial.user_attrs["cell_id"] for trial in trials}) == 12


def test_a_new_level_adds_only_the_missing_cells_and_every_seed_is_whole_before_the_next(tmp_path: Path) -> None:
    two, three = planned(), planned(languages=("en", "T5", "all"))
    assert {cell.id for cell in two.cells} < {cell.id for cell in three.cells}
    journal = file_storage(tmp_path)
    assert Queue(two, journal).add_missing() == 8
    assert Queue(three, journal).add_missing() == 4
    assert Queue(three, journal).add_missing() == Queue(two, journal).add_missing() == 0
    queue = Queue(planned(seeds=(0, 1, 2)), file_storage(tmp_path / "other"))
    queue.add_missing()
    seeds = [claim.cell.seed for _ in range(12) if (claim := queue.claim())]
    assert seeds == [0] * 4 + [1] * 4 + [2] * 4


def test_a_factor_with_a_range_is_a_number_of_its_trial_where_it_applies(tmp_path: Path) -> None:
    share = Factor(
        name="share", path="instruct.mix.english_share", range=(0.01, 0.99), requires={"languages": ("all",)}
    )
    declared = replace(
        fake_study(),
        factors=(*fake_study().factors, share, Factor(name="rank", path="instruct.lora.r", range=(1, 8), log=True)),
        baseline={"languages": "all", "tiles": 1, "share": 0.5, "rank": 4},
        design=SpaceFilling(points=8),
        base={**fake_study().base, "instruct": {"mix": MIX, "train": {"llm": "lora"}}},
    )
    plan = make_plan(declared, runner=RUNNER)
    plan.save(plan.place(tmp_path))
    assert Plan.load(plan.place(tmp_path)) == plan and plan.ranges == {
        "share": [0.01, 0.99, False],
        "rank": [1, 8, True],
    }
    queue = Queue(plan, file_storage(tmp_path))
    assert queue.add_missing() == len(plan.cells) and queue.add_missing() == 0
    trials = Trials(file_storage(tmp_path)).trials()
    for trial in trials:
        assert ("share" in trial.params) == (trial.params["languages"] == "all")
        assert isinstance(trial.params["rank"], int) and 1 <= trial.params["rank"] <= 8
    assert isinstance(trials[0].distributions["share"], optuna.distributions.FloatDistribution)
    assert {cell.levels["share"] for cell in plan.cells} - {None} == {
        trial.params["share"] for trial in trials if "share" in trial.params
    }


def test_cells_are_ordinary_optuna_trials_with_the_factors_as_parameters(tmp_path: Path) -> None:
    Queue(planned(), file_storage(tmp_path)).add_missing()
    backend = optuna.storages.journal.JournalFileBackend(
        str(tmp_path / "journal.log"),
        lock_obj=optuna.storages.journal.JournalFileOpenLock(str(tmp_path / "journal.log")),
    )
    study = optuna.load_study(study_name="fake", storage=optuna.storages.JournalStorage(backend))
    assert {trial.state for trial in study.trials} == {TrialState.WAITING}
    assert {tuple(trial.params.items()) for trial in study.trials} == {
        (("languages", group), ("tiles", tiles), ("seed", seed))
        for group in ("en", "all")
        for tiles in (1, 2)
        for seed in (0, 1)
    }


def test_every_cell_is_claimed_once_whoever_asks(storage: Storage) -> None:
    plan = planned()
    queues = [Queue(plan, storage) for _ in range(3)]
    queues[0].add_missing()
    claimed = []
    for turn in range(20):
        if claim := queues[turn % 3].claim():
            claimed.append(claim.cell.id)
    assert sorted(claimed) == sorted(cell.id for cell in plan.cells)


def test_a_stale_view_cannot_claim_what_another_process_has(storage: Storage) -> None:
    first, second = Trials(storage), Trials(storage)
    Queue(planned(), storage).add_missing()
    handles = [first.handle(first.trials()[0]), second.handle(second.trials()[0])]
    assert first.claim(handles[0]) and not second.claim(handles[1])


def test_a_cell_comes_back_after_the_lease_and_its_old_worker_is_fenced(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = Queue(planned(), storage, lease_seconds=0.3)
    queue.add_missing()
    monkeypatch.setattr(sweeps.queue, "owner", lambda: {**owner(), "machine": "elsewhere"})  # cannot be seen from here
    lost = queue.claim()
    assert lost is not None and queue.beat(lost) and queue.reap() == []
    time.sleep(0.4)
    again = queue.claim()
    assert again is not None and again.cell.id == lost.cell.id and again.attempt == 2
    assert not queue.beat(lost) and not queue.complete(lost, 1.0)
    assert queue.beat(again) and queue.complete(again, 1.0)
    assert queue.states()[lost.cell.id].state == "done"


def test_a_dead_worker_on_this_machine_is_noticed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    who = owner(process.pid)
    queue = Queue(planned(), file_storage(tmp_path))
    queue.add_missing()
    monkeypatch.setattr(sweeps.queue, "owner", lambda: who)
    claim = queue.claim()
    assert claim is not None and is_alive(who) and queue.states()[claim.cell.id].state == "running"
    process.kill()
    process.wait()
    assert is_alive(who) is False
    assert queue.states()[claim.cell.id].state == "waiting"
    again = queue.claim()
    assert again is not None and (again.cell.id, again.attempt) == (claim.cell.id, 2)


def test_a_reused_process_number_is_not_taken_for_the_worker() -> None:
    assert is_alive(owner())
    assert is_alive({**owner(), "ticks": 1, "born": owner()["born"] - 100}) is False
    assert is_alive({**owner(), "machine": "elsewhere"}) is None


def test_a_step_of_the_clock_kills_no_worker_and_what_older_versions_wrote_can_be_read() -> None:
    before = {name: value for name, value in owner().items() if name != "ticks"}
    assert is_alive(before) and is_alive({**before, "born": before["born"] - 100}) is False
    if "ticks" in owner():
        assert is_alive({**owner(), "born": owner()["born"] - 100})


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="start ticks are in the /proc of Linux alone")
def test_a_command_name_with_spaces_and_brackets_hides_no_start(tmp_path: Path) -> None:
    program = tmp_path / "a ) b (c"
    program.symlink_to("/bin/sleep")
    process = subprocess.Popen([program, "60"])
    try:
        assert is_alive(owner(process.pid)) and owner(process.pid)["ticks"] >= owner()["ticks"]
    finally:
        process.kill()
        process.wait()


def test_errors_stay_failed_until_asked_for_and_kills_come_back(storage: Storage) -> None:
    queue = Queue(planned(), storage)
    queue.add_missing()
    failed, given_back = queue.claim(), queue.claim()
    assert failed and given_back
    assert queue.fail(failed, "ValueError: bad", "Traceback ...") and queue.release(given_back)
    assert queue.requeue_killed() == [given_back.cell.id]
    state = queue.states()[failed.cell.id]
    assert (state.state, state.error) == ("failed", "ValueError: bad")
    assert Queue(planned(), storage).add_missing() == 0
    assert queue.requeue_failed() == [failed.cell.id]
    assert count(queue.states().values())["waiting"] == 8


def test_a_cell_that_is_killed_again_and_again_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = {**owner(), "born": 0.0, "ticks": 0}
    monkeypatch.setattr(sweeps.queue, "owner", lambda: dead)
    queue = Queue(planned(seeds=(0,)), file_storage(tmp_path))
    queue.add_missing()
    monkeypatch.setattr(sweeps.queue, "MAX_ATTEMPTS", 3)
    claims = [queue.claim() for _ in range(14)]
    assert sum(claim is not None for claim in claims) == 4 * 3
    queue.reap()
    assert {state.state for state in queue.states().values()} == {"failed"}


def test_two_processes_that_requeue_the_same_cell_give_one_attempt(storage: Storage) -> None:
    queue = Queue(planned(seeds=(0,)), storage)
    queue.add_missing()
    claim = queue.claim()
    assert claim is not None
    queue.release(claim)
    (released,) = [trial for trial in Trials(storage).trials() if trial.user_attrs["cell_id"] == claim.cell.id]
    assert queue.requeue_killed() == [claim.cell.id]
    claimed = [found.cell.id for _ in range(2) if (found := queue.claim())]
    queue._add([claim.cell], before=[released])  # by a process that had looked before the first one wrote
    claimed += [found.cell.id for _ in range(9) if (found := queue.claim())]
    assert sorted(claimed) == sorted(cell.id for cell in queue.plan.cells)


@pytest.mark.parametrize("open_before", [False, True], ids=["opened after", "open while it tears"])
def test_a_torn_last_line_costs_nothing(tmp_path: Path, open_before: bool) -> None:
    path, plan, storage = tmp_path / "journal.log", planned(), file_storage(tmp_path)
    queue = Queue(plan, storage)
    queue.add_missing()
    with open(path, "ab") as file:
        file.write(b'{"op_code":6,"worker_id":"x","trial_')
    queue = queue if open_before else Queue(plan, storage)
    claim = queue.claim()
    assert claim is not None and queue.complete(claim, 1.0)
    assert count(Queue(plan, storage).states().values()) == {
        "waiting": 7,
        "running": 0,
        "done": 1,
        "failed": 0,
        "pruned": 0,
    }
    assert all(json.loads(line) for line in path.read_text().splitlines())
    assert len(list(tmp_path.glob("journal.log.torn-*"))) == 1


def test_a_journal_damaged_in_the_middle_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    Queue(planned(), file_storage(tmp_path)).add_missing()
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], "{broken", *lines[3:]]) + "\n")
    with pytest.raises(InputError, match=r"journal\.log is damaged"):
        Queue(planned(), file_storage(tmp_path)).states()


def test_the_lock_of_a_killed_process_is_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.journal.STALE_LOCK_SECONDS", 3)
    monkeypatch.chdir(tmp_path)
    os.makedirs("sub")
    Path("sub/journal.log.lock").touch()
    started = time.monotonic()
    assert Queue(planned(seeds=(0,)), file_storage(Path("sub"))).add_missing() == 4
    assert time.monotonic() - started < 12


def test_three_failures_in_a_row_are_counted_since_the_launch_only(storage: Storage) -> None:
    queue = Queue(planned(), storage)
    queue.add_missing()
    began = time.time()
    order = []
    for outcome in ("fail", "fail", "done", "fail", "diverged", "fail", "fail"):
        claim = queue.claim()
        assert claim is not None
        order.append(claim.cell.id)
        if outcome == "done":
            queue.complete(claim, 1.0)
        else:
            queue.fail(claim, "ValueError: bad", "", diverged=outcome == "diverged")
        time.sleep(0.002)
    assert queue.failures_in_a_row(began) == [order[3], *order[5:]], "an arm that diverged says nothing about others"
    assert queue.states()[order[4]].state == "failed"
    assert queue.failures_in_a_row(time.time()) == []
