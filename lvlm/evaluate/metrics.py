"""How an answer is compared with its gold answers: percent for one item, torch-free, the same rules for every language.
Called by `tasks`, which applies them to predictions; `fidelity` splits text into the same words."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from lvlm.errors import InputError

RIGHT, WRONG = 100.0, 0.0

BIDI_CONTROLS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Invisible marks that steer the direction of text; a model that writes them or not has given the same answer."""

ARTICLES = {
    code: frozenset(articles.split())
    for code, articles in {
        "en": "a an the", "de": "der die das den dem des ein eine einen einem einer eines", "nl": "de het een",
        "fr": "le la les un une des du", "es": "el la los las un una unos unas", "it": "il lo la i gli le un uno una",
        "pt": "o a os as um uma uns umas", "ca": "el la els les un una uns unes", "ro": "un o niște", "sv": "en ett",
        "da": "en et", "no": "en ei et", "el": "ο η το οι τα ένας μία μια ένα", "hu": "a az egy", "af": "die n",
    }.items()
}  # fmt: skip
"""Language -> its articles that stand as words of their own before a noun."""

_TRANSLATION = {ord(mark): None for mark in BIDI_CONTROLS} | {0x2212: "-"}  # the mathematical minus is a minus
_MARKS = "".join(c for c in map(chr, range(0x0E00, 0x1800)) if unicodedata.category(c).startswith("M"))
_SPACELESS = re.compile(
    f"([\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff][{_MARKS}]*)"
)
"""A character of a script without spaces between words, with the vowel signs and tone marks on it."""


@lru_cache(maxsize=1 << 16)
def normalise(text: str) -> str:
    """The form in which answers are compared: NFKC, case folded, single spaces, no punctuation at either end.

    Diacritics stay, as they tell words apart in most languages. A sign stays with its number (`-3` is not `3`), and
    text made of punctuation alone stays as it is. Turkish `İ` folds to `i`.
    """
    folded = unicodedata.normalize("NFKC", text).translate(_TRANSLATION).casefold().replace("i\u0307", "i")
    collapsed = " ".join(unicodedata.normalize("NFKC", folded).split())
    start, end = 0, len(collapsed)
    while start < end and _strippable(collapsed[start]):
        start += 1
    while end > start and _strippable(collapsed[end - 1]):
        end -= 1
    if start == end:
        return collapsed
    if collapsed[start].isdigit() and collapsed[start - 1 : start] == "-":
        return "-" + collapsed[start:end]
    return collapsed[start:end]


def _strippable(character: str) -> bool:
    return character == " " or unicodedata.category(character).startswith("P")


@lru_cache(maxsize=1 << 14)
def words(text: str) -> tuple[str, ...]:
    """Normalised words, each without punctuation at its ends; scripts written without spaces are split by character,
    whose marks stay with it: in Thai, Lao, Khmer, Burmese and Tibetan they are what tells many words apart."""
    spaced = _SPACELESS.sub(r" \1 ", normalise(text))
    stripped = (normalise(word) for word in spaced.split())
    return tuple(word for word in stripped if any(character.isalnum() for character in word))


def equal(prediction: str, golds: Sequence[str]) -> float:
    """Equal after `normalise` to any gold answer: the score of short answers, the same for all scripts. Percent."""
    answer = normalise(prediction)
    return RIGHT if answer and any(answer == normalise(gold) for gold in golds) else WRONG


def exact(prediction: str, golds: Sequence[str]) -> float:
    """Equal to any gold answer but for case and outer space: exact match as Centurio's code has it, to lay scores over
    published ones. Punctuation and Unicode forms count. Percent."""
    answer = prediction.strip().lower()
    return RIGHT if any(answer == gold.lower().strip() for gold in golds) else WRONG


@lru_cache(maxsize=1 << 16)
def plain(text: str, language: str) -> str:
    """What is left of a short answer when nothing but its words counts: `words`, digits of every script as ASCII ones,
    without an article of the language, or an English one, at the front. Text without words stays as `normalise` has
    it."""
    said = list(words(text)) or [normalise(text)]
    if len(said) > 1 and said[0] in ARTICLES["en"] | ARTICLES.get(language, frozenset()):
        said = said[1:]
    return "".join(str(unicodedata.digit(c)) if c.isdecimal() else c for c in " ".join(said))


