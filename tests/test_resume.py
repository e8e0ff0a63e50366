"""Killed at any moment and started again, a run ends exactly as one that was never killed; another configuration is
refused."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lvlm.config import RunConfig, to_yaml
from lvlm.errors import InputError
from lvlm.records import CONFIG_FILE, RECORD_FILE, write_text
from lvlm.run import run
from lvlm.settings import ComputeConfig
from lvlm.train import features, loop, resume, stages, strategies
from lvlm.train.batches import BatchStream
from lvlm.train.compute import compute
from lvlm.train.identity import check_same_config
from lvlm.train.loop import StageLoop
from lvlm.train.stages import Stage
from tests.tiny import tiny_world
from tests.train_world import run_config, write_corpus

TIMES = ("seconds", "tokens_per_second")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    tiny_world()  # before a child is forked, which would make one of its own
    return write_corpus(tmp_path_factory.mktemp("resume") / "noise")


def config_of(corpus: Path, **compute: Any) -> RunConfig:
    """Both stages with dropout and validations, a checkpoint after every step, several micro-batches a step."""
    settings = {
        "device": "cpu",
        "threads": 1,
        "micro_batch_tokens": 300,
        "checkpoint_every": 1e-6,
        "feature_cache": "off",
        **compute,
    }
    return run_config(corpus, instruct__validate_every=4, compute=settings)


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Note the ids of every step and keep the last checkpoint of each stage, in `folder`."""
    step, save = BatchStream.step, loop.save_checkpoint
    folder.mkdir(parents=True, exist_ok=True)

    def noted(self: BatchStream, number: int) -> Any:
        ids = [(entry.id, entry.language) for entry in self.batches.plan.step_entries(number)]
        with open(folder / "ids.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps([self.batches.plan.stage, number, ids]) + "\n")
        return step(self, number)

    def kept(where: Path, state: Any, **values: Any) -> None:
        save(where, state, **values)
        shutil.copy(where / "checkpoint.pt", folder / f"{values['identity']['stage']}.pt")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BatchStream, "step", noted)
        patch.setattr(loop, "save_checkpoint", kept)
        yield


