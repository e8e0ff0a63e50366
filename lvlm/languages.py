"""The one table of languages, and the one place where any code of a corpus, benchmark or detector finds its row. Every
other module asks here; an unknown code is an error.

`assets/languages.csv` has Centurio's 100 languages first (arXiv 2501.05122, Table 7), then those that benchmarks,
FLORES-200, annotations of Unicode CLDR and fastText's lid.176 have besides. `family` is the top-level family of
Glottolog 5.1, an isolate its own; `iso639_3` is the variety that FLORES-200 stands for where there are several.
`assets/other_codes.csv` has the codes and names that follow from no column, each with its source.
"""

from __future__ import annotations

import csv
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files

from lvlm.errors import InputError, nearest

TIERS = ("T5", "T4", "T3", "T2", "T1")
"""Resource classes of Joshi et al. 2020 as used by Centurio (arXiv 2501.05122, Table 7), high to low; English is
reported as `en`.
"""
NO_TIER = "none"
"""The tier of a language that is not among Centurio's 100: it counts as multilingual and in no tier."""

GROUPS: dict[str, tuple[str, ...]] = {
    "en": (),
    "T5": ("T5",),
    "T5-T4": ("T5", "T4"),
    "T5-T3": ("T5", "T4", "T3"),
    "T5-T2": ("T5", "T4", "T3", "T2"),
    "L100": TIERS,
    "all": (*TIERS, NO_TIER),
}
"""Nested groups of training languages; each includes English beside the tiers named. `L100` is Centurio's 100."""
GROUP_FORMS = f"{', '.join(GROUPS)}, script:NAME (such as script:Arab) and family:NAME (such as family:Turkic)"

RTL_SCRIPTS = frozenset({"Arab", "Hebr", "Thaa"})

SIBLINGS = tuple(
    frozenset(group.split())
    for group in (
        "bs hr sr sh", "id ms", "cs sk", "bg mk", "da no sv", "zu xh ss", "tn st nso", "ar arz acm acq aeb apc ars ary",
        "hi awa bho mag mai hne", "fa prs", "be ru uk rue", "es ast an gl", "az azb tr", "tt ba", "bn as bpy",
        "hi mr ne", "zh yue wuu", "tw ak", "bm dyu", "rw rn", "lv ltg", "de bar gsw lb pfl", "en sco", "af nl li vls",
        "ga gd gv", "oc ca", "it co lij lmo nap pms scn vec", "pl szl", "ber kab taq tzm", "pa pnb", "mhr mrj",
    )
)  # fmt: skip
"""Sets of languages so close that detectors take one for another: those of the shared tasks at VarDial on similar
languages (bs hr sr, id ms, cs sk, bg mk), Arabic dialects and Indo-Aryan languages; the Nordic ones of Haas and
Derczynski 2021; Nguni and Sotho of Duvenhage et al. 2017; the others chosen here by nearness in Glottolog."""

_COUNTRIES = {
    "argentina": "AR", "brazil": "BR", "bulgaria": "BG", "chile": "CL", "china": "CN", "colombia": "CO",
    "ecuador": "EC", "egypt": "EG", "ethiopia": "ET", "france": "FR", "india": "IN", "indonesia": "ID", "ireland": "IE",
    "japan": "JP", "kenya": "KE", "malaysia": "MY", "mexico": "MX", "mongolia": "MN", "nigeria": "NG", "norway": "NO",
    "pakistan": "PK", "philippines": "PH", "romania": "RO", "russia": "RU", "rwanda": "RW", "singapore": "SG",
    "south-korea": "KR", "spain": "ES", "sri-lanka": "LK", "uruguay": "UY",
}  # fmt: skip
"""Countries as CVQA writes them after a language -> ISO 3166."""
_CHINESE_IN = {"CN": "Hans", "SG": "Hans", "TW": "Hant", "HK": "Hant", "MO": "Hant"}
"""The script of Chinese by country, where a code names no other."""
_OTHER_SCRIPTS = ("Adlm", "Bugi", "Cans", "Hani", "Java", "Mong", "Mtei", "Nkoo")
"""ISO 15924 codes that detectors name beside those of the table."""


@dataclass(frozen=True, slots=True)
class Language:
    """One row of the table. `tier` is `T5`..`T1`, `en` for English, which is never reported inside T5, or `none` for
    those outside Centurio's 100. `flores` is empty where FLORES-200 lacks the language, `iso639_3` where the row stands
    for several."""

    code: str
    name: str
    tier: str
    script: str
    flores: str
    family: str
    iso639_3: str

    @property
    def in_l100(self) -> bool:
        """Whether it is one of Centurio's 100 training languages."""
        return self.tier != NO_TIER

    @property
    def right_to_left(self) -> bool:
        return self.script in RTL_SCRIPTS


@dataclass(frozen=True, slots=True)
class Variety:
    """What a code says: the language, its script (the row's, where the code names none), and a country (ISO 3166)."""

    language: Language
    script: str
    country: str | None


@cache
def table() -> dict[str, Language]:
    """All languages by code, in the order of the table: English first, then tier by tier from T5 to T1, then those
    without a tier."""
    tiers = {"": NO_TIER} | {tier[1:]: tier for tier in TIERS}
    return {
        row["code"]: Language(**row | {"tier": "en" if row["code"] == "en" else tiers[row["tier"]]})
        for row in _rows("languages.csv")
    }


