"""The words of a caption, in scripts that write spaces between them and in those that do not. Called by `cider`."""

from __future__ import annotations

import re

import icu4py

from lvlm.data.boundaries import SPACELESS, divide
from lvlm.evaluate.metrics import normalise, words
from lvlm.languages import language

_CLITIC = re.compile(r"(?<=\w)(n't|'(?:s|re|ve|ll|d|m))\b")


def segment(text: str, code: str) -> tuple[str, ...]:
    """The words of a text in the language `code`, in small letters and without punctuation.

    Where words are separated by spaces, English `'s` and `n't` are words of their own, as in the Penn Treebank, whose
    tokenizer the reference implementation of CIDEr runs on every language. Where they are not, `divide` finds them.
    """
    if language(code).script not in SPACELESS:
        return words(_CLITIC.sub(r" \1", text.replace("’", "'").lower()))
    return tuple(word for piece in divide(text, code) if any(map(str.isalnum, word := normalise(piece))))


def segmentation(code: str) -> str | None:
    """How words are found in a language without spaces, for a note beside its scores; None where spaces tell."""
    if language(code).script not in SPACELESS:
        return None
    if language(code).script == "Tibt":
        return "by syllable"
    return f"by the dictionaries of ICU {icu4py.icu_version}"
