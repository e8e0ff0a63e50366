"""An evaluation that was killed goes on to the same tables, whoever continues it, and what fails is named."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from lvlm import cli
from lvlm.data.corpus import Corpus, open_corpus
from lvlm.errors import InputError
from lvlm.evaluate import evaluate, generate
from lvlm.evaluate.generate import Prompt, generate_answers
from lvlm.evaluate.kept import KeptAnswers
from lvlm.processes import process_index
from lvlm.run import run
from lvlm.settings import ComputeConfig, CorpusUse, EvaluateConfig
from lvlm.train.compute import compute
from tests.corpora import change_row, make_corpus
from tests.processes import together
from tests.tiny import tiny_world
from tests.train_world import run_config, write_corpus

TABLES = ("scores.parquet", "predictions.parquet")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    model, processor = tiny_world().assemble(seed=3)
    folder = tmp_path_factory.mktemp("model") / "model"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LVLM_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return make_corpus(tmp_path, ("en", "de", "sw"), test_rows=7)


@pytest.fixture(scope="module")
def whole(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus and with the tables `out` of an evaluation by one process that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    assert score(model_folder, make_corpus(folder, ("en", "de", "sw"), test_rows=7), folder / "out") == 0
    assert len(set(tables(folder / "out")[1]["prediction"])) > 2, "answers are told apart"
    return folder


def score(model_folder: Path, corpus: Path, out: Path) -> int:
    return cli.main(["evaluate", str(model_folder), "--corpus", f"{corpus}:test", "--out", str(out), "--device", "cpu"])


def tables(out: Path) -> list[pd.DataFrame]:
    return [pd.read_parquet(out / name) for name in TABLES]


def assert_same(out: Path, expected: Path) -> None:
    for found, wanted in zip(tables(out), tables(expected), strict=True):
        pd.testing.assert_frame_equal(found, wanted)


def in_batches_of(size: int) -> None:
    """What the command answers with, in this process, whatever a config says."""
    whole: Any = generate_answers

    def small(*arguments: Any, **options: Any) -> list[str]:
        found: list[str] = whole(*arguments, **options | {"batch_size": size})
        return found

    generate.generate_answers = small


def dies_after(batches: int, work: Callable[[], Any]) -> Callable[[], None]:
    """Do `work` and be killed when so many batches are answered."""
    add, done = KeptAnswers.add, [0]

    def dying(kept: KeptAnswers, answers: Mapping[int, str]) -> None:
        add(kept, answers)
        done[0] += 1
        if done[0] == batches:
            os.kill(os.getpid(), signal.SIGKILL)

    def killed() -> None:
        in_batches_of(2)
        KeptAnswers.add = dying  # type: ignore[method-assign]  # in this process alone
        work()

    return killed


def test_one_two_and_three_processes_write_the_same_tables(
    model_folder: Path, whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    for processes, size in ((1, 1), (2, 3), (3, 2)):
        out = tmp_path / f"{processes}-{size}"

        def work(out: Path = out, size: int = size) -> None:
            in_batches_of(size)
            assert score(model_folder, whole / "toy", out) == 0

        assert together(work, processes) == [0] * processes
        assert capfd.readouterr().out.count("written:") == 1, "one process speaks"
        assert_same(out, whole / "out")
        assert sorted(path.name for path in out.iterdir()) == sorted(TABLES)


@pytest.mark.parametrize(("killed", "then"), [(1, 1), (2, 2), (1, 3)])
def test_a_killed_evaluation_goes_on_to_the_same_tables(
    model_folder: Path, whole: Path, tmp_path: Path, killed: int, then: int
) -> None:
    out, calls = tmp_path / "out", tmp_path / "calls"
    ended = together(dies_after(2, lambda: score(model_folder, whole / "toy", out)), killed)
    assert -signal.SIGKILL in ended and not (out / TABLES[0]).exists()
    lines = [json.loads(line) for path in out.glob(".answers-*-[0-9].jsonl") for line in path.read_text().splitlines()]
    kept = sum(len(line) for line in lines)
    assert 0 < kept < 21

    def goes_on() -> None:
        in_batches_of(2)
        add = KeptAnswers.add

        def counting(self: KeptAnswers, answers: Mapping[int, str]) -> None:
            add(self, answers)
            with open(calls, "a") as file:
                file.write("x" * len(answers))

        KeptAnswers.add = counting  # type: ignore[method-assign]  # in this process alone
        assert score(model_folder, whole / "toy", out) == 0

    assert together(goes_on, then) == [0] * then
    assert len(calls.read_text()) == 21 - kept, "no answer twice"
    assert_same(out, whole / "out")
    assert not list(out.glob(".answers-*-[0-9].jsonl"))


def test_a_run_that_was_stopped_in_its_evaluation_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = {"device": "cpu", "threads": 1, "evaluate_batch": 2}
    chosen = run_config(write_corpus(tmp_path / "noise"), pretrain=None, instruct__steps=2, compute=compute)
    add, batches = KeptAnswers.add, list[int]()

    def noting(kept: KeptAnswers, answers: Mapping[int, str]) -> None:
        add(kept, answers)
        batches.append(len(answers))
        if len(batches) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(KeptAnswers, "add", noting)
    with pytest.raises(KeyboardInterrupt):
        run(chosen, tmp_path / "run", home=tmp_path / "home")
    run(chosen, tmp_path / "run", home=tmp_path / "home")
    assert sum(batches) == 8, "four items in two languages, none of them answered twice"
    run(chosen, tmp_path / "undisturbed", home=tmp_path / "home")
    assert_same(tmp_path / "run", tmp_path / "undisturbed")
    assert not list((tmp_path / "run").glob(".answers-*"))


def config(**changes: Any) -> EvaluateConfig:
    return EvaluateConfig(**{"corpora": (CorpusUse(path="toy", split="test"),), "max_new_tokens": 3} | changes)


def kept_answers(corpus: Corpus, folder: Path, model: dict[str, Any], chosen: EvaluateConfig) -> int:
    """How many answers an evaluation of this finds; it leaves one of its own."""
    from lvlm.evaluate.items import asked_items

    kept = KeptAnswers(folder, model)
    known = kept.open(asked_items(chosen, {"toy": corpus}, permission="report"), chosen.max_new_tokens)
    if not known:
        kept.add({0: "yes\udc80\n", 2: "non"})
    return len(known)


def test_answers_of_anything_else_are_not_taken(corpus: Path, tmp_path: Path) -> None:
    folder, model = tmp_path / "out", {"digest": "a", "precision": "fp32"}
    assert kept_answers(open_corpus(corpus), folder, model, config()) == 0
    assert kept_answers(open_corpus(corpus), folder, model, config()) == 2
    assert kept_answers(open_corpus(corpus), folder, model, config(detector="packaged")) == 2, "it looks at answers"
    assert kept_answers(open_corpus(corpus), folder, model | {"digest": "b"}, config()) == 0
    assert kept_answers(open_corpus(corpus), folder, model | {"precision": "bf16"}, config()) == 0
    assert kept_answers(open_corpus(corpus), folder, model, config(max_new_tokens=4)) == 0
    assert kept_answers(open_corpus(corpus), folder, model, config(items=3)) == 0
    change_row(corpus / "test" / "de.jsonl", 1, context=["eine andere Frage"])
    assert kept_answers(open_corpus(corpus), folder, model, config()) == 0, "another prompt"
    assert kept_answers(open_corpus(corpus), folder, model, config()) == 2
    picture = corpus / "images" / "test" / "1.png"
    picture.write_bytes((corpus / "images" / "test" / "2.png").read_bytes())
    assert kept_answers(open_corpus(corpus), folder, model, config()) == 0, "another picture"


def test_a_line_that_was_cut_short_is_left_aside(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert kept_answers(open_corpus(corpus), folder, {}, config()) == 0
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole + whole[: len(whole) // 2])
    assert kept_answers(open_corpus(corpus), folder, {}, config()) == 2
    assert file.read_bytes() == whole


def test_what_fails_is_an_error_that_names_the_item(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny_world().assemble(seed=3)
    broken = open_corpus(corpus).image_path("test/2.png")

    def features(files: Any) -> torch.Tensor:
        if broken in files:
            raise RuntimeError("the tower burns")
        return torch.zeros(len(files), 1, 9, 16)

    with pytest.raises(InputError, match=r"vqa/en/q-0000\d\. RuntimeError: the tower burns") as raised:
        evaluate(model, processor, config(), {"toy": open_corpus(corpus)}, features=features)
    assert raised.value.__cause__ is not None

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("no room")

    prompts = [Prompt(f"Question {number}?", name=f"vqa/de/{number}") for number in range(20)]
    continued = generate._continue
    monkeypatch.setattr(generate, "_continue", lambda *given: full() if len(given[3]) > 1 else continued(*given))
    with pytest.raises(InputError, match=r"vqa/de/0, .* and 12 more\. OutOfMemoryError: no room .*evaluate_batch"):
        generate_answers(model, processor, prompts, max_new_tokens=2)
    with pytest.raises(InputError, match=r"no answer to vqa/sw/x\. .*needs one for each image"):
        twice = "<image_placeholder>" * 2
        generate_answers(model, processor, [Prompt(twice, (broken,), name="vqa/sw/x")], max_new_tokens=2)


def test_processes_that_do_not_divide_their_prompts_answer_each_its_own(tmp_path: Path) -> None:
    model, processor = tiny_world().assemble(seed=3)
    prompts = [[Prompt(f"Question {number} of {rank}?") for number in range(3 + rank)] for rank in range(2)]
    expected = [generate_answers(model, processor, own, max_new_tokens=4) for own in prompts]

    def work() -> None:
        with compute(ComputeConfig(device="cpu")):
            rank = process_index()
            assert generate_answers(model, processor, prompts[rank], max_new_tokens=4, divided=False) == expected[rank]

    assert together(work, 2) == [0, 0]


def test_the_command_starts_processes_as_train_does(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr(cli, "start", lambda processes, words: started.append((processes, words)) or 0)
    words = ["evaluate", str(model_folder), "--corpus", "x:test", "--processes", "2", "--items", "3"]
    assert cli.main(words) == 0
    assert started == [(2, words)]
    assert cli.main(["evaluate", str(model_folder), "--processes", "0"]) == 2
