"""Answers that are led into a language: its name in the question, its first tokens in the answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lvlm.data.corpus import Corpus, open_corpus
from lvlm.evaluate import evaluate
from lvlm.evaluate.generate import Beginnings, Prompt, generate_answers
from lvlm.evaluate.kept import KeptAnswers
from lvlm.settings import EvaluateConfig
from tests.tiny import tiny_image, tiny_world
from tests.train_world import ANSWERS, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return open_corpus(write_corpus(tmp_path_factory.mktemp("control") / "noise"))


def predictions(corpus: Corpus, **changes: Any) -> Any:
    model, processor = tiny_world().assemble()
    config = EvaluateConfig(corpora=[{"path": str(corpus.folder), "split": "test"}], max_new_tokens=40, **changes)
    return evaluate(model, processor, config, {str(corpus.folder): corpus})[1]


def test_a_question_ends_with_the_english_name_of_its_language_and_nothing_else_changes(corpus: Corpus) -> None:
    free, named = predictions(corpus), predictions(corpus, name_language=True)
    ends = {"en": "\nAnswer in English.", "de": "\nAnswer in German."}
    assert list(named["prompt"]) == [row.prompt + ends[row.language] for row in free.itertuples()]
    assert list(named["item"]) == list(free["item"]) and list(named["answer"]) == list(free["answer"])


@pytest.mark.parametrize("tokens", [1, 2])
def test_first_tokens_are_those_with_which_answers_in_the_asked_language_begin(corpus: Corpus, tokens: int) -> None:
    _, processor = tiny_world().assemble()
    for row in predictions(corpus, forced_tokens=tokens).itertuples():
        ids = processor.tokenizer(list(ANSWERS[row.language]), add_special_tokens=False)["input_ids"]
        begins = {processor.tokenizer.decode(one[:tokens]).strip() for one in ids}
        assert any(row.prediction.startswith(text) for text in begins), (row.language, row.prediction)


def test_as_many_tokens_as_answers_have_choose_one_of_them_and_then_leave_off(corpus: Corpus) -> None:
    for row in predictions(corpus, forced_tokens=40).itertuples():
        assert any(row.prediction.startswith(text) for text in ANSWERS[row.language])


def test_what_is_forced_depends_on_no_batch_and_leaves_other_prompts_alone(tmp_path: Path) -> None:
    model, processor = tiny_world().assemble()
    tiny_image(1).save(tmp_path / "one.png")
    image = (tmp_path / "one.png",)
    forced = Prompt("What is it?", image, beginnings=Beginnings(("rot", "ein Kreis"), 2))
    prompts = [forced, Prompt("What is it?", image), Prompt("Was?", image, beginnings=Beginnings(("links",), 9))]
    one, many = (generate_answers(model, processor, prompts, max_new_tokens=8, batch_size=size) for size in (1, 8))
    assert one == many
    assert one[1] == generate_answers(model, processor, [prompts[1]], max_new_tokens=8)[0]
    assert one[2].startswith("links")


def test_kept_answers_of_another_control_are_not_taken(corpus: Corpus, tmp_path: Path) -> None:
    kept = KeptAnswers(tmp_path, {"model": 1}, home=tmp_path)
    assert kept.open([], 8) == {}
    kept.add({0: "rot"})
    again = KeptAnswers(tmp_path, {"model": 1}, home=tmp_path)
    assert again.open([], 8, 1) == {} and KeptAnswers(tmp_path, {"model": 1}, home=tmp_path).open([], 8) == {0: "rot"}
