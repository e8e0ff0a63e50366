"""Numbers behind stand-ins: a text whose translation lost a number is translated once more with `X1`, `X2` in their
places, which a model carries over as it does a name. `lvlm.translate.driver` asks for it and puts the numbers back."""

from __future__ import annotations

import re
from itertools import count

_NUMBER = re.compile(r"\d+(?:[.,:/'’]\d+)*")
_STAND_IN = re.compile(r"(?<![A-Za-z])[Xx](\d+)(?!\d)")


def hide_numbers(text: str) -> str | None:
    """The text with every number, as it is written, behind a stand-in of its own; None where it has no number, or what
    it has could not be told from a stand-in (`X1`, or the 4 of `A4`)."""
    places = count(1)
    hidden = _NUMBER.sub(lambda _: f"X{next(places)}", text)
    return hidden if hidden != text and show_numbers(text, hidden) == text else None


def show_numbers(text: str, translation: str) -> str | None:
    """The translation of `hide_numbers(text)` with the numbers of `text` in their places; None unless every stand-in
    is there once."""
    values = _NUMBER.findall(text)
    if sorted(int(place) for place in _STAND_IN.findall(translation)) != list(range(1, len(values) + 1)):
        return None
    return _STAND_IN.sub(lambda match: values[int(match[1]) - 1], translation)
