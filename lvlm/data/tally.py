"""What a plan contains, counted: samples, tokens and cuts by corpus, language, tier and source, with their shares, and
the lines that show it. `lvlm.data.plan` makes the tallies; `python -m lvlm plan` prints the lines and plan.json keeps
the numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lvlm.languages import NO_TIER, TIERS, in_table_order, language, table
from lvlm.settings import Unit


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

    def shares(self, everything: Total) -> dict[Unit, float | None]:
        """Of everything, in each unit and after cuts; None where tokens were not measured or there are none."""
        pairs: dict[Unit, tuple[int | None, int | None]] = {
            "samples": (self.samples, everything.samples),
            "tokens": (self.text_tokens, everything.text_tokens),
            "supervised_tokens": (self.supervised_tokens, everything.supervised_tokens),
        }
        return {unit: None if own is None or not whole else own / whole for unit, (own, whole) in pairs.items()}


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


def total_of(tallies: Iterable[Tally]) -> Total:
    """All of them together."""
    return add_up(tallies, lambda tally: "all").get("all", Total())


def total_rows(tallies: Sequence[Tally], key: Callable[[Tally], str]) -> dict[str, dict[str, Any]]:
    """For plan.json: the total of each group, with its shares of all."""
    everything = total_of(tallies)
    return {name: {**asdict(total), "shares": total.shares(everything)} for name, total in add_up(tallies, key).items()}


def realised(tallies: Sequence[Tally]) -> dict[str, dict[str, dict[Unit, float | None]]]:
    """By corpus and split of the translatable ones: the shares of each language, in the order of the table."""
    by_use: dict[str, list[Tally]] = {}
    for tally in tallies:
        if tally.translatable:
            by_use.setdefault(f"{tally.corpus}/{tally.split}", []).append(tally)
    found = {}
    for use, own in by_use.items():
        everything, languages = total_of(own), add_up(own, lambda tally: tally.language)
        found[use] = {code: languages[code].shares(everything) for code in in_table_order(languages)}
    return found


def lines(tallies: Sequence[Tally]) -> list[str]:
    """The realised mix as lines for a terminal: translatable corpora and the others apart, each by tier (English
    first), language and source. A share is of the number to its left."""
    result: list[str] = []
    for translatable, title in ((True, "translatable corpora"), (False, "corpora that stay in their language")):
        part = [tally for tally in tallies if tally.translatable == translatable]
        if not part:
            continue
        names = ", ".join(dict.fromkeys(f"{tally.corpus}/{tally.split}" for tally in part))
        result += ["", f"{title}: {names}"]
        rank = {code: index for index, code in enumerate(table())}
        part.sort(key=lambda tally: (rank[tally.language], tally.corpus, tally.source))
        result += _block("tier", part, lambda tally: language(tally.language).tier, order=("en", *TIERS, NO_TIER))
        result += _block("language", part, lambda tally: tally.language)
        result += _block("source", part, lambda tally: tally.source)
    return result[1:]


def _block(title: str, tallies: Sequence[Tally], key: Callable[[Tally], str], order: Sequence[str] = ()) -> list[str]:
    totals, everything = add_up(tallies, key), total_of(tallies)
    names = [name for name in order if name in totals] or list(totals)
    width = max([12, *map(len, names)])
    result = [
        f"  {title:<{width}} {'samples':>9} {'share':>7} {'text tokens':>12} {'share':>7} {'supervised':>11} "
        f"{'share':>7} {'images':>9} {'cut samples':>12} {'cut turns':>10}"
    ]
    for name in names:
        total = totals[name]
        shares = total.shares(everything)
        result.append(
            f"  {name:<{width}} {total.samples:>9,} {_share(shares['samples'])} {_number(total.text_tokens):>12} "
            f"{_share(shares['tokens'])} {_number(total.supervised_tokens):>11} {_share(shares['supervised_tokens'])} "
            f"{total.images:>9,} {total.cut_samples:>12,} {total.cut_turns:>10,}"
        )
    return result


def _share(value: float | None) -> str:
    return "      -" if value is None else f"{value:>7.2%}"


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
