"""The cache of trained stages: trained once whoever comes, whole or absent whenever a process is killed, and what may
be removed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from lvlm.records import PLAN_FILE, STAGE_FILE, RunRecord, write_json
from lvlm.run import run
from lvlm.settings import CorpusUse, MixConfig, StageConfig
from lvlm.train import shelf
from lvlm.train.shelf import GIB, Shelf
from lvlm.train.stages import Stage
from sweeps import cache
from sweeps.cache import needed_stages, stage_uses
from sweeps.cli import main
from sweeps.plan import Place
from sweeps.planner import make_plan
from sweeps.queue import Queue
from tests.sweeps_fakes import RUNNER, fake_study, write_run
from tests.sweeps_home import enqueued
from tests.train_world import run_config, write_corpus

KEY = "0123456789ab"


def stage_at(home: Path) -> Stage:
    config = StageConfig(mix=MixConfig(corpora=(CorpusUse(path="shapes", split="train"),)))
    return Stage(name="pretrain", config=config, identity={"stage": "pretrain"}, folder=home / "stages" / KEY)


def save_model(folder: Path) -> None:
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text("whole")


def forked(work: Callable[[], object]) -> int:
    """The number of a process that does the work and ends."""
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return child


def child_of(work: Callable[[], object]) -> int:
    """The exit status of a forked process, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(forked(work), 0)[1])


def lay_stage(home: Path, key: str, *, age: float, kib: int = 1, trained: bool = True) -> None:
    """A stage as training leaves it, used `age` seconds ago."""
    folder = home / "stages" / key
    (folder / "model").mkdir(parents=True)
    (folder / "model/model.safetensors").write_bytes(b"x" * 1024 * kib)
    write_json(folder / PLAN_FILE, {"stage": "pretrain"})
    if trained:
        write_json(folder / STAGE_FILE, {"identity": {"stage": "pretrain"}})
    use = home / "stages" / f"{key}.use"
    use.touch()
    os.utime(use, (time.time() - age, time.time() - age))


def keys_in(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "stages").iterdir() if path.is_dir())


# One stage, several processes


def test_four_processes_that_want_a_stage_at_once_train_it_once(tmp_path: Path) -> None:
    gate, log = tmp_path / "gate", tmp_path / "log"

    def work() -> None:
        stage = stage_at(tmp_path)

        def train() -> dict[str, Any]:
            with open(log, "a") as file:
                file.write(f"{os.getpid()}\n")
            time.sleep(0.3)  # time for the others to come
            stage.publish_model(save_model)
            return {"spent": os.getpid()}

        accelerator = Accelerator(cpu=True)
        while not gate.exists():
            time.sleep(0.005)
        result = stage.train_once(train, accelerator, on_wait=lambda _: None)
        taken = (stage.model_folder / "model.safetensors").read_text()
        (tmp_path / f"taken-{os.getpid()}").write_text(f"{result['spent']} {taken}")

    children = [forked(work) for _ in range(4)]
    gate.touch()
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
    (trainer,) = log.read_text().split()
    assert {path.read_text() for path in tmp_path.glob("taken-*")} == {f"{trainer} whole"}
    assert len(list(tmp_path.glob("taken-*"))) == 4


