"""In which language an answer is: a detector that learns from the corpora's own text and says when it cannot tell.
Called by `lvlm.evaluate` for `answer_language`, fidelity and the undetermined share; torch-free."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from lvlm.evaluate.metrics import words
from lvlm.languages import in_table_order, language

_SCRIPTS = {
    "LATIN": ("Latn",), "ARABIC": ("Arab",), "CYRILLIC": ("Cyrl",), "GREEK": ("Grek",), "HEBREW": ("Hebr",),
    "GEORGIAN": ("Geor",), "DEVANAGARI": ("Deva",), "BENGALI": ("Beng",), "TAMIL": ("Taml",), "TELUGU": ("Telu",),
    "THAI": ("Thai",), "LAO": ("Laoo",), "ETHIOPIC": ("Ethi",), "GURMUKHI": ("Guru",), "TIBETAN": ("Tibt",),
    "KHMER": ("Khmr",), "MYANMAR": ("Mymr",), "HANGUL": ("Hang",), "HIRAGANA": ("Jpan",), "KATAKANA": ("Jpan",),
    "ARMENIAN": ("Armn",), "GUJARATI": ("Gujr",), "KANNADA": ("Knda",), "MALAYALAM": ("Mlym",), "ORIYA": ("Orya",),
    "SINHALA": ("Sinh",), "TIFINAGH": ("Tfng",), "CHEROKEE": ("Cher",), "CHAKMA": ("Cakm",), "OL": ("Olck",),
    "THAANA": ("Thaa",), "CJK": ("Hant", "Hans", "Jpan"),
}  # fmt: skip
"""First word of a character's Unicode name -> the scripts of the language table that write with it."""


@lru_cache(maxsize=4096)
def scripts_of(character: str) -> tuple[str, ...]:
    """The scripts of the language table that write with a letter; none for other characters."""
    name = unicodedata.name(character, "")
    return _SCRIPTS.get(name.partition(" ")[0], ()) if character.isalpha() else ()


@dataclass(frozen=True, slots=True)
class LanguageDetector:
    """Tells apart the languages it was fitted on and English, and only these.

    Every word of an answer names the languages that it can belong to: those in whose text it was met, or, for a word
    never met, the language that alone writes in its script. The answer's language is the one that most of its words
    (more than half) can belong to and no other language equals. Anything else is undetermined: digits, empty text,
    garbled words, words that languages share. So a sibling language (no/da, hr/bs) is never guessed, and the share that
    cannot be told is reported beside the fidelity. English always counts among the languages of its script, because
    models fall back on it: where nothing but Swahili was fitted, an English answer is not taken for Swahili.
    """

    languages: tuple[str, ...]
    vocabulary: Mapping[str, frozenset[str]]
    by_script: Mapping[str, frozenset[str]]

    @property
    def note(self) -> str:
        """What it is, for the notes of scores."""
        return f"the words of the corpora and the scripts of {', '.join(self.languages)}"

    @classmethod
    def fit(cls, texts: Mapping[str, Iterable[str]]) -> LanguageDetector:
        """Learn word -> languages from `{language: texts}`; an unknown language code is an error."""
        own: dict[str, set[str]] = {"en": set()}
        for name, some in texts.items():
            own.setdefault(language(name).code, set()).update(some)
        codes = in_table_order(own)
        vocabulary: dict[str, set[str]] = {}
        by_script: dict[str, set[str]] = {}
        for code in codes:
            by_script.setdefault(language(code).script, set()).add(code)
            for word in {word for text in own[code] for word in words(text) if _has_letter(word)}:
                vocabulary.setdefault(word, set()).add(code)
        return cls(
            languages=codes,
            vocabulary={word: frozenset(seen) for word, seen in vocabulary.items()},
            by_script={script: frozenset(seen) for script, seen in by_script.items()},
        )

    def detect(self, text: str) -> str | None:
        """The code of the language that `text` is in; None when it cannot be told."""
        said = [word for word in words(text) if _has_letter(word)]
        votes = Counter(code for word in said for code in self._possible(word))
        ranked = votes.most_common(2)
        if not ranked or 2 * ranked[0][1] <= len(said):
            return None
        if len(ranked) == 2 and ranked[0][1] == ranked[1][1]:
            return None
        return ranked[0][0]

    def _possible(self, word: str) -> frozenset[str]:
        if (seen := self.vocabulary.get(word)) is not None:
            return seen
        # A word never met is evidence only where its script leaves one language; misspelt `bleu` could be a dozen.
        possible: frozenset[str] | None = None
        for character in word:
            if character.isalpha():
                here = frozenset(code for script in scripts_of(character) for code in self.by_script.get(script, ()))
                possible = here if possible is None else possible & here
        return possible if possible is not None and len(possible) == 1 else frozenset()


def _has_letter(word: str) -> bool:
    return any(character.isalpha() for character in word)


def fidelity(detected: Sequence[str | None], asked: Sequence[str]) -> tuple[float, int]:
    """(percent in the asked language among the answers whose language can be told, number of those); NaN for none."""
    told = [(found, wanted) for found, wanted in zip(detected, asked, strict=True) if found is not None]
    if not told:
        return float("nan"), 0
    return 100.0 * sum(found == wanted for found, wanted in told) / len(told), len(told)


def undetermined(detected: Sequence[str | None]) -> tuple[float, int]:
    """(percent of answers whose language cannot be told, number of answers); NaN without answers."""
    if not detected:
        return float("nan"), 0
    return 100.0 * sum(found is None for found in detected) / len(detected), len(detected)
