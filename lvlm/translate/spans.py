"""What of a text is translated and what stays as it is: image placeholders, line breaks, list markers and whatever has
no words stay. `lvlm.translate.driver` takes every text apart with it and puts the translations back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from lvlm.data.checks import IMAGE_PLACEHOLDER

_KEPT = re.compile(rf"({re.escape(IMAGE_PLACEHOLDER)}|\s*\n\s*)")
_MARKER = re.compile(r"\s*(?:[-*•]|\(?(?:\d{1,3}|[A-Za-z])[.)])\s+")
"""What a line of a list begins with: `A. `, `(b) `, `3) `, `- `."""
_LONE_LETTER = re.compile(r"\W*[A-Za-z]\W*")
"""The answer to a question with options."""


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a text; the pieces of a text, joined, are the text."""

    text: str
    translated: bool


def take_apart(text: str) -> list[Span]:
    """The spans of a text, in order. Those to be translated neither begin nor end with a blank."""
    spans = []
    for piece in _KEPT.split(text):
        if _KEPT.fullmatch(piece):
            spans.append(Span(piece, False))
            continue
        marker = _MARKER.match(piece)
        head, body = (marker[0], piece[marker.end() :]) if marker else ("", piece)
        core = body.strip()
        if not any(letter.isalpha() for letter in core) or _LONE_LETTER.fullmatch(core):
            spans.append(Span(piece, False))
            continue
        start = body.index(core)
        spans += [
            Span(head + body[:start], False),
            Span(core, True),
            Span(body[start + len(core) :], False),
        ]
    return [span for span in spans if span.text]


def put_together(spans: list[Span], translations: Mapping[str, str]) -> str:
    """The text with every span that is translated replaced."""
    return "".join(translations[span.text] if span.translated else span.text for span in spans)
