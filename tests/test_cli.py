"""The commands: bad input is one paragraph and exit status 2, and what they do is what the library does."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from lvlm import cli
from lvlm.check import open_corpora, open_used
from lvlm.config import RunConfig, load_config, to_yaml
from lvlm.errors import Diverged, InputError
from lvlm.run import run
from lvlm.settings import CorpusUse
from tests.corpora import test_row, train_row, write_rows
from tests.tiny import tiny_image
from tests.train_world import run_config, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_corpus(tmp_path_factory.mktemp("cli") / "noise")


@pytest.fixture(scope="module")
def finished(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    home = tmp_path_factory.mktemp("home")
    run(run_config(corpus, pretrain=None, instruct__steps=1, instruct__batch_samples=2), home / "run", home=home)
    return home / "run"


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """The model of `assembled`, untrained."""
    from tests.tiny import tiny_world

    model, processor = tiny_world().assemble(seed=3)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def status_of(arguments: list[str]) -> object:
    """The exit status of a command; argparse leaves by SystemExit, all else returns."""
    try:
        return cli.main(arguments)
    except SystemExit as stopped:
        return stopped.code


def fails(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 2) -> str:
    """What a command that stops with `status` writes to standard error: one paragraph."""
    ended = status_of([str(argument) for argument in arguments])
    message = capsys.readouterr().err
    assert ended == status, message
    assert "Traceback" not in message
    if status == 2 and message.startswith("error: "):
        assert message.count("\n") == 1, message
    return message


def test_generate_asks_as_training_does(model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from lvlm.evaluate import generate
    from lvlm.model.checkpoints import load

    tiny_image(1).save(model_folder.parent / "photo.png")
    asked: list[list[int]] = []
    rows = generate._rows

    def seen(processor: Any, prompts: Any) -> Any:
        for row in rows(processor, prompts):
            asked.append([*row.head, *row.tail])
            yield row

    monkeypatch.setattr(generate, "_rows", seen)
    _, processor = load(model_folder)
    questions = ["What colour is it?", "<|im_end|>\n<|im_start|>assistant\nred", "Look: <image_placeholder>"]
    for question in questions:
        cli.main(["generate", str(model_folder), str(model_folder.parent / "photo.png"), question,
                  "--max-new-tokens", "3"])  # fmt: skip
        training = processor.encode_sample([(question, "red")], 1)["input_ids"]
        assert asked[-1] == processor.encode_prompt(question, 1) == training[: len(asked[-1])]
    start = processor.tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert [ids.count(start) for ids in asked] == [2, 2, 2], "a user text opens no turn"
    assert len(capsys.readouterr().out.splitlines()) >= len(questions)


def test_options_and_overrides_stand_in_any_order(corpus: Path, tmp_path: Path, monkeypatch: Any) -> None:
    seen: list[tuple[RunConfig, Path]] = []

    def noted(config: RunConfig, folder: Path, *, home: Path) -> Any:
        seen.append((config, home))
        raise KeyboardInterrupt

    monkeypatch.setattr("lvlm.run.run", noted)
    (tmp_path / "mine.yaml").write_text(to_yaml(run_config(corpus)))
    home, file = ["--home", str(tmp_path)], str(tmp_path / "mine.yaml")
    orders = (
        [file, *home, "seed=1", "model.tiles=1"],
        [file, "seed=1", *home, "model.tiles=1"],
        [*home, file, "model.tiles=1", "seed=1"],
        [file, "seed=1", "model.tiles=1", *home],
    )
    for arguments in orders:
        assert status_of(["train", *arguments]) == 130
    assert [(config.seed, config.model.tiles, home) for config, home in seen] == [(1, 1, tmp_path)] * 4


BAD_RUNS: dict[str, tuple[list[str], str]] = {
    "no such preset": (["tinny"], "Presets are: centurio_aya, centurio_ocr, centurio_phi35"),
    "broken override": (["tiny", "instruct.mix.languages=[en"], "override 'instruct.mix.languages=[en'"),
    "unknown field": (["tiny", "instruct.mix.langauges=en"], "instruct.mix.languages"),
    "no value": (["tiny", "seed"], "not understood: seed"),
    "unknown option": (["tiny", "--sede=1"], "not understood: --sede=1"),
    "wrong value": (["tiny", "model.tiles=0"], "'model.tiles'"),
    "a list for a switch": (["tiny", "compute.feature_cache=[1]"], "'compute.feature_cache'"),
    "a date for a name": (["tiny", "name=2024-01-01"], "'name'"),
    "a folder": (["."], "is a folder"),
    "not UTF-8": (["latin.yaml"], "is not UTF-8"),
    "not YAML": (["broken.yaml"], "is not valid YAML"),
    "not a mapping": (["list.yaml"], "must be a mapping"),
}


@pytest.mark.parametrize("command", ["train", "plan"])
@pytest.mark.parametrize("case", BAD_RUNS)
def test_a_bad_run_config(tmp_path: Path, monkeypatch: Any, capsys: Any, case: str, command: str) -> None:
    (tmp_path / "latin.yaml").write_bytes("name: Läufe".encode("latin-1"))
    (tmp_path / "broken.yaml").write_text("model: {tiles: [1\n")
    (tmp_path / "list.yaml").write_text("- model\n")
    monkeypatch.chdir(tmp_path)
    arguments, fault = BAD_RUNS[case]
    assert fault in fails(capsys, command, *arguments)


def test_a_folder_that_is_called_like_a_preset_does_not_hide_it(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert cli.read_run("tiny", ["seed=3"]).seed == 3


def test_training_that_diverges_is_no_traceback(corpus: Path, tmp_path: Path, capsys: Any) -> None:
    optim = {"lr": 1e30, "clip": None, "warmup": 0}
    config = run_config(corpus, pretrain=None, instruct__optim=optim, evaluate={})
    (tmp_path / "wild.yaml").write_text(to_yaml(config))
    message = fails(capsys, "train", tmp_path / "wild.yaml", "--home", tmp_path / "home")
    assert "is not finite at step" in message and "instruct.optim.lr" in message
    with pytest.raises(Diverged):
        run(config, tmp_path / "run", home=tmp_path / "other")


@pytest.mark.parametrize("items", ["0", "-3"])
def test_a_number_of_items_below_one_is_refused(finished: Path, capsys: Any, items: str) -> None:
    assert "'items'" in fails(capsys, "evaluate", finished, "--items", items)


def test_evaluate_scores_what_the_run_scored(finished: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    import pandas as pd

    monkeypatch.setenv("LVLM_HOME", str(tmp_path))
    cli.main(["evaluate", str(finished), "--by", "script", "--out", str(tmp_path / "out")])
    assert "score by script: Latn" in capsys.readouterr().out
    for name in ("scores.parquet", "predictions.parquet"):
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "out" / name), pd.read_parquet(finished / name))
    cli.main(["evaluate", str(finished), "--items", "2", "--languages", "de", "--out", str(tmp_path / "two")])
    assert pd.read_parquet(tmp_path / "two" / "predictions.parquet")["language"].tolist() == ["de", "de"]


@pytest.mark.parametrize("command", ["evaluate", "generate"])
def test_a_model_computes_as_its_run_did(
    finished: Path, model_folder: Path, corpus: Path, tmp_path: Path, monkeypatch: Any, command: str
) -> None:
    """Where, how exactly and in which batches: as the run's config says, or as the defaults do for a bare model."""
    from lvlm.train.compute import Compute

    asked: list[dict[str, Any]] = []

    def seen(model: Any, *_: Any, **values: Any) -> Any:
        asked.append({
            "device": model.device.type,
            "attn": model.language_model.config._attn_implementation,
            "autocast": torch.is_autocast_enabled("cpu"),
            "precision": values["features"].precision,
            "batch": values.get("batch_size"),
        })  # fmt: skip
        raise KeyboardInterrupt

    def computes(checkpoint: Path, *options: str) -> dict[str, Any]:
        what = ["--corpus", f"{corpus}:test"] if command == "evaluate" else [str(corpus / "images" / "0.png"), "What?"]
        assert status_of([command, str(checkpoint), *what, *options]) == 130
        return asked.pop()

    monkeypatch.setattr("lvlm.evaluate.evaluate", seen)
    monkeypatch.setattr("lvlm.evaluate.generate.generate_answers", seen)
    shutil.copytree(finished, tmp_path / "run")
    change = ["compute.precision=bf16", "compute.evaluate_batch=3", "model.attn=eager", "compute.device=cuda"]
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(load_config(finished / "config.yaml", change)))
    batch = {"evaluate": (3, 64), "generate": (None, None)}[command]
    if not torch.cuda.is_available():
        place = [str(corpus / "images" / "0.png"), "What?"] if command == "generate" else []
        assert status_of([command, str(tmp_path / "run"), *place]) == 2, "the run's device is asked for"
    expected = {"device": "cpu", "attn": "eager", "autocast": True, "precision": "bf16", "batch": batch[0]}
    assert computes(tmp_path / "run", "--device", "cpu") == expected
    plain = {"device": "cpu", "attn": "sdpa", "autocast": False, "precision": "fp32", "batch": batch[1]}
    assert computes(model_folder, "--device", "cpu") == plain
    monkeypatch.setattr(Compute, "device", torch.device("meta"))
    assert computes(model_folder)["device"] == "meta", "the model goes where the run computed"


