"""What the driver asks of a translator, whatever is behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Translation(NamedTuple):
    """A translated text, or what is wrong with it: `unfinished`, `unknown characters`."""

    text: str
    fault: str = ""


class Translator(Protocol):
    """Translates texts of one line. The same call gives the same translations."""

    def translate(self, texts: Sequence[str], source: str, target: str) -> list[Translation]:
        """The translation of every text, in order. `source` and `target` are codes of the language table."""
        ...
