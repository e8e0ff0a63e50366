"""The one table of languages: code, name, tier, script, FLORES code. Every other module asks here; an unknown code
is an error.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from lvlm.errors import InputError, nearest

TIERS = ("T5", "T4", "T3", "T2", "T1")
"""Resource classes of Joshi et al. 2020 as used by Centurio (arXiv 2501.05122, Table 7), high to low; English is
reported as `en`.
"""

GROUPS: dict[str, tuple[str, ...]] = {
    "en": (),
    "T5": ("T5",),
    "T5-T4": ("T5", "T4"),
    "T5-T3": ("T5", "T4", "T3"),
    "T5-T2": ("T5", "T4", "T3", "T2"),
    "all": TIERS,
}
"""Nested groups of training languages; each includes English beside the tiers named."""

RTL_SCRIPTS = frozenset({"Arab", "Hebr"})


@dataclass(frozen=True, slots=True)
class Language:
    """One row of the table. `tier` is `T5`..`T1`, or `en` for English, which is never reported inside T5."""

    code: str
    name: str
    tier: str
    script: str
    flores: str

    @property
    def right_to_left(self) -> bool:
        return self.script in RTL_SCRIPTS


@cache
def table() -> dict[str, Language]:
    """All languages by code, in the order of the table: English first, then tier by tier from T5 to T1."""
    source = files("lvlm").joinpath("assets/languages.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(source.splitlines())
    return {
        row["code"]: Language(
            code=row["code"],
            name=row["name"],
            tier="en" if row["code"] == "en" else f"T{row['tier']}",
            script=row["script"],
            flores=row["flores"],
        )
        for row in rows
    }


def language(code: str) -> Language:
    """The language with this code."""
    known = table()
    if code not in known:
        raise InputError(f"Unknown language code '{code}'. The nearest known codes are: {nearest(code, list(known))}.")
    return known[code]


def in_table_order(codes: Iterable[str]) -> tuple[str, ...]:
    """Unique codes in the table's order; an unknown code is an error."""
    wanted = {language(code).code for code in codes}
    return tuple(code for code in table() if code in wanted)


def group_languages(group: str, available: Sequence[str]) -> tuple[str, ...]:
    """The languages of a group (`en`, `T5`, `T5-T3`, `all`, ...) that are `available`, English first."""
    if group not in GROUPS:
        raise InputError(f"Unknown language group '{group}'. Groups are: {', '.join(GROUPS)}.")
    tiers = GROUPS[group]
    return tuple(code for code in in_table_order(available) if code == "en" or language(code).tier in tiers)
