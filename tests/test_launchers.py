"""The ways to start a run of several processes: our own launcher, and those of torch, accelerate and DeepSpeed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from lvlm.cli import main
from lvlm.config import to_yaml
from lvlm.processes import STARTS_AGAIN, start
from tests.processes import free_port
from tests.test_processes import config_of
from tests.train_world import write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("launchers") / "noise")


def test_the_command_starts_its_processes_and_ends_as_they_do(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(to_yaml(config_of(corpus, "ddp")), encoding="utf-8")

    def command(*changes: str) -> subprocess.CompletedProcess[str]:
        words = ["train", tmp_path / "run.yaml", "--processes", "2", "--home", tmp_path / "home", *changes]
        return subprocess.run(
            [sys.executable, "-m", "lvlm", *map(str, words)], capture_output=True, text=True, timeout=300
        )

    done = command()
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("score/en") == 1, "one process speaks"
    (record,) = (tmp_path / "home" / "runs").glob("*/record.json")
    assert json.loads(record.read_text())["provenance"]["processes"] == 2
    failed = command("model.llm=/nowhere/llm")
    assert failed.returncode == 2 and failed.stderr.count("error: The language model '/nowhere/llm'") == 1
    assert "Traceback" not in failed.stderr


LAUNCHERS = {
    "torchrun": ("torchrun --standalone --nproc-per-node 2 -m", "ddp"),
    "accelerate": ("accelerate launch --use_deepspeed --zero_stage 2 --num_processes 2 --num_machines 1 -m", "zero2"),
    "deepspeed": ("deepspeed --num_accelerators 2 --master_port {port} --module", "ddp"),
}
"""Launcher -> its command line in front of `lvlm`, and the strategy that runs with `compute.strategy=auto`."""


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_launcher_starts_processes_that_find_each_other(corpus: Path, tmp_path: Path, launcher: str) -> None:
    line, strategy = LAUNCHERS[launcher]
    config = config_of(corpus, "auto", {"pretrain__steps": 2, "evaluate": {}}).model_copy(update={"instruct": None})
    (tmp_path / "run.yaml").write_text(to_yaml(config), encoding="utf-8")
    words = [
        *line.format(port=free_port()).split(),
        "lvlm",
        "train",
        tmp_path / "run.yaml",
        "--home",
        tmp_path / "home",
    ]
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": programs, "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    (record,) = (tmp_path / "home" / "runs").glob("*/record.json")
    provenance = json.loads(record.read_text())["provenance"]
    assert (provenance["processes"], provenance["strategy"]) == (2, strategy)
    assert done.stderr.count(f"tiny: on cpu in fp32, threads: 1, 2 processes, {strategy}\n") == 1


def test_another_number_of_processes_than_the_launcher_started_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", "tiny", "--processes", "4"]) == 2
    assert "--processes 4, but a launcher has started 2." in capsys.readouterr().err


def test_the_launcher_starts_again_those_that_ask_for_it_whoever_ended_first(monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[dict[int, int]] = [{0: 1, 1: STARTS_AGAIN}, {0: STARTS_AGAIN}, {1: 2}]

    def launch(*_: Any) -> Any:
        exits = ends.pop(0)
        raise ChildFailedError("lvlm", {rank: ProcessFailure(rank, rank, code, "") for rank, code in exits.items()})

    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", lambda *_: launch)
    assert start(2, ["train", "tiny"]) == 2 and not ends


def test_the_launcher_ends_on_ctrl_c_as_one_process_does(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = {"by": signal.SIGINT}

    def launch(*_: Any) -> Any:
        raise SignalException("stopped", sigval=ended["by"])

    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", launch)
    with pytest.raises(KeyboardInterrupt):
        start(2, ["train", "tiny"])
    ended["by"] = signal.SIGTERM
    assert start(2, ["train", "tiny"]) == 128 + signal.SIGTERM
