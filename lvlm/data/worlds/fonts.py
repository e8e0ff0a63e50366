"""The one font of the built-in worlds, DejaVu Sans as matplotlib bundles it, and what it can write.

Called by `render.draw_word` for every word; raises before a word could be drawn as boxes or unjoined letters."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from PIL import ImageFont, features

from lvlm.errors import InputError


@cache
def font_path() -> Path:
    """Where matplotlib keeps DejaVu Sans."""
    import matplotlib  # half a second, and only reading corpora need it

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    if not path.exists():
        raise InputError(
            f"The font DejaVu Sans is not at {path}, where matplotlib bundles it. "
            "Install matplotlib again (uv pip install --reinstall matplotlib)."
        )
    return path


@cache
def supported_characters() -> frozenset[str]:
    """Every character that DejaVu Sans has a glyph for."""
    from matplotlib.ft2font import FT2Font

    return frozenset(map(chr, FT2Font(str(font_path())).get_charmap()))


def check_coverage(word: str, *, language: str) -> None:
    """Raise `InputError` if a character of `word` has no glyph: it would be drawn as an empty box."""
    if not word.strip():
        raise InputError(f"A word to draw in language '{language}' is empty. Remove it from that language's lexicon.")
    missing = sorted(set(word) - supported_characters())
    if missing:
        shown = ", ".join(f"'{character}' (U+{ord(character):04X})" for character in missing)
        raise InputError(
            f"DejaVu Sans cannot draw {shown} in the word '{word}' of language '{language}'. "
            "Replace the word in that language's lexicon, or leave the language out of the reading corpus."
        )


@cache
def check_layout() -> None:
    """Raise `InputError` unless Pillow can join and order letters: raqm, which loads FriBiDi when Pillow starts."""
    if not features.check("raqm"):
        raise InputError(
            "Pillow cannot lay out right-to-left and joined scripts here: features.check('raqm') is false, mostly "
            "because the FriBiDi library is missing. Install it (Debian and Ubuntu: apt-get install libfribidi0; "
            "conda: fribidi) and start again."
        )


@cache
def font(pixels: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans at `pixels` per em, with the raqm layout engine."""
    check_layout()
    return ImageFont.truetype(str(font_path()), pixels, layout_engine=ImageFont.Layout.RAQM)
