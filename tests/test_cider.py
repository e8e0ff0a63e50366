"""CIDEr has the values of the reference implementation, depends on the whole set, and divides words in every script."""

import math

import pytest

from lvlm.evaluate.cider import Cider
from lvlm.evaluate.segments import segment, segmentation

GOLDS = {
    "1": ["A small red boat lies on the lake.", "The boat's sail isn't white; it's red."],
    "2": ["Two children play with a ball in the park.", "Children, two of them, are playing ball, happily!"],
    "3": ["A cat sleeps on a chair.", "There is a cat on the old chair - asleep.", "A sleeping cat."],
    "4": ["Ein Hund läuft über die grüne Wiese.", "Der Hund rennt durch das Gras."],
    "5": ["A red car, parked near the lake.", "The car is red."],
}
# PTBTokenizer (Stanford CoreNLP 3.4.1) and CiderScorer of pycocoevalcap 1.2 on the captions above.
REFERENCE = {
    "1": ("A red boat lies on the lake, and it's small.", 3.3316539246344123),
    "2": ("Two children are playing with the ball.", 1.9792926696145297),
    "3": ("A dog sleeps on a chair.", 2.0173343957569836),
    "4": ("Ein Hund läuft durch das grüne Gras.", 2.3668976420579138),
    "5": ("The red car car car is near a lake.", 1.15026857786526),
}


def test_it_has_the_values_of_the_reference_implementation() -> None:
    cider = Cider(GOLDS, "en")
    for item, (caption, value) in REFERENCE.items():
        assert cider.score(item, caption) == pytest.approx(100 * value, rel=1e-12)


def test_a_gold_caption_alone_has_the_most_and_other_words_have_nothing() -> None:
    cider = Cider({item: golds[:1] for item, golds in GOLDS.items()}, "en")
    assert cider.score("1", "a small red boat lies on the lake") == pytest.approx(1000)
    assert cider.score("1", "nothing of it") == cider.score("1", "") == 0.0


def test_words_that_every_item_has_count_for_nothing_and_one_item_gives_no_number() -> None:
    golds = {"1": ["a boat"], "2": ["a tree"]}
    assert Cider(golds, "en").score("1", "a") == 0.0 < Cider(golds, "en").score("1", "boat")
    assert math.isnan(Cider({"1": ["a boat"]}, "en").score("1", "a boat"))


def test_punctuation_case_and_unicode_form_of_a_caption_do_not_matter() -> None:
    cider = Cider(GOLDS, "de")
    said = cider.score("4", "ein Hund läuft über die Wiese")
    assert said == cider.score("4", "EIN HUND: la\u0308uft, über die Wiese!")


def test_clitics_are_words_where_spaces_are() -> None:
    assert segment("The boat's sail isn’t white", "en") == ("the", "boat", "s", "sail", "is", "n't", "white")
    assert segmentation("en") is None


@pytest.mark.parametrize(
    ("code", "caption", "some"),
    [
        ("zh", "湖上有一艘红色的船。", "红色"), ("ja", "湖に赤い船があります", "赤い"),
        ("th", "มีเรืออยู่ในทะเลสาบ", "ทะเลสาบ"), ("lo", "ມີເຮືອຢູ່ໃນທະເລສາບ", "ທະເລສາບ"),
        ("km", "មានទូកនៅក្នុងបឹង", "ទូក"), ("my", "ရေကန်ထဲမှာ လှေရှိတယ်", "ရေကန်"),
    ],
)  # fmt: skip
def test_icu_divides_what_is_written_without_spaces(code: str, caption: str, some: str) -> None:
    said = segment(caption, code)
    assert some in said and 2 < len(said) < len(caption)
    assert all(any(map(str.isalnum, word)) for word in said)
    assert "ICU" in str(segmentation(code))
    spaced = " ".join(caption.replace(" ", ""))
    assert segment(spaced, code) == said, "spaces that a corpus has put between words change nothing"


def test_tibetan_is_divided_into_syllables() -> None:
    assert segment("བོད་ཡིག་ནི། ལེགས་པོ་འདུག།", "bo") == ("བོད", "ཡིག", "ནི", "ལེགས", "པོ", "འདུག")
    assert segmentation("bo") == segmentation("dz") == "by syllable"
