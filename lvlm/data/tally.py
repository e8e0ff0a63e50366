"""What a plan contains, counted: samples, tokens and cuts by corpus, language, tier and source, and the lines that
show it. `lvlm.data.plan` makes the tallies; `python -m lvlm plan` prints the lines and plan.json keeps the numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lvlm.languages import NO_TIER, TIERS, language, table


@dataclass(slots=True)
class Tally:
    """Counts of one corpus, split, language and source, over the order of the plan (a sample seen twice counts
    twice). Images and tokens are those that are left after cuts."""

    corpus: str
    split: str
    translatable: bool
    language: str
    source: str
    samples: int = 0
    images: int = 0
    text_tokens: int | None = None
    supervised_tokens: int | None = None
    cut_samples: int = 0
    cut_turns: int = 0

    def as_row(self) -> dict[str, Any]:
        """For plan.json, with the tier."""
        return {**asdict(self), "tier": language(self.language).tier}


@dataclass(slots=True)
class Total:
    """Tallies of one group, added up."""

    samples: int = 0
    images: int = 0
    text_tokens: int | None = None
    supervised_tokens: int | None = None
    cut_samples: int = 0
    cut_turns: int = 0


def add_up(tallies: Iterable[Tally], key: Callable[[Tally], str]) -> dict[str, Total]:
    """Totals by `key`, in the order in which the keys come first."""
    totals: dict[str, Total] = {}
    for tally in tallies:
        total = totals.setdefault(key(tally), Total())
        total.samples += tally.samples
        total.images += tally.images
        total.cut_samples += tally.cut_samples
        total.cut_turns += tally.cut_turns
        if tally.text_tokens is not None:
            total.text_tokens = (total.text_tokens or 0) + tally.text_tokens
            total.supervised_tokens = (total.supervised_tokens or 0) + (tally.supervised_tokens or 0)
    return totals


def lines(tallies: Sequence[Tally]) -> list[str]:
    """The realised mix as lines for a terminal: translatable corpora and the others apart, each by tier, language and
    source."""
    result: list[str] = []
    for translatable, title in ((True, "translatable corpora"), (False, "corpora that stay in their language")):
        part = [tally for tally in tallies if tally.translatable == translatable]
        if not part:
            continue
        names = ", ".join(dict.fromkeys(f"{tally.corpus}/{tally.split}" for tally in part))
        result += ["", f"{title}: {names}"]
        rank = {code: index for index, code in enumerate(table())}
        part.sort(key=lambda tally: (rank[tally.language], tally.corpus, tally.source))
        result += _block(
            "tier", add_up(part, lambda tally: language(tally.language).tier), order=("en", *TIERS, NO_TIER)
        )
        result += _block("language", add_up(part, lambda tally: tally.language))
        result += _block("source", add_up(part, lambda tally: tally.source))
    return result[1:]


def _block(title: str, totals: dict[str, Total], order: Sequence[str] = ()) -> list[str]:
    keys = [key for key in order if key in totals] or list(totals)
    everything = sum(total.samples for total in totals.values()) or 1
    width = max([12, *(len(key) for key in keys)])
    head = (
        f"  {title:<{width}} {'samples':>9} {'share':>7} {'images':>9} {'text tokens':>12} {'supervised':>11} "
        f"{'cut samples':>12} {'cut turns':>10}"
    )
    return [head] + [
        f"  {key:<{width}} {total.samples:>9,} {total.samples / everything:>7.2%} {total.images:>9,} "
        f"{_number(total.text_tokens):>12} "
        f"{_number(total.supervised_tokens):>11} {total.cut_samples:>12,} {total.cut_turns:>10,}"
        for key, total in ((key, totals[key]) for key in keys)
    ]


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