def normalised(prediction: str, golds: Sequence[str], language: str) -> float:
    """Equal to any gold answer as `plain` has them. Percent."""
    answer = plain(prediction, language)
    return RIGHT if answer and any(answer == plain(gold, language) for gold in golds) else WRONG


def relaxed(prediction: str, golds: Sequence[str], language: str) -> float:
    """The words of the prediction begin or end with those of any gold answer: Centurio's relaxed match over whole
    words, so that `a` is not found in `sofa`. Percent."""
    said = plain(prediction, language).split()
    for gold in golds:
        wanted = plain(gold, language).split()
        if wanted and wanted in (said[: len(wanted)], said[-len(wanted) :]):
            return RIGHT
    return WRONG


def multiset_f1(said: Counter[str], wanted: Counter[str]) -> float:
    """Harmonic mean of precision and recall over two multisets, in percent; NaN when nothing was wanted."""
    if not wanted:
        return float("nan")
    return 200.0 * (said & wanted).total() / (said.total() + wanted.total())


def token_f1(prediction: str, golds: Sequence[str]) -> float:
    """Word F1 against the best gold caption, for corpora without attributes. Percent; NaN when no gold has a word."""
    said = Counter(words(prediction))
    return best(multiset_f1(said, Counter(words(gold))) for gold in golds)


def best(values: Iterable[float]) -> float:
    """The largest of the known values; NaN when none is known."""
    return max((value for value in values if value == value), default=float("nan"))


@dataclass(frozen=True, slots=True)
class AttributeReader:
    """Reads the attributes (`colour:red`, `count:2`) that a caption names in one language.

    Attribute F1 compares what two captions say and not how they say it, which makes it comparable across languages; it
    leaves out which attribute belongs to which object. Surfaces are matched over normalised words, the longest first.
    """

    by_words: Mapping[tuple[str, ...], str]
    longest: int
    """Words of the longest surface form."""

    @classmethod
    def of(cls, attributes: Mapping[str, str], *, where: str = "attributes") -> AttributeReader:
        """From the corpus's {surface form: attribute id}; two attributes behind one normalised surface are an error."""
        by_words: dict[tuple[str, ...], str] = {}
        for surface, attribute in attributes.items():
            key = words(surface)
            if not key:
                raise InputError(f"{where}: the surface form {surface!r} of '{attribute}' holds no word. Add letters.")
            if by_words.setdefault(key, attribute) != attribute:
                raise InputError(
                    f"{where}: the surface form {surface!r} stands for both '{by_words[key]}' and '{attribute}' once "
                    "case and punctuation are set aside. Keep one of them."
                )
        return cls(by_words, max(map(len, by_words), default=0))

    def read(self, caption: str) -> Counter[str]:
        """How often each attribute is named."""
        said, found, start = words(caption), Counter[str](), 0
        while start < len(said):
            for length in range(min(self.longest, len(said) - start), 0, -1):
                attribute = self.by_words.get(said[start : start + length])
                if attribute is not None:
                    found[attribute] += 1
                    start += length
                    break
            else:
                start += 1
        return found

    def f1(self, prediction: str, golds: Sequence[str]) -> float:
        """Attribute F1 against the best gold caption, in percent; NaN when no gold names an attribute."""
        said = self.read(prediction)
        return best(multiset_f1(said, self.read(gold)) for gold in golds)


def majority(golds: Sequence[Sequence[str]]) -> str:
    """The most frequent gold answer over items, each given with its acceptable answers; an empty text without items.

    Ties go to the alphabetically first, so that the majority row does not depend on the order of the items.
    """
    counts: Counter[str] = Counter()
    spelling: dict[str, str] = {}
    for answers in golds:
        for key, answer in {normalise(answer): answer for answer in reversed(answers)}.items():
            counts[key] += 1
            spelling.setdefault(key, answer)
    if not counts:
        return ""
    return spelling[min(counts, key=lambda key: (-counts[key], key))]
