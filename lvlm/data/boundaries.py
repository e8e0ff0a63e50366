"""Where words begin and end, in scripts that write spaces between them and in those that do not. `lvlm.data.fertility`
counts words with it, and `lvlm.evaluate.segments` divides captions."""

from __future__ import annotations

import re

from icu4py.breakers import WordBreaker

from lvlm.languages import language

SPACELESS = frozenset({"Jpan", "Hans", "Hant", "Thai", "Laoo", "Khmr", "Mymr", "Tibt"})
"""Scripts written without spaces between words: zh, ja, th, lo, km, my, bo and dz."""

_SYLLABLE_END = re.compile(r"[\s\u0f0b-\u0f11\u0f14]+")
"""Between syllables of Tibetan: tsheg, shad and their variants, and the space behind them."""
_INNER_SPACE = re.compile(r"(?<=[^\x00-\u02ff])\s+(?=[^\x00-\u02ff])")


def divide(text: str, code: str) -> list[str]:
    """A text in the language `code` in pieces, each a word with the punctuation at its ends, or none.

    Where words are separated by spaces, the text between them. Where they are not, what ICU's dictionaries find;
    spaces that somebody has put between words count for nothing there. Tibetan, which has no dictionary there, is
    divided into syllables.
    """
    script = language(code).script
    if script == "Tibt":
        return _SYLLABLE_END.split(text)
    if script not in SPACELESS:
        return text.split()
    return list(WordBreaker(_INNER_SPACE.sub("", text), code))


def count_words(text: str, code: str) -> int:
    """The pieces with a letter or a digit in them."""
    return sum([any(map(str.isalnum, piece)) for piece in divide(text, code)])
