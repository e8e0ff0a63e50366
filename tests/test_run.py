"""One run from config to record: its files, shared stages, finished folders, and faults that show before training."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from rich.console import Console

from lvlm.config import RunConfig, load_config, to_yaml
from lvlm.errors import Diverged, InputError
from lvlm.records import PREDICTION_COLUMNS, SCORE_COLUMNS, TRAINER_VERSION, RunRecord, write_text
from lvlm.run import run
from lvlm.train import locks, progress
from lvlm.train.identity import check_same_config
from lvlm.train.progress import Reporter
from tests.corpora import change_row
from tests.tiny import tiny_world
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


def test_a_run_leaves_its_record(first: tuple[RunConfig, RunRecord], home: Path) -> None:
    config, record = first
    folder = Path(record.folder)
    names = {"config.yaml", "plan.json", "stages.json", "curve.jsonl", "scores.parquet", "predictions.parquet"}
    names |= {"record.json", ".lock"}
    assert {path.name for path in folder.iterdir()} == names
    assert load_config(folder / "config.yaml") == config
    assert RunRecord.load(folder) == record
    assert tuple(pd.read_parquet(folder / "scores.parquet").columns) == SCORE_COLUMNS
    predictions = pd.read_parquet(folder / "predictions.parquet")
    assert tuple(predictions.columns) == PREDICTION_COLUMNS and len(predictions) == 2 * 4
    assert set(json.loads((folder / "plan.json").read_text())) == {"pretrain", "instruct"}
    assert {"score/en", "score/multilingual", "vqa/en"} <= record.scores.keys()
    rows = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows if "score/en" in row] == [3, 6]
    assert not [path for path in home.rglob("*") if path.name.endswith((".tmp", "checkpoint.pt"))]


def test_the_record_states_budget_and_provenance(first: tuple[RunConfig, RunRecord]) -> None:
    _, record = first
    assert record.budget["samples"] == 16 + 48
    assert record.budget["views"] == 5 * record.budget["images"]
    assert record.budget["llm_tokens"] > record.budget["supervised_tokens"] > 0
    assert record.budget["instruct/trainable_parameters"] > record.budget["pretrain/trainable_parameters"] > 0
    seconds = record.provenance["seconds"]
    assert {
        "start-up",
        "data",
        "features",
        "train/pretrain",
        "train/instruct",
        "evaluate",
        "other",
        "total",
    } <= seconds.keys()
    assert sum(value for name, value in seconds.items() if name != "total") == pytest.approx(seconds["total"], abs=0.01)
    assert (
        record.provenance["threads"] == 1
        and record.provenance["precision"] == "fp32"
        and record.provenance["strategy"] == "one process"
    )


def test_a_finished_folder_is_returned_at_once(
    first: tuple[RunConfig, RunRecord],
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config, record = first
    monkeypatch.setattr("lvlm.train.compute.compute", None)  # whatever would compute fails
    capsys.readouterr()
    assert run(config, record.folder, home=home) == record
    assert "tiny: already finished" in capsys.readouterr().err
    other = config.model_copy(update={"seed": 1})
    with pytest.raises(InputError, match="seed: 0 -> 1"):
        run(other, record.folder, home=home)


def test_a_finished_folder_of_other_data_or_backbones_is_refused(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "noise", samples=6)
    llm = shutil.copytree(tiny_world().llm, tmp_path / "llm")
    config = run_config(
        corpus, model__llm=str(llm), pretrain=None, instruct__steps=1, instruct__batch_samples=2, evaluate={}
    )
    record = run(config, tmp_path / "run", home=tmp_path / "home")
    (llm / "note.txt").write_text("other weights")
    with pytest.raises(InputError, match=r"is finished, but .*backbones\.llm: '\w+' -> '\w+'"):
        run(config, tmp_path / "run", home=tmp_path / "home")
    (llm / "note.txt").unlink()
    with open(corpus / "train" / "de.jsonl", "a", encoding="utf-8") as file:
        file.write("\n")
    with pytest.raises(InputError, match=r"is finished, but .*corpora\..*noise: '\w+' -> '\w+'"):
        run(config, tmp_path / "run", home=tmp_path / "home")
    write_corpus(tmp_path / "again" / "noise", samples=6)
    shutil.copy(tmp_path / "again" / "noise" / "train" / "de.jsonl", corpus / "train" / "de.jsonl")
    assert run(config, tmp_path / "run", home=tmp_path / "home") == record


def test_other_labels_are_the_same_run(
    first: tuple[RunConfig, RunRecord], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, record = first
    monkeypatch.setattr("lvlm.train.compute.compute", None)  # whatever would compute fails
    renamed = config.model_copy(update={"name": "again", "tags": ("english_only",)})
    assert run(renamed, record.folder, home=home) == record


def test_a_run_that_was_interrupted_goes_on_under_other_labels(corpus: Path, tmp_path: Path) -> None:
    write_text(tmp_path / "run" / "config.yaml", to_yaml(run_config(corpus, tags=["one"])))
    assert check_same_config(tmp_path / "run", run_config(corpus, tags=["two"])) == []
    with pytest.raises(InputError, match=r"'tags\.1': String should match pattern .*'a/b'"):
        run_config(corpus, tags=["fine", "a/b"])


def test_who_waited_for_the_folder_looks_again(
    corpus: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(corpus)
    lock = locks.file_lock

    @contextmanager
    def awaited(path: Path, **values: Any) -> Iterator[None]:
        write_text(tmp_path / "run" / "config.yaml", to_yaml(config.model_copy(update={"seed": 1})))
        with lock(path, **values):
            yield

    monkeypatch.setattr(locks, "file_lock", awaited)
    with pytest.raises(InputError, match="seed: 1 -> 0"):
        run(config, tmp_path / "run", home=home)


def test_a_log_says_how_far_the_run_is(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    config = run_config(corpus, pretrain=None, instruct__steps=2, instruct__batch_samples=2)
    run(config, tmp_path / "run", home=tmp_path / "home")
    said = capsys.readouterr().err
    assert re.search(r"instruct: 2 of 4 samples, step 1 of 2, loss [\d.]+, [\d,]+ tokens/s, 0:00:\d\d left", said)
    assert re.search(r"evaluate: 8 of 8 items, 0:00:00 left", said)


def test_lines_come_now_and_then_bars_on_a_terminal_and_nothing_where_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def shown(*, terminal: bool, silent: bool = False) -> str:
        """What a reader sees of a stage of a minute with a validation in it."""
        reporter = progress.Reporter(silent=silent)
        reporter.samples = {"instruct": 600}
        text = io.StringIO()
        reporter.console = Console(file=text, force_terminal=terminal, quiet=silent, width=200)
        with reporter.bar("instruct", 60):
            for step in range(1, 61):
                clock[0] += 1
                reporter.advance(step, "steps")
                reporter.tell("step", stage="instruct", step=step, samples=10 * step, loss=2.0, steps=60,
                              tokens_per_second=5000.0, seconds_left=60.0 - step)  # fmt: skip
            with reporter.evaluation() as evaluated:
                clock[0] += 30
                evaluated(3, 4)
                assert reporter._bar
                reporter._bar.progress.refresh()  # a terminal would see it within a tenth of a second
        return text.getvalue()

    assert shown(terminal=False).splitlines() == [
        "instruct: 300 of 600 samples, step 30 of 60, loss 2.000, 5,000 tokens/s, 0:00:30 left",
        "instruct: 600 of 600 samples, step 60 of 60, loss 2.000, 5,000 tokens/s, 0:00:00 left",
        "evaluate: 3 of 4 items, 0:00:10 left",
    ]
    bars = shown(terminal=True)
    assert "60/60" in bars and "3/4" in bars and "tokens/s" not in bars
    assert shown(terminal=False, silent=True) == shown(terminal=True, silent=True) == ""


def test_training_lowers_the_loss(corpus: Path, tmp_path: Path) -> None:
    config = run_config(
        corpus,
        pretrain=None,
        instruct__steps=40,
        instruct__train={"adapter": "full", "llm": "full"},
        instruct__lora={},
        instruct__optim={"lr": 5e-3},
        evaluate={},
        compute={"device": "cpu", "threads": 1, "feature_cache": "on"},
    )
    events: list[dict[str, Any]] = []
    record = run(config, tmp_path / "run", home=tmp_path / "home", on_progress=events.append)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "curve.jsonl").read_text().splitlines()]
    assert losses[0] > 5 and sum(losses[-3:]) / 3 < 0.5 * losses[0]
    steps = [event for event in events if event["kind"] == "step"]
    assert [event["step"] for event in steps] == list(range(1, 41)) and steps[-1]["seconds_left"] == 0
    assert {"samples", "loss", "tokens_per_second", "steps"} <= steps[0].keys()
    assert record.scores == {} and "evaluate.corpora is empty: nothing was scored" in record.notes


@pytest.mark.parametrize(
    ("compute", "kept", "reason"),
    [
        ({"feature_cache": "on"}, "stored", "compute.feature_cache is on"),
        ({"feature_cache": "on", "feature_cache_gib": 1e-6}, "computed", "exceed compute.feature_cache_gib=1e-06"),
        ({"feature_cache": "auto", "feature_cache_gib": 1e-6}, "computed", "exceed compute.feature_cache_gib=1e-06"),
        ({"feature_cache": "off"}, "computed", "compute.feature_cache is off"),
    ],
)
def test_the_record_says_why_features_were_kept_or_not(
    corpus: Path, tmp_path: Path, compute: dict[str, Any], kept: str, reason: str
) -> None:
    settings = {"device": "cpu", "threads": 1, **compute}
    config = run_config(corpus, instruct=None, pretrain__steps=2, compute=settings, evaluate__items=1)
    record = run(config, tmp_path / "run", home=tmp_path / "home")
    assert record.provenance["features"] == {"pretrain": kept}
    assert reason in record.provenance["features_reason"]["pretrain"]
    assert bool(list((tmp_path / "home").glob("features/*/*.npy"))) == (kept == "stored")


def test_training_begins_before_all_features_are_kept(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lvlm.train.features.FIRST_AHEAD", 1)
    kept: list[int] = []

    def count(event: dict[str, Any]) -> None:
        if event["kind"] == "step":
            indices = (tmp_path / "home" / "features").glob("*/*.json")
            kept.append(sum(len(json.loads(index.read_text(encoding="utf-8"))) for index in indices))

    settings = {"device": "cpu", "threads": 1, "feature_cache": "on"}
    config = run_config(corpus, instruct=None, pretrain__steps=6, compute=settings, evaluate={})
    record = run(config, tmp_path / "run", home=tmp_path / "home", on_progress=count)
    assert kept[0] < kept[-1] == 8 and kept == sorted(kept)
    assert record.provenance["seconds"]["features"] > 0


def test_rows_are_packed_in_bf16_too(corpus: Path, tmp_path: Path) -> None:
    compute = {"device": "cpu", "threads": 1, "feature_cache": "off", "precision": "bf16"}
    losses = []
    for packing in (False, True):
        config = run_config(corpus, instruct=None, evaluate={}, compute=compute | {"packing": packing})
        run(config, tmp_path / str(packing), home=tmp_path / f"home-{packing}")
        rows = (tmp_path / str(packing) / "curve.jsonl").read_text().splitlines()
        losses.append([json.loads(row)["loss"] for row in rows])
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


def test_what_goes_on_decides_anew_about_features_for_which_there_was_no_room(corpus: Path, tmp_path: Path) -> None:
    """And keeps every other decision, for as long as it was asked the same."""

    def stop_at_first_step(event: dict[str, Any]) -> None:
        if event["kind"] == "step":
            raise KeyboardInterrupt

    def decided(**changes: Any) -> str:
        settings = {"device": "cpu", "threads": 1, "feature_cache": "on", **changes}
        config = run_config(corpus, instruct=None, pretrain__steps=9, compute=settings, evaluate__items=1)
        said: list[str] = []
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Reporter, "say", lambda _, text: said.append(text))
            run(config, tmp_path / "run", home=tmp_path / "home", on_progress=stop_at_first_step)
        (reason,) = [text for text in said if "feature cache" in text]
        return reason

    assert "exceed compute.feature_cache_gib=1e-06" in decided(feature_cache_gib=1e-6)
    assert decided(feature_cache_gib=1.0) == "pretrain: feature cache on: compute.feature_cache is on"
    measured = decided(feature_cache="auto")
    assert "ms to compute" in measured and decided(feature_cache="auto") == measured, "measured times would differ"
    assert decided(feature_cache="auto", loader_workers=1) != measured


def test_faults_show_before_training(corpus: Path, tmp_path: Path) -> None:
    cases = {
        "has permission 'report'": {"instruct__mix": {"corpora": [{"path": str(corpus), "split": "test"}]}},
        "tune_corpora names nothing": {"instruct__validate_every": 2, "evaluate": {}},
        "evaluate.tasks": {"evaluate": {"corpora": [{"path": str(corpus), "split": "test"}], "tasks": ["chess"]}},
        "does not exist": {"instruct__mix": {"corpora": [{"path": str(tmp_path / "nowhere"), "split": "train"}]}},
    }
    for number, (message, changes) in enumerate(cases.items()):
        with pytest.raises(InputError, match=message):
            run(run_config(corpus, **changes), tmp_path / str(number), home=tmp_path / "home")
        assert not (tmp_path / str(number) / "config.yaml").exists(), "a mended config may use the folder"
    assert not (tmp_path / "home" / "stages").exists()


def test_text_alone_where_only_the_adapter_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = write_corpus(tmp_path / "noise", samples=6)  # the last one has no image
    short = {"instruct": None, "pretrain__batch_samples": 1, "pretrain__steps": 6, "evaluate": {}}
    monkeypatch.chdir(tmp_path)
    record = run(run_config(corpus, **short), tmp_path / "run", home="home")
    norms = [json.loads(row)["grad_norm"] for row in (tmp_path / "run" / "curve.jsonl").read_text().splitlines()]
    assert sorted(norm == 0 for norm in norms) == [False] * 5 + [True]
    assert Path(record.provenance["model"]).is_absolute() and record.provenance["trainer"] == TRAINER_VERSION
    for code in ("en", "de"):
        for row in range(6):
            change_row(corpus / "train" / f"{code}.jsonl", row, image_id="")
    with pytest.raises(InputError, match=r"No sample of stage pretrain has an image.*pretrain\.train\.llm=lora"):
        run(run_config(corpus, **short), tmp_path / "other", home=tmp_path / "home")


def test_a_loss_that_is_not_finite_stops_the_stage(corpus: Path, tmp_path: Path) -> None:
    config = run_config(corpus, pretrain=None, instruct__optim={"lr": 1e30, "clip": None, "warmup": 0})
    with pytest.raises(Diverged, match=r"instruct is not finite at step"):
        run(config, tmp_path / "run", home=tmp_path / "home")
    assert not (tmp_path / "run" / "record.json").exists()
