"""Pages of text as pictures, after Synthdog (Donut, arXiv 2111.15664): lines in one of several fonts on a texture or a
photograph, sometimes on a sheet of paper, turned and blurred. Called by `pages_corpus`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from lvlm.data.worlds.textures import photograph, texture
from lvlm.data.worlds.typefaces import Typeface
from lvlm.errors import InputError

SIDES = (320, 512)
LETTER_PIXELS = (20, 40)
SMALLEST_LETTERS = 14
DEGREES = 9.0
BLUR = 0.8
PAPER_SHARE = 0.5
CONTRAST = 90
"""Between ink and what is under it, in grey levels of 255."""
MARGIN = 8
PAPER_ROOM = 8
"""Of the paper around its text, also where none is laid."""


@dataclass(frozen=True, slots=True)
class Page:
    """The picture, its lines from top to bottom, and the box that they lie in, in pixels."""

    image: Image.Image
    lines: tuple[str, ...]
    box: tuple[int, int, int, int]


def draw_page(
    parts: Sequence[str],
    faces: Sequence[Typeface],
    rng: np.random.Generator,
    *,
    lines: int,
    joiner: str,
    photos: Path | None = None,
) -> Page:
    """A page that begins with `parts`, as many as fit on at most `lines` lines. `joiner` stands between two parts.

    The face is one that has glyphs for all parts; where there is none, or where the first part fits at no size, it is
    an `InputError`.
    """
    width, height = (int(side) for side in rng.integers(SIDES[0], SIDES[1] + 1, 2))
    able = [face for face in faces if not face.lacks("".join(parts))]
    if not able:
        faces[0].check(joiner.join(parts))
    face = able[int(rng.integers(len(able)))]
    room = width - 6 * MARGIN
    for pixels in range(int(rng.integers(LETTER_PIXELS[0], LETTER_PIXELS[1] + 1)), SMALLEST_LETTERS - 1, -1):
        broken = _broken(parts, face, pixels, room, lines, joiner)
        if broken and _leading(pixels) * len(broken) <= height - 8 * MARGIN:
            break
    else:
        raise InputError(
            f"'{parts[0]}' of language '{face.language}' is wider than {room} pixels at {SMALLEST_LETTERS} pixels per "
            "em. Take it out of the list, or break the line of the text."
        )
    block = _block(broken, face, pixels, rng)
    degrees, papered = float(rng.uniform(-DEGREES, DEGREES)), rng.random() < PAPER_SHARE
    inside = width - 2 * MARGIN, height - 2 * MARGIN
    ink = _turned(block, degrees, inside)
    image = photograph(rng, (width, height), photos) if photos else texture(rng, (width, height))
    x = int(rng.integers(MARGIN, width - MARGIN - ink.width + 1))
    y = int(rng.integers(MARGIN, height - MARGIN - ink.height + 1))
    box = (x, y, x + ink.width, y + ink.height)
    if papered:
        _lay_paper(image, _turned(Image.new("L", block.size, 255), degrees, inside), box, rng)
    _write(image, ink, box, rng)
    if (radius := float(rng.uniform(-BLUR, BLUR))) > 0:
        image = image.filter(ImageFilter.GaussianBlur(radius))
    return Page(image, tuple(broken), box)


def fits_any_page(part: str, faces: Sequence[Typeface]) -> bool:
    """Whether a page of any width can begin with this part, whichever of the faces that can write it is drawn."""
    able = [face for face in faces if not face.lacks(part)]
    return all(_width(part, face, SMALLEST_LETTERS) <= SIDES[0] - 6 * MARGIN for face in able)


def _broken(parts: Sequence[str], face: Typeface, pixels: int, room: float, most: int, joiner: str) -> list[str]:
    """`parts` in lines no wider than `room`, `most` at most; empty where the first part alone is wider."""
    lines: list[str] = []
    for part in parts:
        longer = lines[-1] + joiner + part if lines else part
        if lines and _width(longer, face, pixels) <= room:
            lines[-1] = longer
        elif len(lines) < most and _width(part, face, pixels) <= room:
            lines.append(part)
        else:
            break
    return [line.strip() for line in lines]


def _width(text: str, face: Typeface, pixels: int) -> float:
    return _ems(text, face) * pixels


@lru_cache(maxsize=1 << 14)
def _ems(text: str, face: Typeface) -> float:
    left, _, right, _ = face.box(text, LETTER_PIXELS[1])
    return (right - left) / LETTER_PIXELS[1]


def _leading(pixels: int) -> int:
    return round(1.6 * pixels)


def _block(lines: Sequence[str], face: Typeface, pixels: int, rng: np.random.Generator) -> Image.Image:
    """The lines one under the other at twice their size, white on black: flush where the script begins, or centred."""
    inks = [face.ink(line, 2 * pixels) for line in lines]
    tops = [face.box(line, 2 * pixels)[1] for line in lines]
    width = max(ink.width for ink in inks)
    centred = rng.random() < 0.3
    baseline = 0.0
    places: list[tuple[int, int]] = []
    for index, (ink, top) in enumerate(zip(inks, tops, strict=True)):
        if index == 0:
            baseline = -top
        else:  # two lines never touch, whatever the script piles up
            above = places[-1][1] + inks[index - 1].height
            baseline = max(baseline + 2 * _leading(pixels), above + 4 - top)
        left = (width - ink.width) / 2 if centred else width - ink.width if face.direction == "rtl" else 0
        places.append((round(left), round(baseline + top)))
    height = max(y + ink.height for ink, (_, y) in zip(inks, places, strict=True))
    room = 2 * PAPER_ROOM
    block = Image.new("L", (width + 2 * room, height + 2 * room))
    for ink, (x, y) in zip(inks, places, strict=True):
        block.paste(ink, (x + room, y + room))
    return block


def _turned(block: Image.Image, degrees: float, room: tuple[int, int]) -> Image.Image:
    """A block at half its size, turned; smaller still where the turn has made it larger than `room`."""
    turned = block.rotate(degrees, Image.Resampling.BILINEAR, expand=True).reduce(2)
    if turned.width > room[0] or turned.height > room[1]:
        turned.thumbnail(room, Image.Resampling.BICUBIC)
    return turned


def _lay_paper(
    image: Image.Image, shape: Image.Image, box: tuple[int, int, int, int], rng: np.random.Generator
) -> None:
    """A sheet under the text, light or dark, through which some of the background shows."""
    tone = rng.uniform(205, 250) if rng.random() < 0.75 else rng.uniform(20, 70)
    plain = np.clip(tone + rng.uniform(-12, 12, 3) + rng.normal(0, 3, (shape.height, shape.width, 1)), 0, 255)
    sheet = Image.blend(image.crop(box), Image.fromarray(plain.astype(np.uint8)), float(rng.uniform(0.8, 1.0)))
    image.paste(sheet, box, shape)


def _write(image: Image.Image, ink: Image.Image, box: tuple[int, int, int, int], rng: np.random.Generator) -> None:
    """Write in a colour that stands out; where the background is too lively for any, it is calmed under the text."""
    under = np.asarray(image.crop(box).convert("L"), dtype=np.float32)
    middle = float(under.mean())
    dark = middle > 127
    colour = rng.uniform(0, 50, 3) if dark else rng.uniform(205, 255, 3)
    level = float(colour @ (0.299, 0.587, 0.114))
    low, high = np.percentile(under, (2, 98))
    nearest = float(low - level if dark else level - high)
    if nearest < CONTRAST:
        goal = 235.0 if dark else 20.0
        least = level + CONTRAST if dark else level - CONTRAST
        worst = float(low if dark else high)
        share = min(1.0, (least - worst) / (goal - worst))
        calm = Image.new("RGB", (box[2] - box[0], box[3] - box[1]), (round(goal),) * 3)
        image.paste(Image.blend(image.crop(box), calm, share), box)
    image.paste(tuple(round(value) for value in colour.tolist()), box, ink)
