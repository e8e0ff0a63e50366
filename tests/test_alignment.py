"""The alignment of languages in a model: what retrieval and CKA say of states that are known, and where they stand in a
run's record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from lvlm.cli import main
from lvlm.config import make_config
from lvlm.data.corpus import open_corpus
from lvlm.data.worlds.origins_writer import write_sentences
from lvlm.errors import InputError
from lvlm.evaluate.alignment import _means, linear_cka, measure_alignment, parallel_sentences, retrieval, score_rows
from lvlm.model.assembly import load_llm
from lvlm.records import ALIGNMENT_FILE, SCORES_FILE
from lvlm.run import run
from lvlm.settings import CorpusUse
from tests.tiny import tiny_world
from tests.train_world import write_corpus


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alignment") / "sentences"
    return write_sentences(folder, seed=0, train=24, test=20, languages=["en", "de", "sw"])


def uses(folder: Path, **changes: Any) -> list[CorpusUse]:
    return [CorpusUse(path=str(folder), split="test", **changes)]


def test_states_that_are_turned_and_moved_are_found_by_both_or_by_cka_alone() -> None:
    torch.manual_seed(0)
    states = torch.randn(40, 8)
    turned = states @ torch.linalg.qr(torch.randn(8, 8))[0]
    assert retrieval(states, states + 5) == 100 and linear_cka(states, states + 5) == pytest.approx(100)
    assert retrieval(states, turned) < 30 and linear_cka(states, turned) == pytest.approx(100)
    assert linear_cka(states, torch.randn(40, 8)) < 60
    assert linear_cka(states, torch.ones(40, 8)) != linear_cka(states, torch.ones(40, 8))  # NaN


def test_a_language_that_says_what_the_pivot_says_is_fully_aligned_and_padding_changes_nothing(sentences: Path) -> None:
    corpora = {str(sentences): open_corpus(sentences)}
    found = parallel_sentences(uses(sentences), corpora)
    llm, tokenizer = load_llm(tiny_world().llm, attn="sdpa", precision="fp32")
    table = measure_alignment(llm, tokenizer, {"en": found["en"], "de": found["en"], "sw": found["sw"]}, pivot="en")
    same, other = (table[(table["language"] == code) & (table["layer"] == 2)].iloc[0] for code in ("de", "sw"))
    assert same["retrieval"] == 100 and same["cka"] == pytest.approx(100) and other["cka"] < 99
    assert list(table[table["language"] == "sw"]["layer"]) == [0, 1, 2]
    together = _means(llm, tokenizer, found["sw"])
    for place in (0, 3):
        for layer, alone in zip(together, _means(llm, tokenizer, found["sw"][place : place + 1]), strict=True):
            assert torch.allclose(layer[place], alone[0], atol=1e-5)
    rows = score_rows(table)
    own = rows[(rows["language"] == "sw") & (rows["metric"] == "cka")]["value"].item()
    assert own == pytest.approx(table[(table["language"] == "sw") & (table["layer"] > 0)]["cka"].mean())
    assert set(rows[rows["language"] == "en"]["metric"]) == {"tokens_per_word"}


def test_sentences_that_two_ids_share_are_left_out_and_too_few_are_an_error(sentences: Path) -> None:
    corpora = {str(sentences): open_corpus(sentences)}
    assert len(parallel_sentences(uses(sentences, samples=7), corpora)["sw"]) == 7
    with pytest.raises(InputError, match="at least two of each"):
        parallel_sentences(uses(sentences), corpora, languages=["en"])
    noise = write_corpus(sentences.parent / "noise", items=8)  # each answer twice
    with pytest.raises(InputError, match="0 different sentences in 2 languages"):
        parallel_sentences(uses(noise), {str(noise): open_corpus(noise)})


def test_a_run_records_the_alignment_of_the_llm_that_vision_begins_with(sentences: Path, tmp_path: Path) -> None:
    noise = write_corpus(tmp_path / "noise")
    pictures = [{"path": str(noise), "split": "train"}]
    text = {"corpora": [{"path": str(sentences), "split": "train"}], "languages": ["en", "de"], "parallel": 1.0}
    data: dict[str, Any] = {
        "model": {"tower": tiny_world().tower, "llm": tiny_world().llm},
        "instruct": {"mix": {"corpora": pictures}, "steps": 2, "train": {"llm": "full"}},
        "evaluate": {
            "corpora": [{"path": str(noise), "split": "test"}],
            "items": 2,
            "max_new_tokens": 2,
            "alignment": [{"path": str(sentences), "split": "test"}],
        },
        "compute": {"device": "cpu", "threads": 1},
    }

    def measured(name: str) -> pd.DataFrame:
        run(make_config(data), tmp_path / name, home=tmp_path / "home")
        return pd.read_parquet(tmp_path / name / ALIGNMENT_FILE)

    before = measured("before")
    scores = pd.read_parquet(tmp_path / "before" / SCORES_FILE)
    assert set(scores[scores["task"] == "alignment"]["metric"]) == {"retrieval", "cka", "tokens_per_word"}
    data["instruct"]["steps"] = 1
    assert measured("shorter").equals(before)  # what is learned from images does not count
    data["align"] = {"mix": text, "train": {"adapter": "frozen", "llm": "full"}, "steps": 2, "optim": {"lr": 1e-2}}
    aligned = measured("aligned")
    assert not aligned.equals(before)
    data["instruct"]["steps"] = 2  # with the stage from the cache
    assert measured("again").equals(aligned)
    data["evaluate"]["pivot"] = "de"
    assert set(measured("pivot").dropna()["language"]) == {"en", "sw"}


def test_the_command_measures_a_language_model_and_a_run(
    sentences: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "table.parquet"
    line = ["alignment", tiny_world().llm, str(sentences), "--items", "10", "--out", str(out), "--device", "cpu"]
    assert main(line) == 0
    said = capsys.readouterr().out
    assert "10 sentences; by chance 10.0" in said and "sw" in said
    assert len(pd.read_parquet(out)) == 1 + 2 * 3
    assert main(["alignment", tiny_world().llm, str(sentences), "--pivot", "xx"]) == 2
