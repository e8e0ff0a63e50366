"""Texts on their way to a translator and back: what of them stays, numbers and their stand-ins, pieces of long ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvlm.translate.faults import fault, numbers
from lvlm.translate.sentences import pieces
from lvlm.translate.spans import put_together, take_apart
from lvlm.translate.stand_ins import hide_numbers, show_numbers

PLACEHOLDER = "<image_placeholder>"


@given(st.lists(st.sampled_from([*"ab ä.Z1)\n\t三-*", PLACEHOLDER, "A. ", "12) "]), max_size=30).map("".join))
def test_the_spans_of_a_text_are_the_text(text: str) -> None:
    spans = take_apart(text)
    assert "".join(span.text for span in spans) == text
    assert put_together(spans, {span.text: span.text for span in spans}) == text
    for span in spans:
        if span.translated:
            assert span.text == span.text.strip() and "\n" not in span.text and PLACEHOLDER not in span.text
        else:
            letters = [sign for sign in span.text.replace(PLACEHOLDER, "") if sign.isalpha()]
            assert len(letters) <= 2, "at most a list's marker and a lone letter"


@pytest.mark.parametrize("translation", ["X1 X1", "X1", "X1 X2 X3", "", "X12", "X1 X2X2"])
def test_stand_ins_that_do_not_all_come_back_once_give_no_translation(translation: str) -> None:
    assert show_numbers("7 and 8", translation) is None
    assert show_numbers("7 and 8", "x2, dann X1") == "8, dann 7"


@given(st.lists(st.sampled_from([*"ab X.,:/'0123456789 "]), max_size=30).map("".join))
def test_hiding_and_showing_numbers_gives_the_text(text: str) -> None:
    hidden = hide_numbers(text)
    if hidden is not None:
        assert show_numbers(text, hidden) == text


@pytest.mark.parametrize(
    ("text", "translation", "reason"),
    [
        ("3 dogs", "٣ كلاب", ""),
        ("3 dogs", "३ कुत्ते", ""),
        ("12 dogs", "สุนัข ๑๒ ตัว", ""),
        ("12 dogs", "１２匹の犬", ""),
        ("In 2019, 1,250 people", "2019年有1250人", ""),
        ("1,250,000", "1.250.000", ""),
        ("1,250,000", "1 250 000", ""),
        ("1250000", "12,50,000", ""),
        ("3.5 m", "3,5 м", ""),
        ("at 10:30", "um 10.30", ""),
        ("3 and 3", "3", "numbers"),
        ("12", "21", "numbers"),
        ("3.5", "35", "numbers"),
        ("1,250", "1.2", "numbers"),
        ("none", "0", "numbers"),
    ],
)
def test_numbers_are_the_same_in_the_digits_of_any_script(text: str, translation: str, reason: str) -> None:
    assert fault(text, translation) == reason


@given(st.lists(st.integers(0, 10**9), max_size=5))
def test_numbers_survive_another_order_and_other_digits(values: list[int]) -> None:
    deva = str.maketrans("0123456789", "०१२३४५६७८९")
    written = " und ".join(f"{value:,}" for value in values)
    assert numbers(written) == numbers(" and ".join(f"{value}" for value in reversed(values)).translate(deva))


@given(st.text(st.sampled_from("ab. ,!?。\n"), max_size=60), st.integers(1, 20))
def test_pieces_fit_and_lose_nothing_but_blanks(text: str, most: int) -> None:
    parts = pieces(text, lambda piece: len(piece) <= most)
    assert all(len(part) <= most for part in parts)
    assert "".join("".join(parts).split()) == "".join(text.split())


def test_pieces_are_whole_sentences_where_those_fit() -> None:
    text = "One is here. Two is there! Is three, which is long, anywhere? 四在这里。五在那里。"
    assert pieces(text, lambda piece: len(piece) <= 27) == [
        "One is here. Two is there!", "Is three, which is long,", "anywhere?", "四在这里。五在那里。",
    ]  # fmt: skip