def killed_while_saving(stage: Stage) -> dict[str, Any]:
    def half(folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("whole")
        os.kill(os.getpid(), signal.SIGKILL)

    stage.publish_model(half)
    raise AssertionError


def killed_before_the_result(stage: Stage) -> dict[str, Any]:
    stage.publish_model(save_model)
    (stage.folder / "model/config.json").write_text("of the one that was killed")
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


@pytest.mark.parametrize("dies", [killed_while_saving, killed_before_the_result])
def test_a_stage_whose_trainer_is_killed_while_it_publishes_is_trained_again(
    dies: Callable[[Stage], dict[str, Any]], tmp_path: Path
) -> None:
    accelerator = Accelerator(cpu=True)

    def half_train() -> None:
        stage = stage_at(tmp_path)
        stage.train_once(lambda: dies(stage), accelerator, on_wait=lambda _: None)

    assert child_of(half_train) == -signal.SIGKILL
    stage, trained = stage_at(tmp_path), []

    def train() -> dict[str, Any]:
        trained.append(1)
        stage.publish_model(save_model)
        return {"spent": 1}

    assert stage.result() is None, "half of a stage is none"
    assert stage.train_once(train, accelerator, on_wait=lambda _: None)["spent"] == 1 and trained
    assert (stage.model_folder / "config.json").read_text() == "whole"
    assert {path.name for path in stage.folder.iterdir()} == {"model", "lock", STAGE_FILE}, "nothing is left of it"


def test_a_stage_without_its_model_is_not_trained(tmp_path: Path) -> None:
    lay_stage(tmp_path, KEY, age=0)
    assert stage_at(tmp_path).result() is not None
    (tmp_path / "stages" / KEY / "model").rename(tmp_path / "elsewhere")
    assert stage_at(tmp_path).result() is None


# What goes, and how


def test_stages_used_longest_ago_go_first_and_only_as_many_as_must(tmp_path: Path) -> None:
    for key, age in (("old", 300), ("older", 400), ("new", 100)):
        lay_stage(tmp_path, key, age=age, kib=10)
    place = Shelf(tmp_path / "stages")
    whole = sum(entry.bytes for entry in place.entries())
    assert [entry.key for entry in place.entries()] == ["older", "old", "new"]
    assert [entry.key for entry in place.entries()] == ["older", "old", "new"], "looking is no use"
    asked = []
    assert place.shrink(whole, spare=lambda: asked.append(1) or ()) == [] and not asked
    assert [entry.key for entry in place.shrink(whole - 1)] == ["older"]
    lay_stage(tmp_path, "older", age=400, kib=10)
    Shelf(tmp_path / "stages").hold("older")  # taken once more
    assert [entry.key for entry in place.shrink(whole - 1)] == ["old"]
    assert [entry.key for entry in place.shrink(0, spare=lambda: ["new"])] == ["older"]


def test_a_stage_that_another_process_uses_stays(tmp_path: Path) -> None:
    lay_stage(tmp_path, KEY, age=100)
    ready, over = tmp_path / "ready", tmp_path / "over"
    child = os.fork()
    if not child:
        held = Shelf(tmp_path / "stages")
        held.hold(KEY)
        ready.touch()
        while not over.exists():
            time.sleep(0.01)
        os._exit(0)
    while not ready.exists():
        time.sleep(0.01)
    place = Shelf(tmp_path / "stages")
    assert place.shrink(0) == [] and not place.entries()[0].free and not place.remove(KEY)
    over.touch()
    os.waitpid(child, 0)
    assert [entry.key for entry in place.shrink(0)] == [KEY]


@pytest.mark.parametrize("moment", ["before the rename", "among the files"])
def test_a_process_killed_while_it_removes_leaves_a_stage_whole_or_gone(moment: str, tmp_path: Path) -> None:
    lay_stage(tmp_path, KEY, age=100)

    def die(*_: Any, **__: Any) -> None:
        if moment == "among the files":
            (gone,) = (tmp_path / "stages").glob(f".*{shelf.GONE}")
            (gone / "model/model.safetensors").unlink()
        os.kill(os.getpid(), signal.SIGKILL)

    def remove() -> None:
        with pytest.MonkeyPatch.context() as patch:
            if moment == "before the rename":
                patch.setattr(shelf.os, "replace", die)
            else:
                patch.setattr(shelf.shutil, "rmtree", die)
            Shelf(tmp_path / "stages").remove(KEY)

    assert child_of(remove) == -signal.SIGKILL
    place, whole = Shelf(tmp_path / "stages"), moment == "before the rename"
    assert (stage_at(tmp_path).result() is not None) == whole
    assert [entry.key for entry in place.entries()] == ([KEY] if whole else [])
    assert [entry.key for entry in place.shrink(0)] == ([KEY] if whole else [])
    assert keys_in(tmp_path) == [], "the next one finishes what was begun"


def test_a_budget_for_stages_is_kept_and_a_cell_that_needs_one_trains_it_again(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    corpus, home = write_corpus(tmp_path / "noise"), tmp_path / "home"
    short = {"pretrain__steps": 1, "instruct__steps": 1}

    def run_it(folder: str, **changes: Any) -> RunRecord:
        config = run_config(corpus, **short, **changes)
        return run(config, home / folder, home=home, spare_stages=lambda: spared)

    spared: set[str] = set()
    first = run_it("first")
    sizes = Shelf(home / "stages").entries()
    tight = {"device": "cpu", "threads": 1, "stage_cache_gib": 1.01 * sum(entry.bytes for entry in sizes) / GIB}
    second = run_it("second", seed=1, compute=tight)
    assert set(keys_in(home)) == set(second.stage_keys.values()), "those of the first gave way, one by one"
    assert RunRecord.load(home / "first").scores == first.scores and (home / "first/scores.parquet").exists()
    assert run_it("first").provenance["stages_trained_here"] == ["pretrain", "instruct"], "finished: nothing is trained"
    assert set(keys_in(home)) == set(second.stage_keys.values())

    spared = set(second.stage_keys.values())
    again = run_it("again", compute=tight)
    assert again.provenance["stages_trained_here"] == ["pretrain", "instruct"]
    assert again.stage_keys == first.stage_keys and again.scores == first.scores
    assert spared < set(keys_in(home)), "a limit is exceeded rather than a stage lost that a waiting cell needs"


# What a study needs


def planned(home: Path) -> tuple[Place, Any, Queue]:
    """Eight cells; one for two tiles and seed 0 is done. `shared` is the stage that another cell shares with it."""
    _, place, queue = enqueued(home, fake_study())
    for key, age in (("shared", 400), ("finished", 300), ("unknown", 200)):
        lay_stage(home, key, age=age, trained=key != "unknown")
    claim = queue.claim()
    assert claim is not None
    write_run(claim.cell.run_config(), place.cell(claim.cell.id))
    write_json(place.cell(claim.cell.id) / "stages.json", {"pretrain": "shared", "instruct": "finished"})
    queue.complete(claim, 1.0)
    return place, claim.cell, queue


def test_a_stage_is_needed_as_long_as_a_cell_that_shares_it_waits(tmp_path: Path) -> None:
    place, done, queue = planned(tmp_path)
    assert str(stage_uses(tmp_path)["shared"]) == "fake: 2 cells (1 waiting)"
    assert str(stage_uses(tmp_path)["finished"]) == "fake: 1 cell"
    assert needed_stages(tmp_path) == {"shared"} and needed_stages(tmp_path, waiting=False) == set()
    claim = queue.claim(
        lambda cells: sorted(
            cells, key=lambda cell: (cell.seed, cell.levels["tiles"]) != (done.seed, done.levels["tiles"])
        )
    )
    assert claim is not None
    assert needed_stages(tmp_path, waiting=False) == {"shared"}, "a running cell needs it, whatever is forced"
    write_run(claim.cell.run_config(), place.cell(claim.cell.id))
    queue.complete(claim, 1.0)
    assert needed_stages(tmp_path) == set(), "nobody waits for it any more"


def test_a_run_that_starts_from_the_model_of_a_stage_needs_it(tmp_path: Path) -> None:
    planned(tmp_path)
    plan = make_plan(
        fake_study(name="later"), runner=RUNNER, overrides=[f"model.checkpoint={tmp_path}/stages/unknown/model"]
    )
    plan.save(plan.place(tmp_path))
    assert needed_stages(tmp_path) == {"shared", "unknown"}


def test_a_storage_that_does_not_answer_protects_what_its_cells_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planned(tmp_path)

    def silent(*_: Any) -> None:
        raise ConnectionError

    monkeypatch.setattr(cache, "Queue", silent)
    assert needed_stages(tmp_path) == {"shared"} and "does not answer" in capsys.readouterr().err


def test_the_command_lists_and_prunes_and_spares_what_waiting_cells_need(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planned(tmp_path)
    lay_stage(tmp_path, "newest", age=0, kib=30)
    home = ["--home", str(tmp_path)]
    assert main(["cache", *home]) == 0
    shown = [line for line in capsys.readouterr().out.splitlines() if line]
    assert [line.split()[0] for line in shown] == [
        "stages", "features", "data/remembered", "key", "shared", "finished", "unknown", "newest"
    ]  # fmt: skip
    assert "half-trained" in shown[6] and "fake: 2 cells (1 waiting)" in shown[4] and "pretrain" in shown[4]
    assert main(["cache", "--keep", str(31.5 / 2**20), *home]) == 0
    assert keys_in(tmp_path) == ["newest", "shared"]
    assert "2 stages removed" in capsys.readouterr().out
    assert main(["cache", "--keep", "0", *home]) == 1 and keys_in(tmp_path) == ["shared"]
    assert "cells that run or wait need them" in capsys.readouterr().out
    assert main(["cache", "--prune", "--force", *home]) == 0 and keys_in(tmp_path) == []
    assert main(["cache", "--force", *home]) == 2 and "--force belongs to" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["cache", "--keep", "-1", *home])
    assert "0 or more" in capsys.readouterr().err


def test_reports_need_records_and_no_stage(tmp_path: Path) -> None:
    from ablations.table import load_results
    from sweeps.plan import Plan
    from sweeps.read import export

    place, *_ = planned(tmp_path)
    assert main(["cache", "--prune", "--force", "--home", str(tmp_path)]) == 0
    export(place, Plan.load(place), study=fake_study())
    assert load_results(place.folder).table["run"].nunique() == 1


def test_the_record_in_a_run_folder_will_do_where_it_lists_no_stages(tmp_path: Path) -> None:
    """As runs of before have it."""
    plan = make_plan(fake_study(), runner=RUNNER)
    place = plan.place(tmp_path)
    plan.save(place)
    write_run(plan.cells[0].run_config(), place.cell(plan.cells[0].id))
    kept = json.loads((place.cell(plan.cells[0].id) / "record.json").read_text())["stage_keys"]
    assert str(stage_uses(tmp_path)[kept["pretrain"]]) == "fake: 2 cells (1 waiting)"
