"""Answers one by one: what became of each, confusions of languages, and where arms disagree."""

from __future__ import annotations

import pandas as pd
import pytest

from ablations import load_results
from ablations.answers import KINDS, confusion, counted, kind_shares, kinds
from lvlm.errors import InputError
from tests.synthetic_results import write_answers, write_study

ROWS = [  # language, score, in any language, language of the answer, kind
    ("de", 100.0, 100.0, "de", "right"),
    ("de", 50.0, 50.0, None, "right"),
    ("de", 0.0, 100.0, "en", "right, in another language"),
    ("de", 0.0, 66.7, None, "right, in another language"),
    ("de", 0.0, 0.0, "de", "wrong"),
    ("de", 0.0, 100.0, "de", "wrong"),
    ("de", 0.0, 0.0, "fr", "wrong, in another language"),
    ("de", 0.0, float("nan"), None, "wrong, language undetermined"),
]


def answers():
    columns = ["language", "score", "score_any_language", "answer_language", "kind"]
    return pd.DataFrame(ROWS, columns=columns).assign(arm="a", seed=0, task="vqa")


def test_every_answer_is_of_one_kind():
    found = kinds(answers())
    assert found.astype(str).tolist() == answers()["kind"].tolist()
    assert set(found) == set(KINDS)


def test_counts_keep_every_answer_and_name_what_cannot_be_told():
    found = counted(answers())
    assert found["n"].sum() == len(ROWS)
    assert found.loc[found["answer_language"] == "undetermined", "n"].sum() == 3


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    study = write_study(home, "drivers")
    write_answers(home / "studies" / "drivers", study, items=4)
    return load_results("drivers", home=home)


def test_a_row_of_the_confusion_is_a_hundred_percent_of_the_answers_in_a_language(results):
    found = confusion(results, arm={"languages": "en"})
    shares = found.drop(columns="answers")
    assert shares.sum(axis=1).tolist() == pytest.approx([100.0] * len(shares))
    assert list(shares.columns)[: len(shares)] == list(shares.index) and shares.columns[-1] == "undetermined"
    rows = pd.read_parquet(results.folder / "predictions.parquet")
    own = rows[(rows["arm"] == results.label({"languages": "en"})) & (rows["language"] == "ka")]
    assert found.loc["ka", "en"] == pytest.approx(100 * (own["answer_language"] == "en").mean())
    assert found.loc["ka", "answers"] == len(own)
    with pytest.raises(InputError, match="no answers to the task 'maths'"):
        confusion(results, task="maths")


def test_shares_of_kinds_stand_in_the_order_of_arms_and_languages(results):
    found = kind_shares(results, task="vqa")
    assert list(dict.fromkeys(found.index.get_level_values("arm"))) == list(results.arms().index)
    assert found[list(KINDS)].sum(axis=1).tolist() == pytest.approx([100.0] * len(found))


def test_items_on_which_arms_disagree_come_with_image_and_answers(results):
    arms = [results.baseline, results.label({"languages": "en"})]
    found = results.disagreements(arms=arms, task="vqa", most=3)
    assert len(found.table) == 3 and found.table["item"].is_unique
    spread = (found.table["baseline"] - found.table["English only"]).abs()
    assert spread.is_monotonic_decreasing and spread.iloc[0] > 0.5
    page = found._repr_html_()
    assert page.count("<img alt=") == 3 and "3 of 3 right" in page and "gold" in page
    assert "<script>" not in page and "&lt;script&gt;" in page, "what a model says is text, not markup"
    with pytest.raises(InputError, match="no answers of these arms"):
        results.disagreements(task="vqa", languages=["zu"])


def test_a_study_without_answers_says_how_to_write_them(tmp_path):
    write_study(tmp_path, "tiling")
    with pytest.raises(InputError, match="python -m sweeps export tiling"):
        load_results("tiling", home=tmp_path).confusion()
