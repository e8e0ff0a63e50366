"""What people call emoji: names and keywords of Unicode CLDR, or names of the Python package `emoji`. Called by the
module `emoji`, which keeps what all chosen languages have.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol
from xml.etree import ElementTree

from lvlm.errors import InputError
from lvlm.languages import language, table

DEBIAN_FOLDER = Path("/usr/share/unicode/cldr/common")
"""Where unicode-cldr-core puts it."""
PACKAGE = "package"
"""Given instead of a folder: the names of the Python package `emoji`."""
ENOUGH_NAMES = 500
"""A language with fewer takes no part unless it is asked for: what all languages name would shrink to that."""
LOCALES = {"tl": "fil", "arz": "ar"}
"""Codes of our table -> of CLDR, where they differ."""
BORROWED = {"arz": "ar"}
"""Languages without names of their own -> the one whose names CLDR itself would show (languageMatching, distance 10).
They take part only where they are asked for: no answer could tell the two apart."""


@dataclass(frozen=True)
class Annotations:
    """One language's names and keywords by emoji (its characters without variation selectors), in NFC."""

    names: Mapping[str, str]
    keywords: Mapping[str, frozenset[str]]


class NameSource(Protocol):
    """Where names come from; `title` says it in the corpus."""

    @property
    def title(self) -> str: ...

    def languages(self) -> tuple[str, ...]:
        """Languages of our table with enough names of their own, in its order."""

    def annotations(self, code: str) -> Annotations:
        """Of one language; `InputError` where there is nothing."""


def open_names(names: str | Path | None = None) -> NameSource:
    """The source behind a folder of CLDR, `package`, or None: CLDR where Debian puts it."""
    if str(names) == PACKAGE:
        return EmojiPackage()
    given = Path(names) if names is not None else DEBIAN_FOLDER
    for folder in (given / "annotations", given / "common" / "annotations"):
        if folder.is_dir():
            return Cldr(folder)
    raise InputError(
        f"Unicode CLDR is not at {given}: no folder 'annotations' there. Get it in one of two ways: "
        "`apt-get install unicode-cldr-core` (Debian, Ubuntu), or cldr-common-VERSION.zip from "
        "https://cldr.unicode.org, unpacked, with --names DIR naming its folder 'common'. Or use --names package: the "
        "Python package `emoji` (pip install emoji) has names in 14 languages."
    )


class Cldr:
    """The annotations of Unicode CLDR, one XML file per locale (UTS 35, part 2)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[str, Annotations] = {}

    @cached_property
    def title(self) -> str:
        """CLDR with its version, which its DTD states."""
        dtd = self._folder.parent / "dtd" / "ldml.dtd"
        text = dtd.read_text(encoding="utf-8") if dtd.exists() else ""
        found = re.search(r'cldrVersion CDATA #FIXED "(\S+)"', text)
        return f"Unicode CLDR {found[1]}" if found else "Unicode CLDR (version not stated)"

    def languages(self) -> tuple[str, ...]:
        found = (code for code in table() if code not in BORROWED and self._files(code))
        return tuple(code for code in found if len(self.annotations(code).names) >= ENOUGH_NAMES)

    def annotations(self, code: str) -> Annotations:
        if code not in self._read:
            files = self._files(code)
            if not files:
                raise InputError(
                    f"{self.title} ({self._folder}) has no names of emoji in '{code}' ({language(code).name}). Leave "
                    "the language out; without --languages all that have names take part."
                )
            read = [_read_file(path) for path in files]
            # The file of a script (zh_Hant) stands for the language where it is filled; sr_Cyrl points back to sr.
            self._read[code] = max(read, key=lambda entry: len(entry.names) >= ENOUGH_NAMES)
        return self._read[code]

    def _files(self, code: str) -> list[Path]:
        locale = LOCALES.get(code, code)
        names = (f"{locale}_{language(code).script}", locale)
        return [path for name in names if (path := self._folder / f"{name}.xml").exists()]


def _read_file(path: Path) -> Annotations:
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError) as error:
        raise InputError(f"{path} is no annotation file of Unicode CLDR: {error}. Install CLDR again.") from error
    names: dict[str, str] = {}
    keywords: dict[str, frozenset[str]] = {}
    for entry in root.iter("annotation"):
        text, emoji = _tidy(entry.text or ""), str(entry.get("cp"))
        if not text or text == "↑↑↑":  # the parent's, which root leaves empty
            continue
        if entry.get("type") == "tts":
            names[emoji] = text
        else:
            keywords[emoji] = frozenset(word for part in text.split("|") if (word := part.strip().casefold()))
    return Annotations(names, keywords)


class EmojiPackage:
    """CLDR's names in lower case, as the Python package `emoji` ships them; the words of a name are its keywords."""

    def __init__(self) -> None:
        try:
            import emoji
        except ImportError as error:
            raise InputError(
                "--names package needs the Python package `emoji`, which is not installed: pip install emoji. With "
                "Unicode CLDR (apt-get install unicode-cldr-core) the world has over 80 languages instead of 14."
            ) from error
        self.title = f"the Python package emoji {emoji.__version__}"
        emoji.config.load_language(emoji.LANGUAGES)
        self._languages = frozenset(emoji.LANGUAGES)
        self._data = emoji.EMOJI_DATA

    def languages(self) -> tuple[str, ...]:
        """Those of the package; its Chinese is in simplified characters."""
        return tuple(code for code in table() if code in self._languages)

    def annotations(self, code: str) -> Annotations:
        if code not in self._languages:
            raise InputError(
                f"The Python package `emoji` has no names in '{code}' ({language(code).name}); it has: "
                f"{', '.join(self.languages())}. Unicode CLDR has over 80 (apt-get install unicode-cldr-core)."
            )
        found = {
            emoji.replace("\ufe0f", ""): _tidy(entry[code].strip(":").replace("_", " "))
            for emoji, entry in self._data.items()
            if code in entry
        }
        return Annotations(found, {emoji: frozenset(name.casefold().split()) for emoji, name in found.items()})


def _tidy(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())