def language(code: str) -> Language:
    """The language that any code or English name stands for: `he`, `iw`, `heb_Hebr`, `he-IL`, `Hebrew`."""
    return variety(code).language


def variety(code: str) -> Variety:
    """Language, script and country of a code: `zh-Hans`, `srp_Latn`, `pt-BR`, CVQA's `spa-mexico`."""
    if (found := find(code)) is None:
        raise InputError(
            f"Unknown language code '{code}'. The nearest known codes are: {nearest(_plain(code), list(_known()))}."
        )
    return found


@lru_cache(maxsize=4096)
def find(code: str) -> Variety | None:
    """`variety`, or None for an unknown code, as detectors tell apart more languages than there are rows. `als` is
    Albanian as in ISO 639-3 and FLORES-200; fastText's lid.176 means `gsw` by it."""
    parts = _plain(code).split("-")
    for end in range(len(parts), 0, -1):
        if (row := _known().get("-".join(parts[:end]))) is not None:
            return _with_rest(row, parts[end:])
    return None


def _with_rest(row: Language, rest: list[str]) -> Variety | None:
    """The variety that script and country make of a language; None where the rest of a code is neither."""
    script = _scripts().get(rest[0]) if rest else None
    place = "-".join(rest[1:] if script else rest)
    country = _COUNTRIES.get(place) or (place.upper() if _is_region(place) else None)
    if place and not country:
        return None
    if script is None and row.code == "zh" and country:
        script = _CHINESE_IN.get(country)
    return Variety(row, script or row.script, country)


@cache
def _scripts() -> dict[str, str]:
    names = [*_OTHER_SCRIPTS, *(row.script for row in table().values())]
    return {name.lower(): name for name in names} | {"kore": "Hang"}


def _is_region(text: str) -> bool:
    """ISO 3166 or UN M.49, as BCP 47 has it."""
    return text.isascii() and ((len(text) == 2 and text.isalpha()) or (len(text) == 3 and text.isdigit()))


def _plain(text: str) -> str:
    """Lower case, `-` for `_` and blanks, letters without marks."""
    marks = unicodedata.normalize("NFKD", text.casefold().replace("_", "-"))
    return "-".join("".join(letter for letter in marks if not unicodedata.combining(letter)).split())


@cache
def _known() -> dict[str, Language]:
    """Every code and name without script and country, as `_plain` writes it."""
    rows = table()
    known = dict(rows)
    known |= {row.iso639_3: row for row in rows.values() if row.iso639_3}
    known |= {_plain(row.name): row for row in rows.values()}
    return known | {_plain(row["other"]): rows[row["code"]] for row in _rows("other_codes.csv")}


def _rows(name: str) -> Iterator[dict[str, str]]:
    return csv.DictReader(files("lvlm").joinpath(f"assets/{name}").read_text(encoding="utf-8").splitlines())


def in_table_order(codes: Iterable[str]) -> tuple[str, ...]:
    """The table's own codes for any codes, unique and in its order; an unknown code is an error."""
    wanted = {language(code).code for code in codes}
    return tuple(code for code in table() if code in wanted)


def siblings(code: str) -> frozenset[str]:
    """The languages that detectors may take for this one, itself left out."""
    own = language(code).code
    return frozenset().union(*(group for group in SIBLINGS if own in group)) - {own}


def is_group(name: str) -> bool:
    """Whether this is the name of a group of languages and not a code."""
    return name in GROUPS or name.startswith(("script:", "family:"))


def asked_for(names: Sequence[str], available: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(codes, members) of a list that may name groups beside languages: the codes as they are written, `en` among them,
    and the `available` languages of its groups."""
    groups = [name for name in dict.fromkeys(names) if is_group(name) and name != "en"]
    codes = tuple(name for name in names if name not in groups)
    return codes, in_table_order({code for group in groups for code in group_languages(group, available)})


def group_languages(group: str, available: Sequence[str]) -> tuple[str, ...]:
    """The languages of a group (`en`, `T5-T3`, `L100`, `all`, `script:Arab`, `family:Turkic`) that are `available`,
    English first. Every group has English beside its own languages; groups of tiers are nested."""
    if not is_group(group):
        raise InputError(f"Unknown language group '{group}'. Groups are: {GROUP_FORMS}.")
    here = in_table_order(available)
    if group in GROUPS:
        return tuple(code for code in here if code == "en" or language(code).tier in GROUPS[group])
    kind, _, name = group.partition(":")
    values = {code: row.script if kind == "script" else row.family for code, row in table().items()}
    known = {value.casefold(): value for value in values.values()}
    if name.casefold() not in known:
        raise InputError(
            f"Unknown language group '{group}': no language has this {kind}. The nearest are: "
            f"{nearest(name, sorted(known.values()))}."
        )
    members = [code for code in here if values[code] == known[name.casefold()]]
    if here and not members:
        raise InputError(f"The group '{group}' has none of the languages that there are here: {', '.join(here)}.")
    return tuple(code for code in here if code == "en" or code in members)