@pytest.fixture(scope="module")
def unkilled(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unkilled")
    with watched(folder):
        run(config_of(corpus), folder / "run", home=folder / "home")
    return folder


def killed(work: Callable[[], Any], patch_to_kill: Kill) -> None:
    """Do `work` in a child process that a SIGKILL ends."""
    child = os.fork()
    if not child:
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch_to_kill(patch)
                work()
        finally:
            os._exit(1)  # reached only if nothing killed it
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def at_call(original: Callable[..., Any], number: int) -> Callable[..., Any]:
    """`original`, whose `number`-th call (from 0) is a SIGKILL."""
    calls = 0

    def counting(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > number:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    return counting


def curve_of(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "run" / "curve.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def weights_of(folder: Path) -> dict[str, bytes]:
    (model,) = [path for path in folder.glob("home/stages/*/model") if (path / "lora").exists()]
    return {str(path.relative_to(model)): path.read_bytes() for path in sorted(model.rglob("*.safetensors"))}


def ids_of(folder: Path) -> dict[tuple[str, int], Any]:
    path = folder / "ids.jsonl"
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines() if path.exists() else [])
    return {(stage, step): ids for stage, step, ids in rows}


def assert_same_end(folder: Path, unkilled: Path) -> None:
    assert curve_of(folder) == curve_of(unkilled)
    assert weights_of(folder) == weights_of(unkilled)
    assert (folder / "run" / "predictions.parquet").read_bytes() == (
        unkilled / "run" / "predictions.parquet"
    ).read_bytes()
    for stage in ("pretrain", "instruct"):
        found, expected = (torch.load(place / f"{stage}.pt", weights_only=True) for place in (folder, unkilled))
        assert found["optimizer"]["param_groups"] == expected["optimizer"]["param_groups"]
        for index, state in expected["optimizer"]["state"].items():
            for name, value in state.items():
                assert torch.equal(found["optimizer"]["state"][index][name], value), (
                    f"{stage}: {name} of parameter {index}"
                )
        counts = {
            key: value for key, value in expected["position"].items() if "seconds" not in key and key != "curve_bytes"
        }
        assert counts.items() <= found["position"].items()


Kill = Callable[[pytest.MonkeyPatch], None]


def kill_at(place: Any, name: str, call: int) -> Kill:
    """Die in the `call`-th call (from 0) of a function."""
    return lambda patch: patch.setattr(place, name, at_call(getattr(place, name), call))


KILLS: dict[str, Kill] = {
    "inside a step, between micro-batches": kill_at(strategies.StepLoss, "forward", 16),
    "between backward and update": kill_at(strategies, "sum_over_processes", 7),
    "while a checkpoint is written": kill_at(resume.os, "replace", 6),
    "in a validation": kill_at(StageLoop, "_validation", 0),
    "while the model is saved": kill_at(Stage, "publish_model", 1),
    "after the model, before the stage is marked": kill_at(stages, "write_json", 3),
}


@pytest.mark.parametrize("moment", KILLS)
def test_killed_and_started_again_ends_bit_identical(corpus: Path, unkilled: Path, tmp_path: Path, moment: str) -> None:
    with watched(tmp_path):
        killed(lambda: run(config_of(corpus), tmp_path / "run", home=tmp_path / "home"), KILLS[moment])
        assert not (tmp_path / "run" / "record.json").exists()
        (tmp_path / "ids.jsonl").rename(tmp_path / "ids-before.jsonl")
        record = run(config_of(corpus), tmp_path / "run", home=tmp_path / "home")
    assert_same_end(tmp_path, unkilled)
    after, expected = ids_of(tmp_path), ids_of(unkilled)
    assert all(expected[place] == ids for place, ids in after.items())
    assert len(after) < len(expected), "it began again instead of going on"
    assert record.budget["samples"] == 4 * 4 + 6 * 8


def test_killed_with_loader_processes_and_no_checkpoint_yet(corpus: Path, unkilled: Path, tmp_path: Path) -> None:
    config = config_of(corpus, loader_workers=2, checkpoint_every=1000)
    with watched(tmp_path):
        killed(
            lambda: run(config, tmp_path / "run", home=tmp_path / "home"),
            kill_at(strategies, "sum_over_processes", 6),
        )
        run(config, tmp_path / "run", home=tmp_path / "home")
    assert_same_end(tmp_path, unkilled)


def test_a_disk_that_is_full_while_a_checkpoint_is_written_leaves_the_one_before(
    corpus: Path, unkilled: Path, tmp_path: Path
) -> None:
    save, count = torch.save, 0

    def full(content: Any, file: Any) -> None:
        nonlocal count
        count += 1
        if count < 7:
            return save(content, file)
        file.write(b"half of a checkpoint")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with watched(tmp_path):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="No space left"):
            patch.setattr(torch, "save", full)
            run(config_of(corpus), tmp_path / "run", home=tmp_path / "home")
        (tmp_path / "ids.jsonl").rename(tmp_path / "ids-before.jsonl")
        run(config_of(corpus), tmp_path / "run", home=tmp_path / "home")
    assert_same_end(tmp_path, unkilled)
    assert 0 < len(ids_of(tmp_path)) < len(ids_of(unkilled)) - 4, "it began again instead of going on"


def test_stopped_by_its_listener_a_run_repeats_no_step(corpus: Path, unkilled: Path, tmp_path: Path) -> None:
    config = config_of(corpus, checkpoint_every=1000)

    def stop_at(stage: str, step: int) -> Callable[[dict[str, Any]], None]:
        def listen(event: dict[str, Any]) -> None:
            if event["kind"] == "step" and (event["stage"], event["step"]) == (stage, step):
                raise KeyboardInterrupt

        return listen

    with watched(tmp_path):
        for stage, step in (("pretrain", 1), ("pretrain", 3), ("instruct", 4)):  # a validation follows the last
            with pytest.raises(KeyboardInterrupt):
                run(config, tmp_path / "run", home=tmp_path / "home", on_progress=stop_at(stage, step))
        run(config, tmp_path / "run", home=tmp_path / "home")
    assert_same_end(tmp_path, unkilled)
    assert (tmp_path / "ids.jsonl").read_text() == (unkilled / "ids.jsonl").read_text()


def test_kept_features_and_other_memory_settings_end_alike(corpus: Path, unkilled: Path, tmp_path: Path) -> None:
    with watched(tmp_path):
        run(config_of(corpus, feature_cache="on"), tmp_path / "run", home=tmp_path / "home")
    assert_same_end(tmp_path, unkilled)


def test_killed_while_features_are_being_kept(
    corpus: Path, unkilled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "FIRST_AHEAD", 1)
    config = config_of(corpus, feature_cache="on")
    for part in (1, 2):  # the second kill meets what the first one left
        killed(lambda: run(config, tmp_path / "run", home=tmp_path / "home"), kill_at(features, "write_json", part))
    with watched(tmp_path):
        run(config, tmp_path / "run", home=tmp_path / "home")
    assert_same_end(tmp_path, unkilled)


def test_validation_does_not_touch_the_training(corpus: Path, unkilled: Path, tmp_path: Path) -> None:
    config = config_of(corpus).model_dump(mode="json")
    config["instruct"]["validate_every"] = None
    run(RunConfig.model_validate(config), tmp_path / "run", home=tmp_path / "home")
    assert weights_of(tmp_path) == weights_of(unkilled)
    assert curve_of(tmp_path) == [row for row in curve_of(unkilled) if "loss" in row]


def test_another_configuration_is_refused_with_a_diff(corpus: Path, tmp_path: Path) -> None:
    killed(
        lambda: run(config_of(corpus), tmp_path / "run", home=tmp_path / "home"),
        kill_at(strategies, "sum_over_processes", 2),
    )
    other = config_of(corpus).model_dump(mode="json")
    other["instruct"]["optim"]["lr"] = 5e-4
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"instruct\.optim\.lr: 0\.001 -> 0\.0005"):
        run(RunConfig.model_validate(other), tmp_path / "run", home=tmp_path / "home")
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"micro_batch_tokens: 300 -> 2000: lora\.dropout is above 0 in instruct"):
        run(config_of(corpus, micro_batch_tokens=2000), tmp_path / "run", home=tmp_path / "home")
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    record = run(config_of(corpus, evaluate_batch=3), tmp_path / "run", home=tmp_path / "home")
    assert "resumed with compute.evaluate_batch: 64 -> 3" in record.notes


