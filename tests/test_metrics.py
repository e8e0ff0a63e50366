"""Short answers and captions are compared by the same rules in every language: what is equal and what is not."""

import math
import subprocess
import sys
from collections import Counter

import pytest

from lvlm.errors import InputError
from lvlm.evaluate.metrics import AttributeReader, equal, majority, normalise, normalised, token_f1, words


@pytest.mark.parametrize(
    ("written", "same_as"),
    [
        ("  Red. ", "red"),
        ("“rouge”!", "rouge"),
        ("¿De qué color es?", "de qué color es"),
        ("Ｒｅｄ", "red"),
        ("e\u0301toile", "étoile"),
        ("\u200fאדום\u200e", "אדום"),
        ("\u2067أحمر\u2069.", "أحمر"),
        ("İKİ", "iki"),
        ("STRASSE", "straße"),
        ("ΚΎΚΛΟΣ", "κύκλος"),
        ("a\t small\n star", "a small star"),
        ("( - 3 )", "3"),
        ("−3", "-3"),
    ],
)
def test_spelling_variants_of_one_answer_are_equal(written: str, same_as: str) -> None:
    assert normalise(written) == normalise(same_as)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("año", "ano"),
        ("кот", "кит"),
        ("-3", "3"),
        ("?", "!"),
        ("", "?"),
        ("l'or", "lor"),
        ("й", "и"),
        ("ı", "i"),
        ("3.5", "35"),
    ],
)
def test_different_answers_stay_different(one: str, other: str) -> None:
    assert normalise(one) != normalise(other)


def test_normalise_is_idempotent() -> None:
    for text in ("«Дом».", "--3", "“(a)”", "ﬁn", "...", "İı", "a .b. "):
        assert normalise(normalise(text)) == normalise(text)


def test_a_short_answer_is_right_as_a_whole_or_not_at_all() -> None:
    assert equal("red.", ["blue", "Red"]) == 100.0
    assert equal("dark red", ["red"]) == 0.0


def test_an_empty_prediction_is_never_right() -> None:
    assert equal("", ["", "red"]) == 0.0
    assert equal("\u200f", [""]) == 0.0


def test_words_lose_their_punctuation_and_spaceless_scripts_are_split() -> None:
    assert words("on the left: small red circles (three); on top.") == (
        "on", "the", "left", "small", "red", "circles", "three", "on", "top",
    )  # fmt: skip
    assert words("赤い丸") == ("赤", "い", "丸")
    assert words("— … !") == ()


@pytest.mark.parametrize(
    ("one", "other", "parts"),
    [
        ("เสื้อ", "เสือ", 3), ("ม้า", "มา", 2), ("ໜ້າ", "ໜາ", 3), ("ကို", "ကု", 1), ("ក្រហម", "ក្រហាម", 4),
        ("བོད", "བད", 2),
    ],
)  # fmt: skip
def test_marks_stay_with_their_character_where_no_space_stands_between_words(one: str, other: str, parts: int) -> None:
    assert len(words(one)) == parts and all(word[0].isalpha() for word in words(one))
    assert words(one) != words(other)
    assert token_f1(one, [other]) < 100.0 and normalised(one, [other], "en") == 0.0
    assert "".join(words(one)) == normalise(one)


ENGLISH = {
    "red": "colour:red", "circle": "shape:circle", "circles": "shape:circle", "three": "count:3",
    "on the left": "place:left", "left": "side:left", "small": "size:small", "blue": "colour:blue",
    "star": "shape:star",
}  # fmt: skip


def test_attributes_are_read_longest_match_first() -> None:
    reader = AttributeReader.of(ENGLISH)
    assert reader.read("On the left: small RED circles (three)") == Counter(
        ["place:left", "size:small", "colour:red", "shape:circle", "count:3"]
    )
    assert reader.read("left of the circle") == Counter(["side:left", "shape:circle"])


def test_caption_f1_by_hand() -> None:
    reader = AttributeReader.of(ENGLISH)
    gold = ["on the left: a small red circle"]
    assert reader.f1("On the left: a small, red circle.", gold) == 100.0
    # said {left, red, star}, wanted {left, small, red, circle}: precision 2/3, recall 2/4
    assert reader.f1("on the left: a red star", gold) == pytest.approx(100 * 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    # Repeating an attribute does not earn it twice.
    assert reader.f1("red red red red", gold) == pytest.approx(100 * 2 * 1 / (4 + 4))
    assert reader.f1("", gold) == 0.0
    assert reader.f1("blue star", [*gold, "a blue star"]) == 100.0


def test_a_gold_caption_without_attributes_gives_no_number() -> None:
    assert math.isnan(AttributeReader.of(ENGLISH).f1("red", ["nothing here"]))
    assert math.isnan(token_f1("red", ["..."]))


def test_two_attributes_behind_one_surface_are_an_error() -> None:
    with pytest.raises(InputError, match=r"attributes\.json, en.*colour:red.*shape:star"):
        AttributeReader.of({"red": "colour:red", "Red.": "shape:star"}, where="attributes.json, en")
    with pytest.raises(InputError, match="no word"):
        AttributeReader.of({"--": "colour:red"})


def test_token_f1_takes_the_best_reference() -> None:
    assert token_f1("a red star", ["Two dogs", "A red star!"]) == 100.0
    assert token_f1("a star", ["a red star"]) == pytest.approx(80.0)


def test_majority_counts_an_answer_once_per_item_and_ignores_spelling_and_order() -> None:
    golds = [["blue"], ["Red", "red"], ["red."], ["green", "blue"], ["red"]]
    assert normalise(majority(golds)) == "red"
    tied = [["b"], ["a"], ["b"], ["a"]]
    assert majority(tied) == majority(tied[::-1]) == "a"
    assert majority([]) == ""


def test_metrics_need_no_torch() -> None:
    modules = "lvlm.evaluate.metrics, lvlm.evaluate.fidelity, lvlm.evaluate.tiers, lvlm.evaluate"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
