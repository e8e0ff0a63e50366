"""Texts whose language is known, and what a detector takes them for: the confusion behind a fidelity. Called by
`python -m lvlm fidelity --check`; torch-free."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from lvlm.data.benchmarks.forms import text_of
from lvlm.errors import InputError
from lvlm.evaluate.detectors import Detector
from lvlm.evaluate.fidelity import scripts_of
from lvlm.languages import find, language, siblings, table

LISTED = ("en", "fr", "de", "ru", "ar", "zh", "ja", "hi", "sw", "tr", "el", "pt", "es", "ko", "it", "nl", "pl", "fa")
"""Languages whose names make the lists, three at a time."""
PERIODS = ("year", "month", "week", "day", "hour", "minute")
UNITS = (
    "speed-kilometer-per-hour", "speed-meter-per-second", "length-meter", "length-mile", "mass-kilogram",
    "area-square-kilometer", "volume-liter", "volume-cubic-meter", "duration-week", "digital-byte",
    "temperature-celsius", "energy-kilowatt-hour",
)  # fmt: skip
FEWEST = 12
"""Texts below which a language is left out: its locale data is a beginning."""


@cache
def locale_texts() -> dict[str, tuple[str, ...]]:
    """Language -> at most 30 short texts, by the locale data of Unicode CLDR that the package Babel ships: lists of
    three names of languages, spans of time (`in 5 days`) and amounts (`7 kilometres per hour`).

    People of each language wrote them for computers, and most have two to five words, as answers have. Names and units
    are alike in many languages, so that they are harder than sentences.
    """
    from babel import localedata

    english = _texts_of(localedata.load("en", merge_inherited=False))
    found: dict[str, tuple[str, ...]] = {}
    for name in sorted(localedata.locale_identifiers()):
        row = find(name)
        if "_" in name or row is None:
            continue
        code = row.language.code
        texts = english if code == "en" else _texts_of(localedata.load(name, merge_inherited=False)) - english
        written = sorted(text for text in texts if _in_script(text, row.language.script))
        if len(written) >= max(FEWEST, len(found.get(code, ()))):
            found[code] = tuple(written)
    return {code: found[code] for code in table() if code in found}


def _texts_of(data: Mapping[str, Any]) -> set[str]:
    names = [name for code in LISTED if isinstance(name := data.get("languages", {}).get(code), str)]
    joined = data.get("list_patterns", {}).get("standard", {})
    texts = []
    for start in range(0, len(names) - 2, 3):
        first, second, third = names[start : start + 3]
        head = str(joined.get("start", "{0}, {1}")).format(first, second)
        texts.append(str(joined.get("end", "{0}, {1}")).format(head, third))
    for period in PERIODS:
        fields = data.get("date_fields", {}).get(period, {})
        texts += [_counted(fields.get(way, {}), number) for way, number in (("future", 5), ("past", 20))]
    units = data.get("unit_patterns", {})
    texts += [_counted(units.get(unit, {}).get("long", {}), 7) for unit in UNITS]
    return {text for text in texts if text}


def _counted(forms: Any, number: int) -> str:
    form = forms.get("other") if isinstance(forms, Mapping) else None
    return form.replace("{0}", str(number)) if isinstance(form, str) else ""


def _in_script(text: str, script: str) -> bool:
    letters = [letter for letter in text if letter.isalpha()]
    return sum(script in scripts_of(letter) for letter in letters) * 2 > len(letters)


def read_table(path: Path) -> dict[str, tuple[str, ...]]:
    """Language -> texts of a file with the columns `language` and `text`, separated by commas (.csv) or tabs."""
    if not path.is_file():
        raise InputError(f"--table {path} does not exist. Give a .csv or .tsv file with the columns language and text.")
    found: dict[str, list[str]] = {}
    file = io.StringIO(text_of(path), newline="")
    commas = path.suffix == ".csv"
    rows = csv.DictReader(file) if commas else csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    if missing := {"language", "text"} - set(rows.fieldnames or ()):
        raise InputError(f"--table {path} lacks the column {' and '.join(sorted(missing))} in its first line.")
    for row in rows:
        if not row["language"] or not row["text"]:
            raise InputError(f"--table {path}, line {rows.line_num}: language or text is empty. Fill or remove it.")
        try:
            found.setdefault(language(row["language"]).code, []).append(row["text"])
        except InputError as error:
            raise InputError(f"--table {path}, line {rows.line_num}: {error}") from error
    if not found:
        raise InputError(f"--table {path} has no row. Give texts with their languages.")
    return {code: tuple(found[code]) for code in table() if code in found}


@dataclass(frozen=True)
class Confusion:
    """What a detector took the texts of one language for."""

    language: str
    texts: int
    told: Mapping[str | None, int] = field(default_factory=dict)
    """Language told -> number of texts; None for those that it could not tell."""

    @property
    def right(self) -> float:
        """Percent told as what they are."""
        return 100.0 * self.told.get(self.language, 0) / self.texts

    @property
    def undetermined(self) -> float:
        """Percent that were not told."""
        return 100.0 * self.told.get(None, 0) / self.texts

    @property
    def sibling(self) -> float:
        """Percent told as a sibling."""
        return 100.0 * sum(self.told.get(code, 0) for code in siblings(self.language)) / self.texts

    @property
    def others(self) -> list[tuple[str, int]]:
        """Languages that they were taken for, the most frequent first."""
        wrong = [(code, count) for code, count in self.told.items() if code not in (self.language, None)]
        return sorted(((code, count) for code, count in wrong if code), key=lambda pair: (-pair[1], pair[0]))


def confusions(detector: Detector, texts: Mapping[str, Sequence[str]]) -> list[Confusion]:
    """The confusion matrix of a detector on labelled texts, by row."""
    return [Confusion(code, len(some), Counter(detector.detect(text) for text in some)) for code, some in texts.items()]


def report(rows: Sequence[Confusion]) -> Iterator[str]:
    """The matrix as lines: a row for every language, what it is taken for, and the means over languages."""
    yield f"{'language':32s} {'texts':>5s} {'right':>6s} {'undet.':>6s}  taken for"
    for row in rows:
        known = siblings(row.language)
        taken = ", ".join(f"{code}{'*' if code in known else ''} {count}" for code, count in row.others)
        name = f"{row.language} {language(row.language).name}"
        yield f"{name:32.32s} {row.texts:5d} {row.right:6.1f} {row.undetermined:6.1f}  {taken}".rstrip()
    for name, some in (("all", rows), ("Centurio's 100", [row for row in rows if language(row.language).in_l100])):
        if some:
            means = [
                sum(values) / len(some)
                for values in zip(*((r.right, r.undetermined, r.sibling) for r in some), strict=True)
            ]
            yield (
                f"mean of {len(some)} languages ({name}): right {means[0]:.1f}, undetermined {means[1]:.1f}, told as a "
                f"sibling (*) {means[2]:.1f}, as another language {100 - sum(means):.1f}"
            )