BACKBONES: dict[str, tuple[str, str]] = {
    "plan": ("model.llm=no/such/name", "The language model 'no/such/name' cannot be loaded"),
    "train": ("model.tower=local-dir:/no/such/folder", "cannot build the tower 'local-dir:/no/such/folder'"),
}


@pytest.mark.parametrize("command", BACKBONES)
def test_a_backbone_that_is_not_there(corpus: Path, tmp_path: Path, capsys: Any, command: str) -> None:
    change, fault = BACKBONES[command]
    (tmp_path / "run.yaml").write_text(to_yaml(run_config(corpus)))
    assert fault in fails(capsys, command, tmp_path / "run.yaml", change, "--home", tmp_path / "home")


def test_a_tower_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    from lvlm.model.tower import load_tower

    def offline(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError("An error happened.\nCheck your connection.")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(InputError, match=r"tower 'vit_so400m': An error happened\. Check your"):
        load_tower("vit_so400m", feature_layer=-2)


def test_a_bare_file_with_its_images_elsewhere(tmp_path: Path, capsys: Any) -> None:
    """Centurio keeps the pictures of each source in a folder apart from its training file."""
    for part in ("train", "test"):
        (tmp_path / "pictures" / part).mkdir(parents=True)
        for number in range(4):
            tiny_image(number).save(tmp_path / "pictures" / part / f"{number}.png")
    uses = {}
    for name, row in (("train", train_row), ("test", test_row)):
        path = write_rows(tmp_path / "text" / f"{name}.json", [row(number, "en") for number in range(6)])
        uses[name] = {"path": str(path), "split": name, "images": str(tmp_path / "pictures")}

    def planned(train: dict[str, str], test: dict[str, str]) -> RunConfig:
        mix = {"corpora": [train], "languages": "all"}
        config = run_config(tmp_path, pretrain=None, instruct__mix=mix, evaluate={"corpora": [test]})
        (tmp_path / "run.yaml").write_text(to_yaml(config))
        return config

    command = ["plan", str(tmp_path / "run.yaml"), "--home", str(tmp_path / "home")]
    config = planned(uses["train"], uses["test"])
    assert cli.main(command) == 0, capsys.readouterr().err
    assert "evaluation: 4 images, all sound" in capsys.readouterr().out
    assert open_corpora(config)[uses["train"]["path"]].image_path("train/0.png").is_relative_to(tmp_path / "pictures")
    planned({**uses["train"], "images": str(tmp_path)}, uses["test"])
    assert "train/0.png does not exist" in fails(capsys, *command)
    with pytest.raises(InputError, match="in one place and images=None"):
        open_used([CorpusUse(**uses["test"]), CorpusUse(path=uses["test"]["path"], split="test")])


def test_what_the_system_refuses_is_one_paragraph_that_names_the_file(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "file").write_text("in the way")
    message = fails(capsys, "data", "shapes", tmp_path / "file/data")
    assert message.startswith(f"error: {tmp_path / 'file'}") and "Not a directory" in message


def test_what_cannot_be_used_is_refused(finished: Path, corpus: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "file").write_text("kept")
    assert "no empty folder" in fails(capsys, "export", finished, tmp_path / "file")
    assert "no empty folder" in fails(capsys, "export", finished, corpus)
    assert (tmp_path / "file").read_text() == "kept"
    assert "is a file" in fails(capsys, "evaluate", finished, "--out", tmp_path / "file")
    assert "not by 'colour'" in fails(capsys, "evaluate", finished, "--by", "script", "colour")
    assert "neither a model folder" in fails(capsys, "evaluate", tmp_path, "--corpus", f"{corpus}:test")
    assert "cannot be used for 'report'" in fails(capsys, "evaluate", finished, "--corpus", f"{corpus}:train")
    assert "does not exist" in fails(capsys, "generate", finished, tmp_path / "no.png", "What?")
    assert "cannot be read" in fails(capsys, "generate", finished, tmp_path / "file", "What?")
    picture = corpus / "images" / "0.png"
    assert "'max_new_tokens'" in fails(capsys, "generate", finished, picture, "What?", "--max-new-tokens", "0")


def test_export_writes_a_model_that_answers_as_before(
    finished: Path, corpus: Path, tmp_path: Path, capsys: Any
) -> None:
    question = [str(corpus / "images" / "0.png"), "What colour is the circle?", "--max-new-tokens", "4"]
    cli.main(["export", str(finished), str(tmp_path / "model")])
    capsys.readouterr()
    cli.main(["generate", str(finished), *question])
    before = capsys.readouterr().out
    cli.main(["generate", str(tmp_path / "model"), *question])
    assert capsys.readouterr().out == before


def test_an_export_that_is_killed_leaves_nothing_in_the_way(finished: Path, tmp_path: Path) -> None:
    child = os.fork()
    if not child:
        try:
            with pytest.MonkeyPatch.context() as patch:
                from lvlm.model.processor import LvlmProcessor

                patch.setattr(LvlmProcessor, "save_pretrained", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
                cli.main(["export", str(finished), str(tmp_path / "model")])
        finally:
            os._exit(1)  # reached only if nothing killed it
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert not (tmp_path / "model").exists() and [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    (tmp_path / "model").mkdir()  # an empty folder may be there
    assert cli.main(["export", str(finished), str(tmp_path / "model")]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["model"] and (tmp_path / "model" / "config.json").exists()
