"""A small Unicode CLDR and pictures of emoji, for tests of the emoji world without Debian's packages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import quoteattr

from PIL import Image, ImageDraw

LANGUAGES = ("en", "de", "ru", "sw", "jv")
FIRST = 0x1F400
EMOJI = tuple(chr(FIRST + number) for number in range(60))
FAMILY = 6  # so many emoji in a row share a keyword


def name_of(emoji: str, code: str) -> str:
    """Words that name the language and the emoji."""
    number = ord(emoji) - FIRST
    return f"{code}word {'abcdefghij'[number // 10]}{'klmnopqrst'[number % 10]}"


def keywords_of(emoji: str, code: str) -> tuple[str, ...]:
    return (f"{code}family{(ord(emoji) - FIRST) // FAMILY}", name_of(emoji, code))


def write_cldr(
    folder: Path,
    *,
    languages: Sequence[str] = LANGUAGES,
    lacking: Mapping[str, Sequence[str]] | None = None,
    renamed: Mapping[str, Mapping[str, str]] | None = None,
    keywords: Callable[[str, str], Sequence[str]] = keywords_of,
) -> Path:
    """A folder `common` of CLDR 99 with an annotation file for each language; `lacking` names emoji left out."""
    annotations = folder / "common" / "annotations"
    annotations.mkdir(parents=True)
    (folder / "common" / "dtd").mkdir()
    (folder / "common" / "dtd" / "ldml.dtd").write_text('<!ATTLIST version cldrVersion CDATA #FIXED "99" >\n')
    filling = [chr(0xF0000 + number) for number in range(500)]  # a language with fewer names takes no part by itself
    for code in languages:
        lines = ['<?xml version="1.0" encoding="UTF-8" ?>', "<ldml><annotations>"]
        for emoji in (*EMOJI, *filling):
            if emoji in (lacking or {}).get(code, ()):
                continue
            name = (renamed or {}).get(code, {}).get(emoji) or (name_of(emoji, code) if emoji in EMOJI else "filling")
            words = " | ".join(keywords(emoji, code)) if emoji in EMOJI else "filling"
            lines += [
                f"<annotation cp={quoteattr(emoji)}>{words}</annotation>",
                f'<annotation cp={quoteattr(emoji)} type="tts">{name}</annotation>',
            ]
        text = "\n".join([*lines, "</annotations></ldml>"])
        (annotations / f"{code}.xml").write_text(text, encoding="utf-8")
    return folder / "common"


def write_pictures(folder: Path, *, emoji: Sequence[str] = EMOJI) -> Path:
    """A PNG for each emoji: a disc with a bar, whose colours its number sets, inside empty borders."""
    folder.mkdir(parents=True)
    for character in emoji:
        number = ord(character) - FIRST
        image = Image.new("RGBA", (40, 40))
        draw = ImageDraw.Draw(image)
        draw.ellipse((6, 6, 33, 33), fill=(37 * number % 256, 91 * number % 256, 53 * number % 256, 255))
        draw.rectangle((6, 18, 33, 18 + number % 9), fill=(255 - 37 * number % 256, 120, 91 * number % 256, 255))
        image.save(folder / f"emoji_u{ord(character):x}.png")
    return folder
