"""Stages that arms share: what changes a stage changes its key, and shared ones are trained once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from lvlm.config import RunConfig
from lvlm.records import RunRecord
from lvlm.run import run
from lvlm.train import locks
from lvlm.train.stages import Stage, make_stage
from tests.tiny import tiny_image
from tests.train_world import run_config, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_corpus(tmp_path_factory.mktemp("run") / "noise")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def first(corpus: Path, home: Path) -> tuple[RunConfig, RunRecord]:
    config = run_config(corpus, instruct__validate_every=0.5)
    return config, run(config, home / "first", home=home)


def test_an_arm_takes_the_stages_it_shares(first: tuple[RunConfig, RunRecord], corpus: Path, home: Path) -> None:
    _, record = first
    arm = run(
        run_config(corpus, instruct__mix={"corpora": [{"path": str(corpus), "split": "train"}], "languages": "en"}),
        home / "arm",
        home=home,
    )
    assert arm.stage_keys["pretrain"] == record.stage_keys["pretrain"]
    assert arm.stage_keys["instruct"] != record.stage_keys["instruct"]
    assert arm.provenance["stages_trained_here"] == ["instruct"]
    same = run(first[0], home / "same", home=home)
    assert same.provenance["stages_trained_here"] == []
    assert same.scores == record.scores and same.budget["samples"] == record.budget["samples"]
    for name in ("predictions.parquet", "curve.jsonl"):
        assert (home / "same" / name).read_bytes() == (home / "first" / name).read_bytes()


CHANGES: dict[str, Any] = {
    "seed": 1,
    "model__tiles": 1,
    "pretrain__batch_samples": 2,
    "pretrain__steps": 3,
    "pretrain__reduction": "sample",
    "pretrain__optim": {"lr": 2e-3},
    "pretrain__mix__languages": "all",
}


@pytest.mark.parametrize("field", CHANGES)
def test_whatever_changes_a_stage_changes_its_key(
    first: tuple[RunConfig, RunRecord], corpus: Path, home: Path, field: str, tmp_path: Path
) -> None:
    settings = {"device": "cpu", "threads": 1, "micro_batch_tokens": 64}
    unchanged = pretrain_key(run_config(corpus, name="another", compute=settings), tmp_path / "a", home)
    assert unchanged == first[1].stage_keys["pretrain"], "name and memory settings are no part of it"
    assert pretrain_key(run_config(corpus, **{field: CHANGES[field]}), tmp_path / "b", home) != unchanged


def pretrain_key(config: RunConfig, folder: Path, home: Path) -> str:
    """The key of the first stage, which is not trained."""

    def seen(stage: Stage, *_: Any, **__: Any) -> None:
        raise InterruptedError(stage.key)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(InterruptedError) as caught:
        patch.setattr(Stage, "train_once", seen)
        run(config, folder, home=home)
    return str(caught.value)


def test_an_edited_picture_of_equal_size_changes_the_key(tmp_path: Path) -> None:
    home = tmp_path / "home"
    corpus = write_corpus(tmp_path / "noise")
    for picture in (corpus / "images").iterdir():
        tiny_image(int(picture.stem)).save(picture, "BMP")  # without compression: all of one size
    before = pretrain_key(run_config(corpus), tmp_path / "before", home)
    assert pretrain_key(run_config(corpus), tmp_path / "again", home) == before
    picture = corpus / "images" / "0.png"
    size = picture.stat().st_size
    tiny_image(77).save(picture, "BMP")
    assert picture.stat().st_size == size
    assert pretrain_key(run_config(corpus), tmp_path / "after", home) != before
    tiny_image(0).save(picture, "BMP")
    assert pretrain_key(run_config(corpus), tmp_path / "restored", tmp_path / "other home") == before


def test_threads_count_only_where_they_were_asked_for(corpus: Path, tmp_path: Path) -> None:
    keys = []
    for number, (available, asked) in enumerate([(1, None), (2, None), (1, 1), (2, 1), (1, 2)]):
        torch.set_num_threads(available)
        try:
            config = run_config(corpus, compute={"device": "cpu", "threads": asked})
            keys.append(pretrain_key(config, tmp_path / str(number), tmp_path / "home"))
        finally:
            torch.set_num_threads(1)
    assert keys[0] == keys[1] and keys[2] == keys[3] and len(set(keys)) == 3


def test_two_workers_train_a_shared_stage_once(corpus: Path, tmp_path: Path) -> None:
    children = []
    for worker in range(2):
        child = os.fork()
        if not child:
            try:
                run(run_config(corpus, name=f"worker {worker}"), tmp_path / str(worker), home=tmp_path / "home")
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    records = [RunRecord.load(tmp_path / str(worker)) for worker in range(2)]
    trained = [stage for record in records for stage in record.provenance["stages_trained_here"]]
    assert sorted(trained) == ["instruct", "pretrain"]
    assert records[0].scores == records[1].scores


def test_a_lock_names_its_owner_and_waits(tmp_path: Path) -> None:
    path, heard = tmp_path / "lock", []
    with locks.file_lock(path, purpose="trains stage instruct"):
        assert f"process {os.getpid()}" in locks.lock_owner(path)
        child = os.fork()
        if not child:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(locks.time, "sleep", lambda _: os._exit(len(heard)))
                with locks.file_lock(path, purpose="second", on_wait=heard.append):
                    os._exit(99)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1, "the second one waits and hears of the first"
    with locks.file_lock(path, purpose="third"):
        pass


def test_a_stage_from_the_cache_keeps_its_attention(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lvlm.train.train import StageTraining

    seen: list[str] = []
    train = StageTraining.__call__

    def noted(self: StageTraining, stage: Any, **values: Any) -> Any:
        seen.append(values["model"].language_model.config._attn_implementation)
        return train(self, stage, **values)

    monkeypatch.setattr(StageTraining, "__call__", noted)
    short = {"pretrain__steps": 1, "instruct__steps": 1, "evaluate": {}, "model__attn": "eager"}
    config = run_config(corpus, **short)
    first = config.model_copy(update={"instruct": None})
    run(first, tmp_path / "first", home=tmp_path / "home")
    record = run(config, tmp_path / "second", home=tmp_path / "home")
    assert record.provenance["stages_trained_here"] == ["instruct"] and seen == ["eager", "eager"]


def key_of(folder: Path, config: RunConfig, **masks: Any) -> str:
    """The key of the second stage, with nothing before it."""
    return make_stage(
        folder, config, "instruct", parent=None, backbones={}, plan_hash="", data={}, compute={}, masks=masks
    ).key


def test_what_a_validation_says_depends_on_is_in_the_key(tmp_path: Path) -> None:
    def key(every: float | None, **evaluate: Any) -> str:
        changes = {f"evaluate__{name}": value for name, value in evaluate.items()}
        return key_of(tmp_path, run_config(tmp_path, instruct__validate_every=every, **changes))

    others: list[dict[str, Any]] = [{"tune_items": 3}, {"languages": ["en"]}, {"detector": "packaged"}]
    assert len({key(0.5), key(0.5, detector="auto"), *(key(0.5, **other) for other in others)}) == 4
    assert len({key(None), *(key(None, **other) for other in others)}) == 1, "where nothing is validated"


def test_what_dropout_masks_depend_on_is_in_the_key(tmp_path: Path) -> None:
    def key(dropout: float, tokens: int = 300, processes: int = 1) -> str:
        config = run_config(
            tmp_path, instruct__lora={"r": 4, "dropout": dropout}, compute={"micro_batch_tokens": tokens}
        )
        return key_of(tmp_path, config, micro_batch_tokens=tokens, processes=processes)

    assert len({key(0.1), key(0.1, tokens=400), key(0.1, processes=2)}) == 3
    assert key(0.0) == key(0.0, tokens=400) == key(0.0, processes=2)