def test_other_micro_batches_are_refused_only_where_dropout_would_go_on(corpus: Path, tmp_path: Path) -> None:
    def config(dropout: float, tokens: int) -> RunConfig:
        return run_config(corpus, instruct__lora={"r": 4, "dropout": dropout}, compute={"micro_batch_tokens": tokens})

    noted = ["resumed with compute.micro_batch_tokens: 300 -> 2000"]
    for name, dropout in (("with", 0.1), ("without", 0.0)):
        write_text(tmp_path / name / CONFIG_FILE, to_yaml(config(dropout, 300)))
    assert check_same_config(tmp_path / "without", config(0.0, 2000)) == noted
    assert check_same_config(tmp_path / "with", config(0.1, 300)) == []
    with pytest.raises(InputError, match=r"lora\.dropout is above 0 in instruct"):
        check_same_config(tmp_path / "with", config(0.1, 2000))
    (tmp_path / "with" / RECORD_FILE).write_text("{}")  # finished: nothing goes on
    assert check_same_config(tmp_path / "with", config(0.1, 2000)) == noted


def test_checkpoints_take_a_small_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(resume, "time", SimpleNamespace(monotonic=lambda: now))

    def intervals(seconds: float | None, cost: float, *, sooner: bool = False) -> list[float]:
        """Between three checkpoints that cost so much, looked for at every second."""
        nonlocal now
        timer, found = resume.CheckpointTimer(seconds), []
        while len(found) < 3:
            last = now
            while not timer.due(sooner=sooner):
                now += 1
            found.append(now - last)
            with timer.saving():
                now += cost
        return found

    assert intervals(None, 0.5) == [60, 60, 60]
    first, *later = intervals(None, 90.0)
    assert first == 60 and all(90 / interval == pytest.approx(resume.SHARE_OF_TIME) for interval in later)
    assert intervals(10.0, 90.0) == [10, 10, 10]
    assert intervals(None, 0.25, sooner=True) == [0, 9, 9]
    assert intervals(1000.0, 90.0, sooner=True) == [0, 0, 0]


def test_the_randomness_of_a_step_is_that_of_its_place_and_process_alone() -> None:
    def drawn(*place: Any) -> tuple[float, float, float]:
        resume.seed_step(*place)
        return random.random(), float(np.random.random()), float(torch.rand(()))

    first = drawn(0, "instruct", 3, 0)
    others = [(1, "instruct", 3, 0), (0, "pretrain", 3, 0), (0, "instruct", 4, 0), (0, "instruct", 3, 1)]
    assert all(not set(first) & set(drawn(*place)) for place in others)
    assert drawn(0, "instruct", 3, 0) == first


def test_a_checkpoint_of_other_parameters_is_refused(tmp_path: Path) -> None:
    def copies(frozen: str) -> Any:
        """The strategy over a tiny model whose adapter learns but for one tensor."""
        model, _ = tiny_world().assemble()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("multi_modal_projector" in name and not name.endswith(frozen))
        stage = config_of(Path("nowhere")).instruct
        assert stage is not None
        with compute(ComputeConfig(device="cpu")) as machinery:
            return strategies.share_work(model, stage, machinery)

    one, other = copies("linear_1.bias"), copies("linear_2.bias")
    resume.save_checkpoint(tmp_path, one.state(), position={"step": 1}, identity={"seed": 0})
    with pytest.raises(InputError, match="seed: 0 -> 1"):
        resume.load_checkpoint(tmp_path, one, identity={"seed": 1})
    with pytest.raises(InputError, match=r"linear_1\.bias, .*linear_2\.bias"):
        resume.load_checkpoint(tmp_path, other, identity={"seed": 0})
    assert resume.load_checkpoint(tmp_path, one, identity={"seed": 0}) == {"step": 1}
