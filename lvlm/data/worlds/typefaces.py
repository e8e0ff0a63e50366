"""The fonts that write the world's scripts: DejaVu as matplotlib bundles it, and Noto where it is installed.

Called by `chart` and `pages`. A face is asked what it has glyphs for before it draws anything, so that no word becomes
boxes; a script without a font is an error that names the Debian package.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont

from lvlm.data.worlds import fonts
from lvlm.errors import InputError
from lvlm.languages import language as language_row

_BUNDLED = ("DejaVuSans", "DejaVuSerif", "DejaVuSans-Bold", "DejaVuSerif-Italic", "DejaVuSansMono")
_NOTO = {
    "Latn": ("NotoSans", "NotoSerif"),
    "Cyrl": ("NotoSans", "NotoSerif"),
    "Grek": ("NotoSans", "NotoSerif"),
    "Arab": ("NotoNaskhArabic", "NotoSansArabic", "NotoKufiArabic"),
    "Hebr": ("NotoSansHebrew", "NotoSerifHebrew"),
    "Geor": ("NotoSansGeorgian", "NotoSerifGeorgian"),
    "Deva": ("NotoSansDevanagari", "NotoSerifDevanagari"),
    "Beng": ("NotoSansBengali", "NotoSerifBengali"),
    "Guru": ("NotoSansGurmukhi", "NotoSerifGurmukhi"),
    "Taml": ("NotoSansTamil", "NotoSerifTamil"),
    "Telu": ("NotoSansTelugu", "NotoSerifTelugu"),
    "Thai": ("NotoSansThai", "NotoSerifThai", "NotoLoopedThai"),
    "Laoo": ("NotoSansLao", "NotoSerifLao", "NotoLoopedLao"),
    "Khmr": ("NotoSansKhmer", "NotoSerifKhmer"),
    "Mymr": ("NotoSansMyanmar", "NotoSerifMyanmar"),
    "Armn": ("NotoSansArmenian", "NotoSerifArmenian"),
    "Gujr": ("NotoSansGujarati", "NotoSerifGujarati"),
    "Knda": ("NotoSansKannada", "NotoSerifKannada"),
    "Mlym": ("NotoSansMalayalam", "NotoSerifMalayalam"),
    "Orya": ("NotoSansOriya",),
    "Sinh": ("NotoSansSinhala", "NotoSerifSinhala"),
    "Tibt": ("NotoSerifTibetan",),
    "Ethi": ("NotoSansEthiopic", "NotoSerifEthiopic"),
    "Hang": ("NotoSansCJK", "NotoSerifCJK"),
    "Jpan": ("NotoSansCJK", "NotoSerifCJK"),
    "Hans": ("NotoSansCJK", "NotoSerifCJK"),
    "Hant": ("NotoSansCJK", "NotoSerifCJK"),
}
_CJK_NUMBERS = {"Jpan": 0, "Hang": 1, "Hans": 2, "Hant": 2}
"""Faces in Noto's collections. The words of `zh` are in simplified characters, as wordfreq has them."""
_SHAPED_BY_DEJAVU = {"Latn", "Cyrl", "Grek", "Geor", "Hebr", "Arab"}


@dataclass(frozen=True, slots=True)
class Typeface:
    """One font file, or one face of a collection, as it writes one language."""

    path: Path
    number: int
    language: str

    def __str__(self) -> str:
        return f"{self.path.stem} {_version(self.path, self.number)}"

    @property
    def direction(self) -> str:
        return "rtl" if language_row(self.language).right_to_left else "ltr"

    def lacks(self, text: str) -> str:
        """The characters of `text` that have no glyph."""
        return "".join(sorted(set(text) - {" ", "\n"} - _characters(self.path, self.number)))

    def font(self, pixels: int) -> ImageFont.FreeTypeFont:
        """At `pixels` per em, laid out by raqm."""
        return _font(self.path, self.number, pixels)

    def box(self, text: str, pixels: int) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of the text's ink, from the start of its baseline."""
        return self.font(pixels).getbbox(text, anchor="ls", direction=self.direction, language=self.language)

    def ink(self, text: str, pixels: int) -> Image.Image:
        """The text's ink, white on black, with no row or column to spare. A missing glyph is an `InputError`."""
        self.check(text)
        left, top, right, bottom = self.box(text, pixels)
        size = (math.ceil(right - left) + 8, math.ceil(bottom - top) + 8)
        mask = Image.new("L", size)
        ImageDraw.Draw(mask).text(
            (4 - left, 4 - top),
            text,
            fill=255,
            font=self.font(pixels),
            anchor="ls",
            direction=self.direction,
            language=self.language,
        )
        return mask.crop(mask.getbbox())

    def check(self, text: str) -> None:
        """Raise `InputError` if a character would be drawn as an empty box."""
        if missing := self.lacks(text):
            shown = ", ".join(f"'{character}' (U+{ord(character):04X})" for character in missing)
            raise InputError(
                f"{self.path.name} cannot draw {shown} in '{text}' of language '{self.language}'. Take the word out "
                "of the list, or install a font that has it."
            )


