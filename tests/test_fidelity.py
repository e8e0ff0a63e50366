"""The language of an answer: labelled strings, siblings that must not be guessed, and what cannot be told."""

import math

import pytest

from lvlm.errors import InputError
from lvlm.evaluate.fidelity import LanguageDetector, fidelity, undetermined
from lvlm.languages import table

TEXTS = {
    "en": ["on the left: a small red circle", "What colour is it?", "yes", "no", "three", "star"],
    "de": ["links: ein kleiner roter Kreis", "Welche Farbe ist das?", "ja", "nein", "drei", "Stern", "rot", "das Auto"],
    "fr": ["à gauche : un petit cercle rouge", "De quelle couleur ?", "oui", "non", "trois", "étoile"],
    "no": ["til venstre: en liten rød sirkel", "Hvilken farge er det?", "ja", "nei", "tre", "stjerne", "gul"],
    "da": ["til venstre: en lille rød cirkel", "Hvilken farve er det?", "ja", "nej", "tre", "stjerne", "gul"],
    "hr": ["lijevo: mali crveni krug", "Koje je boje?", "da", "ne", "tri", "zvijezda", "plava"],
    "bs": ["lijevo: mali crveni krug", "Koje je boje?", "da", "ne", "tri", "zvijezda", "plava"],
    "sr": ["лево: мали црвени круг", "Које је боје?", "да", "не", "три", "звезда"],
    "ru": ["слева: маленький красный круг", "Какого цвета?", "да", "нет", "три", "звезда"],
    "el": ["αριστερά: ένας μικρός κόκκινος κύκλος", "Τι χρώμα;", "ναι", "όχι", "τρία"],
    "he": ["משמאל: עיגול אדום קטן", "מה הצבע?", "כן", "לא", "שלוש"],
    "ar": ["على اليسار: دائرة حمراء صغيرة", "ما اللون؟", "نعم", "لا", "ثلاثة"],
    "ka": ["მარცხნივ: პატარა წითელი წრე", "რა ფერია?", "დიახ", "არა", "სამი"],
    "ja": ["左：小さな赤い丸", "何色ですか？", "はい", "いいえ", "星"],
    "zh": ["左邊：紅色小圓形", "甚麼顏色？", "是", "否", "星"],
}
DETECTOR = LanguageDetector.fit(TEXTS)

LABELLED = [
    ("a small red circle", "en"),
    ("RED!", "en"),
    ("ein roter Stern", "de"),
    ("rot", "de"),
    ("un cercle rouge", "fr"),
    ("À GAUCHE", "fr"),
    ("e\u0301toile", "fr"),
    ("en liten sirkel", "no"),
    ("nei", "no"),
    ("en lille cirkel", "da"),
    ("nej", "da"),
    ("црвени круг", "sr"),
    ("красный круг", "ru"),
    ("κόκκινος", "el"),
    ("πράσινο", "el"),  # never met, but no other of the languages writes Greek
    ("\u200fאדום\u200e", "he"),
    ("ירוק", "he"),
    ("أخضر", "ar"),
    ("მწვანე", "ka"),
    ("三角のかたち", "ja"),
    ("圓形", "zh"),
    ("three 3", "en"),
    ("ja, rød stjerne", None),  # Norwegian and Danish alike
    ("gul", None),
    ("tre", None),
    ("ja", None),  # German, Norwegian, Danish
    ("crveni krug", None),  # Croatian and Bosnian alike
    ("plava zvijezda", None),
    ("да", None),  # Russian and Serbian
    ("звезда", None),
    ("зелёный", None),  # never met, and two of the languages write Cyrillic
    ("star Stern", None),  # one word each
    ("red blorp", None),  # one word of two is not most of them
    ("blorp gnax", None),
    ("Paris", None),
    ("星", None),  # one character that both write
    ("2", None),
    ("3.5 %", None),
    ("", None),
    ("\u200f", None),
    ("?!…", None),
    ("�\x00", None),
]


@pytest.mark.parametrize(("text", "expected"), LABELLED)
def test_labelled_strings(text: str, expected: str | None) -> None:
    assert DETECTOR.detect(text) == expected


def test_the_order_of_languages_and_texts_changes_nothing() -> None:
    turned = LanguageDetector.fit({code: TEXTS[code][::-1] for code in reversed(TEXTS)})
    assert turned.languages == DETECTOR.languages
    assert [turned.detect(text) for text, _ in LABELLED] == [DETECTOR.detect(text) for text, _ in LABELLED]


def test_a_sibling_that_was_not_fitted_leaves_the_other_one_determined() -> None:
    alone = LanguageDetector.fit({code: TEXTS[code] for code in ("en", "no", "ru")})
    assert alone.detect("gul stjerne") == "no"
    assert alone.detect("зелёный") == "ru"


def test_every_script_of_the_language_table_has_a_rule() -> None:
    # One letter per script; a script without a rule would leave its languages undetermined for ever.
    letters = dict(
        Latn="a", Arab="ع", Cyrl="ж", Grek="ω", Hebr="ש", Geor="ქ", Deva="क", Beng="ক", Taml="க", Telu="క", Thai="ก",
        Laoo="ກ", Ethi="ሀ", Guru="ਕ", Tibt="ཀ", Khmr="ក", Mymr="က", Hang="가", Jpan="ひ", Hant="漢", Hans="汉",
        Armn="ա", Gujr="ક", Knda="ಕ", Mlym="ക", Orya="କ", Sinh="ක", Tfng="ⴰ", Cher="Ꭰ", Cakm="\U00011107",
        Olck="ᱚ", Thaa="ހ",
    )  # fmt: skip
    for code, row in table().items():
        letter = letters[row.script]
        # English counts among the Latin ones, fitted or not, so that it alone is told by its script there.
        expected = code if row.script != "Latn" or code == "en" else None
        assert LanguageDetector.fit({code: ["x"]}).detect(letter * 3) == expected, row


def test_an_english_answer_is_never_taken_for_the_only_language_fitted() -> None:
    swahili = LanguageDetector.fit({"sw": ["duara dogo jekundu"]})
    assert swahili.detect("duara jekundu") == "sw"
    assert swahili.detect("a small red circle") is None
    assert LanguageDetector.fit({"ru": TEXTS["ru"]}).detect("a small red circle") == "en"


def test_fidelity_counts_determined_answers_only() -> None:
    found = ["de", None, "en", "de", None]
    asked = ["de", "de", "de", "de", "de"]
    value, n = fidelity(found, asked)
    assert value == pytest.approx(200 / 3) and n == 3
    assert undetermined(found) == (40.0, 5)


def test_fidelity_of_nothing_determined_is_nan() -> None:
    value, n = fidelity([None, None], ["de", "de"])
    assert math.isnan(value)
    assert n == 0
    assert math.isnan(undetermined([])[0])


def test_an_unknown_language_is_an_error() -> None:
    with pytest.raises(InputError, match="'zz'"):
        LanguageDetector.fit({"zz": ["ja"]})


def test_texts_under_any_code_of_a_language_are_its_own() -> None:
    detector = LanguageDetector.fit({"nb": ["gul stjerne"], "nn": ["gul stjerne", "raud"]})
    assert detector.languages == ("en", "no")
    assert detector.detect("gul") == detector.detect("raud") == "no"
