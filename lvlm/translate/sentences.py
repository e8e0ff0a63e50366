"""A text that is too long for a model, in pieces that are not: whole sentences where they fit, else parts of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

_BORDERS = (
    re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+|(?<=[。！？।॥؟۔።။៕།])\s*"),
    re.compile(r"(?<=[;:,،؛、，；：])\s*"),
    re.compile(r"\s+"),
)
"""Ends of sentences, of clauses, of words."""


def pieces(text: str, fits: Callable[[str], bool], borders: tuple[re.Pattern[str], ...] = _BORDERS) -> list[str]:
    """The text in as few pieces as its borders allow, each of which `fits`, without the blanks between them. A single
    character that does not fit is a piece nevertheless."""
    if fits(text) or len(text) < 2:
        return [text]
    parts = list(_split(text, borders[0])) if borders else [text[: len(text) // 2], text[len(text) // 2 :]]
    if len(parts) == 1:
        return pieces(text, fits, borders[1:])
    result: list[str] = []
    start = 0
    while start < len(parts):
        end = start + 1
        while end < len(parts) and fits("".join(parts[start : end + 1]).strip()):
            end += 1
        result += pieces("".join(parts[start:end]).strip(), fits, borders[1:] if end == start + 1 else borders)
        start = end
    return [piece for piece in result if piece]


def _split(text: str, border: re.Pattern[str]) -> Iterator[str]:
    """Parts that joined are the text, each with the blanks behind it."""
    start = 0
    for match in border.finditer(text):
        if match.end() > start:
            yield text[start : match.end()]
            start = match.end()
    if start < len(text):
        yield text[start:]
