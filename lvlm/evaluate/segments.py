"""The words of a caption, in scripts that write spaces between them and in those that do not. Called by `cider`."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from itertools import pairwise

from lvlm.evaluate.metrics import normalise, words
from lvlm.languages import language

SPACELESS = frozenset({"Jpan", "Hans", "Hant", "Thai", "Laoo", "Khmr", "Mymr"})
"""Scripts written without spaces between words: zh, ja, th, lo, km and my."""

_CLITIC = re.compile(r"(?<=\w)(n't|'(?:s|re|ve|ll|d|m))\b")
_INNER_SPACE = re.compile(r"(?<=[^\x00-\u02ff])\s+(?=[^\x00-\u02ff])")


def segment(text: str, code: str) -> tuple[str, ...]:
    """The words of a text in the language `code`, in small letters and without punctuation.

    Where words are separated by spaces, English `'s` and `n't` are words of their own, as in the Penn Treebank, whose
    tokenizer the reference implementation of CIDEr runs on every language. Where they are not, ICU's dictionaries
    divide them if PyICU is installed, and each character is a word if not; spaces that somebody has put between words
    count for nothing there.
    """
    if language(code).script not in SPACELESS:
        return words(_CLITIC.sub(r" \1", text.replace("’", "'").lower()))
    joined = _INNER_SPACE.sub("", text)
    divide = _icu(code)
    if divide is None:
        return words(joined)
    return tuple(word for part in divide(joined) if any(map(str.isalnum, word := normalise(part))))


def segmentation(code: str) -> str | None:
    """How words are found in a language without spaces, for a note beside its scores; None where spaces tell."""
    if language(code).script not in SPACELESS:
        return None
    if _icu(code) is None:
        return "by single characters, for want of PyICU (pip install 'lvlm[segmentation]')"
    import icu

    return f"by the dictionaries of ICU {icu.ICU_VERSION}"


@cache
def _icu(code: str) -> Callable[[str], list[str]] | None:
    if find_spec("icu") is None:
        return None
    from icu import BreakIterator, Locale, UnicodeString

    iterator = BreakIterator.createWordInstance(Locale(code))

    def divide(text: str) -> list[str]:
        whole = UnicodeString(text)  # its places count UTF-16 units, as the iterator's do
        iterator.setText(whole)
        places = [0, *iterator]
        return [str(whole[start:end]) for start, end in pairwise(places)]

    return divide
