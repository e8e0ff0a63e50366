"""Data read by a process of their own while torch is imported: the same data, the same faults, and never a hang."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lvlm import startup
from lvlm.check import check_evaluation, open_corpora
from lvlm.data.images import VERIFIED_FILE, ImageFolder, content_digest
from lvlm.data.plan import build_plan
from lvlm.errors import InputError
from lvlm.run import run
from lvlm.startup import DataAhead, no_collection
from lvlm.train.locks import file_lock, lock_alone
from tests.train_world import run_config, write_corpus


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    torch.set_num_threads(1)
    return write_corpus(tmp_path / "noise")


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process without torch."""
    monkeypatch.setattr(startup, "_may_fork", lambda: True)


def refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("read again")


@pytest.mark.usefixtures("forks")
def test_what_was_read_ahead_is_what_would_be_read_here(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, home = run_config(corpus), tmp_path / "home"
    here = open_corpora(config)
    plans = [build_plan(name, stage, seed=0, corpora=here).hash for name, stage in config.stages().items()]
    images = check_evaluation(config, here, home=home)
    found = DataAhead(config, home).result()
    monkeypatch.setattr("lvlm.data.corpus.read_rows", refuse)
    monkeypatch.setattr("lvlm.data.images._check", refuse)
    assert found is not None and found.evaluation_images == images
    for (name, stage), plan in zip(config.stages().items(), plans, strict=True):
        assert build_plan(name, stage, seed=0, corpora=found.corpora, home=home).hash == plan
    assert check_evaluation(config, found.corpora, home=home) == images


def test_a_run_on_data_read_ahead_ends_in_the_same_numbers(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(corpus, pretrain__steps=2, instruct__steps=2)
    plain = run(config, tmp_path / "plain", home=tmp_path / "plain-home")
    monkeypatch.setattr(startup, "_may_fork", lambda: True)
    monkeypatch.setattr("lvlm.run.open_corpora", refuse)
    ahead = run(config, tmp_path / "ahead", home=tmp_path / "ahead-home")
    assert (ahead.stage_keys, ahead.plan_hash, ahead.scores) == (plain.stage_keys, plain.plan_hash, plain.scores)
    tables = [(tmp_path / name / "predictions.parquet").read_bytes() for name in ("plain", "ahead")]
    assert tables[0] == tables[1]


@pytest.mark.usefixtures("forks")
def test_a_fault_is_the_error_that_reading_here_would_raise(corpus: Path, tmp_path: Path) -> None:
    config = run_config(corpus)
    (corpus / "images" / "0.png").write_bytes(b"cut short")
    with pytest.raises(InputError) as here:
        check_evaluation(config, open_corpora(config), home=tmp_path)
    config = run_config(corpus, pretrain=None, instruct=None)
    with pytest.raises(InputError, match=r"0\.png cannot be decoded") as ahead:
        DataAhead(config, tmp_path).result()
    assert str(ahead.value) == str(here.value)


@pytest.mark.usefixtures("forks")
@pytest.mark.parametrize("fault", ["killed", "broken", "too large"])
def test_what_cannot_be_read_ahead_is_left_to_the_caller(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], fault: str
) -> None:
    if fault == "killed":
        monkeypatch.setattr(startup, "open_corpora", lambda _: os.kill(os.getpid(), signal.SIGKILL))
    elif fault == "broken":
        monkeypatch.setattr(startup, "open_corpora", lambda _: 1 / 0)
    else:
        monkeypatch.setattr(startup, "LARGEST_BYTES", 100)
    assert DataAhead(run_config(corpus), tmp_path).result() is None
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("forks")
def test_reading_ends_when_nobody_waits_for_it(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "_read", lambda *_: time.sleep(60))
    ahead = DataAhead(run_config(corpus), tmp_path)
    process = ahead._process
    assert process is not None and process.is_alive()
    ahead.close()
    assert process.exitcode == -signal.SIGKILL and ahead.result() is None


@pytest.mark.usefixtures("forks")
def test_the_reader_holds_no_lock_of_the_one_that_asked(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup, "_read", lambda *_: time.sleep(60))
    with file_lock(tmp_path / "lock", purpose="a test"):
        ahead = DataAhead(run_config(corpus), tmp_path)
    for _ in range(200):  # until the reader has begun
        with lock_alone(tmp_path / "lock") as free:
            if free:
                break
        time.sleep(0.05)
    assert free
    ahead.close()


def test_only_a_light_process_that_works_alone_is_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "torch" in sys.modules and not startup._may_fork()
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    assert startup._may_fork()
    monkeypatch.setattr(threading, "active_count", lambda: 2)
    assert not startup._may_fork()
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not startup._may_fork()


def test_the_collector_rests_during_imports_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with no_collection():
        assert gc.isenabled(), "torch is there"
    monkeypatch.delitem(sys.modules, "torch")
    try:
        with pytest.raises(InputError), no_collection():
            assert not gc.isenabled()
            raise InputError("a fault")
        assert gc.isenabled() and gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


LONG_AGO = 1_000_000_000


def settle(path: Path) -> None:
    os.utime(path, ns=(LONG_AGO * 10**9, LONG_AGO * 10**9))


def test_a_picture_that_was_found_sound_is_looked_at_again_when_it_is_another_file(tmp_path: Path) -> None:
    path, other = tmp_path / "a.png", tmp_path / "other"
    Image.new("RGB", (8, 8)).save(path)
    settle(path)
    ImageFolder(tmp_path).check_decodes(["a.png"], str, tmp_path)
    before = content_digest([path], tmp_path)
    assert VERIFIED_FILE in {file.name for file in (tmp_path / "data").iterdir()}
    other.write_bytes(b"x" * path.stat().st_size)
    settle(other)
    path.write_bytes(path.read_bytes())
    settle(path)
    ImageFolder(tmp_path).check_decodes(["a.png"], str, tmp_path)
    os.replace(other, path)  # of the same size and time
    assert content_digest([path], tmp_path) != before
    with pytest.raises(InputError, match=r"a\.png cannot be decoded"):
        ImageFolder(tmp_path).check_decodes(["a.png"], str, tmp_path)


def test_a_picture_that_was_just_written_is_not_remembered(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    ImageFolder(tmp_path).check_decodes(["a.png"], str, tmp_path)
    assert not (tmp_path / "data").exists()
    shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
    settle(tmp_path / "b.png")
    memory = tmp_path / "data" / VERIFIED_FILE
    memory.parent.mkdir()
    memory.write_text(f'["{tmp_path}/b.png", 1, 2, "of an older form"]\n["cut sho', encoding="utf-8")
    ImageFolder(tmp_path).check_decodes(["b.png"], str, tmp_path)
    assert len(content_digest([tmp_path / "b.png"], tmp_path)) == 12