@cache
def typefaces(code: str) -> tuple[Typeface, ...]:
    """The faces that can write a language's script, the one for labels first; none is an `InputError`.

    DejaVu comes first where it has the script, so that these plots are the same bytes on every machine.
    """
    fonts.check_layout()
    row = language_row(code)
    faces = [
        Typeface(path, 0, code)
        for name in _BUNDLED
        if row.script in _SHAPED_BY_DEJAVU and (path := fonts.font_path().with_name(f"{name}.ttf")).exists()
    ]
    number = _CJK_NUMBERS.get(row.script, 0)
    for weight in ("Regular", "Bold"):
        for family in _NOTO.get(row.script, ()):
            if (found := _installed(family, weight)) is not None:
                faces.append(Typeface(found, number if found.suffix == ".ttc" else 0, code))
    if not faces:
        family = _NOTO.get(row.script, ("Noto Sans",))[0]
        package = "fonts-noto-cjk" if family.endswith("CJK") else "fonts-noto-core"
        raise InputError(
            f"There is no font here for '{code}' ({row.name}, script {row.script}). Install Debian's {package} "
            f"(apt-get install {package}), or put {family}-Regular into ~/.local/share/fonts."
        )
    return tuple(faces)


def face_for(words: Iterable[str], code: str) -> tuple[Typeface, tuple[str, ...]]:
    """The face that has glyphs for most of `words` (the first of several), and the words that it can write."""
    words = tuple(words)
    best = typefaces(code)[0]
    most: tuple[str, ...] = ()
    for face in typefaces(code):
        able = tuple(word for word in words if not face.lacks(word))
        if len(able) > len(most):
            best, most = face, able
        if len(most) == len(words):
            break
    if len(most) < 0.5 * len(words):
        raise InputError(
            f"No font here can write most words of language '{code}': {best.path.name} has the glyphs of {len(most)} "
            f"of {len(words)}. Install Debian's fonts-noto-core, or leave the language out."
        )
    return best, most


@cache
def _installed(family: str, weight: str) -> Path | None:
    """The file of a face: `NotoSansThai-Regular.ttf`, or the variable `NotoSansThai[wdth,wght].ttf`."""
    names = re.compile(rf"{family}(-{weight}|\[.*\]|-VF)" if weight == "Regular" else rf"{family}-{weight}")
    found = [path for path in _system_fonts() if names.fullmatch(path.stem)]
    return found[0] if found else None


@cache
def _system_fonts() -> tuple[Path, ...]:
    from matplotlib.font_manager import findSystemFonts  # half a second

    paths = map(Path, findSystemFonts(fontext="ttf"))  # finds .otf and .ttc too
    return tuple(sorted(paths, key=lambda path: (path.name, path)))


@cache
def _characters(path: Path, number: int) -> frozenset[str]:
    with TTFont(path, fontNumber=number, lazy=True) as font:
        return frozenset(map(chr, font.getBestCmap()))


@cache
def _version(path: Path, number: int) -> str:
    """What tells one making of a font from another."""
    return hashlib.blake2b(path.read_bytes(), digest_size=6, person=str(number).encode()).hexdigest()


@cache
def _font(path: Path, number: int, pixels: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), pixels, index=number, layout_engine=ImageFont.Layout.RAQM)
