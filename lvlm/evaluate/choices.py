"""What can be chosen in a question, and what an answer chooses: a letter, the text of an option, or a word such as yes.
Called by `tasks`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from string import ascii_uppercase

from lvlm.evaluate.metrics import normalise, plain, words

_OPTION = re.compile(r"([A-Z])\. ?(.*)")
_BARE = re.compile(r"\W*([A-Za-z])\W*")
_FIRST = re.compile(r"\W*([A-Za-z])[)\]）】.．:：、。](?=\s|$)")
_BRACKETED = re.compile(r"[(\[（【]([A-Za-z])[)\]）】]")
_TOLD = re.compile(r"(?:[:：]|\b(?i:is|option|answer|choice|letter))[\s*]*([A-Z])[\s*]*(?=$|[.,;!)。])")


@lru_cache(maxsize=1 << 14)
def options(prompt: str) -> Mapping[str, str]:
    """Letter -> text of the options that a prompt lists, one a line from `A. ` on; the last list counts, and a single
    option is none."""
    found: dict[str, str] = {}
    for line in prompt.splitlines():
        match = _OPTION.match(line.strip())
        if match and match[1] == "A":
            found = {"A": match[2]}
        elif match and found and match[1] == ascii_uppercase[len(found) :][:1]:
            found[match[1]] = match[2]
    return found if len(found) > 1 else {}


def chosen_letter(answer: str, known: Mapping[str, str], language: str) -> str | None:
    """The one option that an answer chooses: `B`, `(b)`, `B. text`, `Answer: B`, `the option is B`, or the text of B;
    None where it chooses none or several. A letter inside a word, or the article `a`, chooses nothing."""
    if match := _BARE.fullmatch(answer):
        return match[1].upper() if match[1].upper() in known else None
    said = plain(answer, language)
    same = [letter for letter, text in known.items() if text and said == plain(text, language)]
    if len(same) == 1:
        return same[0]
    named = {match[1].upper() for match in [_FIRST.match(answer)] if match}
    named |= {letter.upper() for letter in (*_BRACKETED.findall(answer), *_TOLD.findall(answer))}
    named &= known.keys()
    return named.pop() if len(named) == 1 else None


def chosen_word(answer: str, known: Sequence[str]) -> str | None:
    """The one of these words that an answer holds, such as `yes` in `Yes, it is.`; None where it holds none or more."""
    said = set(words(answer)) & {normalise(word) for word in known}
    return said.pop() if len(said) == 1 else None
