"""Words and fonts of text in pictures: where they come from, which are left out, who may show them, what is missing."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from PIL import ImageFont

from lvlm.data.worlds import typefaces as typefaces_module
from lvlm.data.worlds import words as words_module
from lvlm.data.worlds.at_hand import SMPQA_LANGUAGES, written, written_languages
from lvlm.data.worlds.cldr import DEBIAN_FOLDER
from lvlm.data.worlds.typefaces import face_for, typefaces
from lvlm.data.worlds.words import FEWEST_WORDS, given_lists, load_words, pool_of, words_in
from lvlm.errors import InputError
from lvlm.languages import language

NOTO = all(typefaces_module._installed(family, "Regular") for family in ("NotoSansThai", "NotoSansCJK"))
needs_cldr = pytest.mark.skipif(not DEBIAN_FOLDER.is_dir(), reason="needs Debian's unicode-cldr-core")
needs_noto = pytest.mark.skipif(not NOTO, reason="needs Debian's fonts-noto-core and fonts-noto-cjk")


def write_list(folder: Path, code: str, words: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{code}.txt"
    path.write_text("".join(f"{word}\t{2000 - number}\n" for number, word in enumerate(words)), encoding="utf-8")
    return path


def made_up(count: int, *, prefix: str = "wa") -> list[str]:
    return [prefix + "".join("abcdefghij"[int(digit)] for digit in f"{number:04d}") for number in range(count)]


def test_two_lists_of_one_language_are_an_error(tmp_path: Path) -> None:
    folder = write_list(tmp_path / "lists", "he", ["abc"]).parent
    write_list(folder, "iw", ["abc"])
    with pytest.raises(InputError, match=r"Both .*he\.txt and .*iw\.txt are for Hebrew"):
        given_lists(folder)


def test_the_rarer_half_of_a_frequency_list_is_its_second_half() -> None:
    english = load_words("en")
    assert english.origin.startswith("wordfreq") and len(english.words) == words_module.LONGEST_LIST
    assert english.rarer_half == english.words[2500:] and "because" in english.words[:2500]
    assert english.left_out["too short"] > 0


@pytest.mark.parametrize("code", ["de", "ar", "ru", "hi", "ko", "zh", "th", "el", "no", "tl"])
def test_words_are_letters_of_the_language_s_script_and_none_is_english(code: str) -> None:
    found = load_words(code).words
    assert len(found) == len({word.casefold() for word in found}) >= 3000
    assert all(unicodedata.category(letter)[0] in "LM" for word in found for letter in word)
    assert all(unicodedata.is_normalized("NFC", word) for word in found)
    assert not {"because", "people"} & set(found)
    assert not any(word.endswith("σ") for word in found), "a sigma at the end is written otherwise"


def test_a_word_belongs_to_one_split_in_every_language() -> None:
    shown = {code: {word: pool for pool in ("train", "tune", "test") for word in words_in(
        load_words(code).words, pool, language=code)} for code in ("de", "no", "tl")}  # fmt: skip
    shared = set(shown["de"]) & set(shown["no"])
    assert len(shared) > 50 and all(shown["de"][word] == shown["no"][word] for word in shared)
    shares = [
        sum(pool == name for pool in shown["tl"].values()) / len(shown["tl"]) for name in ("train", "tune", "test")
    ]
    assert shares == pytest.approx([0.6, 0.1, 0.3], abs=0.03)
    assert pool_of("Straße") == pool_of("STRASSE"), "case makes no other word"


@pytest.mark.system
@needs_cldr
def test_cldr_has_words_of_languages_without_a_frequency_list() -> None:
    for code in ("zu", "yo", "am", "km", "sr", "cy"):
        found = load_words(code)
        assert found.origin.startswith("Unicode CLDR") and len(found.rarer_half) > 500, code
        assert all(words_in(found.rarer_half, pool, language=code) for pool in ("train", "tune", "test"))


def test_a_user_s_list_comes_first_and_may_carry_counts(tmp_path: Path) -> None:
    folder = write_list(tmp_path / "lists", "zu", [*made_up(1000), "x1y", "слово", "ayam goreng"]).parent
    (folder / "en.txt").write_text("\n".join(made_up(800, prefix="en")), encoding="utf-8")
    assert set(given_lists(folder)) == {"zu", "en"}
    zulu = load_words("zu", folder)
    assert zulu.origin == "zu.txt" and zulu.words == (*made_up(1000), "ayam goreng")
    assert zulu.left_out == {"in another script": 1, "not letters alone": 1}
    found, missing = written_languages(["zu", "en", "de"], folder, rarer=True)
    assert [entry.words.origin.split()[0] for entry in found] == ["en.txt", "wordfreq", "zu.txt"] and not missing
    assert load_words("zu", folder / "zu.txt").words == zulu.words


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: load_words("la"), "no words at hand in 'la'"),
        (lambda folder: load_words("en", folder / "absent"), "absent does not exist"),
        (lambda folder: load_words("en", folder), "holds no word list"),
        (lambda folder: given_lists(write_list(folder, "klingon", ["abc"])), "Unknown language"),
        (lambda folder: load_words("en", write_list(folder, "en", ["слово"])), "no word in the script Latn"),
        (lambda folder: written("en", write_list(folder, "en", made_up(60)), rarer=True), f"needs {FEWEST_WORDS}"),
        (lambda folder: written_languages(["de"], write_list(folder, "en", made_up(9)), rarer=True), "list for en"),
        (lambda folder: written_languages([], None, rarer=True), "empty"),
    ],
)  # fmt: skip
def test_what_is_missing_or_idle_is_an_error(tmp_path: Path, make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(tmp_path)  # type: ignore[operator]


def test_a_script_without_a_font_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(typefaces_module, "_system_fonts", lambda: ())
    caches = (typefaces_module._installed, typefaces)
    for cached in caches:
        cached.cache_clear()
    try:
        for code, package in (("th", "fonts-noto-core"), ("hi", "fonts-noto-core"), ("ko", "fonts-noto-cjk")):
            with pytest.raises(InputError, match=rf"no font here for '{code}'.*apt-get install {package}"):
                typefaces(code)
        found, missing = written_languages(["T5"], None, rarer=True)
        assert {entry.code for entry in found} == {"en", "ar", "de", "es", "fr"} and set(missing) == {"ja", "zh"}
    finally:
        for cached in caches:
            cached.cache_clear()


def test_a_word_without_glyphs_is_never_drawn() -> None:
    face = typefaces("en")[0]
    assert face.lacks("straße") == "" and face.lacks("ไทย") == "ทยไ"
    with pytest.raises(InputError, match=r"cannot draw 'ท' \(U\+0E17\)"):
        face.ink("ไทย", 26)
    chosen, can = face_for(["alpha", "beta", "gamma", "日本"], "en")
    assert chosen == face and can == ("alpha", "beta", "gamma")
    with pytest.raises(InputError, match="No font here can write most words"):
        face_for(["日本", "東京"], "en")


@pytest.mark.parametrize(
    ("code", "word"),
    [("ar", "مرحبا"), pytest.param("hi", "विद्यार्थी", marks=[pytest.mark.system, needs_noto]),
     pytest.param("th", "ที่", marks=[pytest.mark.system, needs_noto]),
     pytest.param("bn", "শিক্ষা", marks=[pytest.mark.system, needs_noto])],
)  # fmt: skip
def test_letters_are_shaped_and_not_set_one_after_the_other(code: str, word: str) -> None:
    face = typefaces(code)[0]
    basic = ImageFont.truetype(str(face.path), 60, index=face.number, layout_engine=ImageFont.Layout.BASIC)
    if code == "th":  # marks stand on their letter: both are as wide as the letter alone
        assert face.font(60).getlength(word) == pytest.approx(face.font(60).getlength(word[0]), abs=1)
        assert len({face.ink(text, 60).tobytes() for text in (word, word[:2], word[0])}) == 3
        return
    plain = basic.getmask(word)
    shaped = face.ink(word, 60)
    assert shaped.size != plain.size and abs(shaped.width - plain.size[0]) > 3
    assert face.direction == ("rtl" if language(code).right_to_left else "ltr")


@pytest.mark.system
@needs_noto
def test_every_language_of_smpqa_has_words_and_a_font() -> None:
    found, missing = written_languages(None, None, rarer=True)
    assert {entry.code for entry in found} == set(SMPQA_LANGUAGES) and not missing
    for entry in found:
        assert all(len(words) >= FEWEST_WORDS for words in entry.pools.values())
        assert not any(entry.face.lacks(word) for words in entry.pools.values() for word in words)
        assert "tune" in entry.record() and str(entry.face) == entry.record()["font"]
