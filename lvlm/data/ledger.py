"""The ledger of a plan: what was cut, by corpus, language and source. `lvlm.data.plan` fills it and writes it into
plan.json."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Cut:
    """What was lost in one corpus, language and source."""

    samples: int = 0
    turns: int = 0
    images: int = 0


@dataclass
class Ledger:
    """Counts of what training leaves out of the samples it names. Nothing is left out without an entry here."""

    cuts: dict[tuple[str, str, str], Cut] = field(default_factory=lambda: defaultdict(Cut))

    def add(self, corpus: str, language: str, source: str, *, turns: int, images: int) -> None:
        """One sample lost `turns` turns, and with them `images` images that only those turns showed."""
        cut = self.cuts[corpus, language, source]
        cut.samples += 1
        cut.turns += turns
        cut.images += images

    def rows(self) -> list[dict[str, Any]]:
        """One mapping per corpus, language and source, for plan.json."""
        return [
            {
                "corpus": corpus,
                "language": code,
                "source": source,
                "samples": cut.samples,
                "turns": cut.turns,
                "images": cut.images,
            }
            for (corpus, code, source), cut in sorted(self.cuts.items())
        ]
