"""An answer to a question with choices is told apart from the words around it; a letter in a word chooses nothing."""

from string import ascii_uppercase

import pytest

from lvlm.evaluate.choices import chosen_letter, chosen_word, options
from lvlm.evaluate.metrics import exact, normalised, plain, relaxed

PROMPT = """Which is it? A. Milne wrote one.
There are several options:
A. a red car
B. Vitamin A
C. der Hund
D.
Answer with the option's letter from the given choices directly."""


def test_options_are_the_last_list_of_a_prompt_that_begins_with_a() -> None:
    assert options(PROMPT) == {"A": "a red car", "B": "Vitamin A", "C": "der Hund", "D": ""}
    assert options("A. one\nB. two\nQuestion\n A. three\n B. four") == {"A": "three", "B": "four"}
    assert len(options("\n".join(f"{letter}. x" for letter in ascii_uppercase) + "\nX. y")) == 26
    assert options("A. Milne wrote this.\nWho?") == options("B. two\nC. three") == options("What?") == {}


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("A", "A"), ("(A)", "A"), ("a.", "A"), (" **B** ", "B"), ("B) Vitamin A", "B"), ("A. a red car", "A"),
        ("answer: A", "A"), ("Antwort: (C)", "C"), ("答案：B", "B"), ("The answer is D.", "D"), ("Option B", "B"),
        ("The correct one is (B), I think", "B"), ("the red car", "A"), ("A red car.", "A"), ("vitamin a", "B"),
        ("Hund", "C"), ("E", None), ("A or B", None), ("(A) or (B)", None), ("sofa", None), ("apple", None),
        ("A dog is there", None), ("", None), ("This is A dog", None), ("a.k.a. nothing", None), ("Because", None),
    ],
)  # fmt: skip
def test_a_letter_is_told_from_the_words_around_it(answer: str, letter: str | None) -> None:
    assert chosen_letter(answer, options(PROMPT), "de") == letter


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        ("Yes", "yes"), ("No, it is not.", "no"), ("I would say: MAYBE", "maybe"), ("yes or no", None), ("", None),
        ("nothing", None), ("none", None),
    ],
)  # fmt: skip
def test_yes_and_no_are_whole_words_and_one_of_them(answer: str, word: str | None) -> None:
    assert chosen_word(answer, ("yes", "no", "maybe")) == word


def test_exact_is_centurios_and_forgives_case_and_outer_space_alone() -> None:
    assert exact(" Red ", ["red"]) == exact("b", ["a", "B "]) == 100.0
    assert exact("red.", ["red"]) == exact("e\u0301", ["é"]) == exact("A", ["apple"]) == 0.0


@pytest.mark.parametrize(
    ("prediction", "gold", "code"),
    [
        ("The cat.", "cat", "en"), ("das Boot", "Boot", "de"), ("the boat", "boat", "sw"), ("३", "3", "hi"),
        ("٢٥", "25", "ar"), ("red, blue", "Red blue", "en"), ("红 色", "红色", "zh"), ("l'or", "L'OR", "fr"),
    ],
)  # fmt: skip
def test_normalised_forgives_articles_digits_and_punctuation(prediction: str, gold: str, code: str) -> None:
    assert normalised(prediction, [gold], code) == 100.0


def test_normalised_still_tells_answers_apart() -> None:
    assert normalised("a", ["the"], "en") == 0.0 and plain("A", "en") == "a", "an article alone is an answer"
    assert normalised("der Hund", ["Hund"], "fr") == 0.0, "an article of another language is a word"
    assert normalised("-3", ["3"], "en") == normalised("", [""], "en") == normalised("año", ["ano"], "es") == 0.0
    assert normalised("+", ["+"], "en") == 100.0 and normalised("+", ["="], "en") == 0.0


def test_relaxed_finds_whole_words_at_either_end() -> None:
    assert relaxed("It is a red car", ["red car"], "en") == relaxed("red car, I think", ["red car"], "en") == 100.0
    assert relaxed("一辆红色的车", ["红色的车"], "zh") == 100.0
    assert relaxed("sofa", ["a"], "en") == relaxed("one red car here", ["red car"], "en") == 0.0
    assert relaxed("", ["red"], "en") == relaxed("red", [""], "en") == 0.0
