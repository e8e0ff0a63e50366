"""A plot as a picture: bars with axes, ticks and labels, pies with labels and leaders, drawn with Pillow.

Called by `plots_corpus`, and by notebooks that want to look at a plot. All but the labels is drawn alike in every
language, to the pixel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageDraw, ImageFont

from lvlm.data.worlds import fonts
from lvlm.data.worlds.plots import PLOT_COLOURS, Plot
from lvlm.data.worlds.typefaces import Typeface
from lvlm.errors import InputError

LABEL_PIXELS = 26
LARGEST_LABEL = (160, 44)
"""Width and height of a label's ink; a longer word is no label."""
TICK_PIXELS = 20
TICKS = range(0, 101, 20)
SLANT = 40
INK, GRID, EDGE = (25, 25, 25), (222, 222, 222), (70, 70, 70)
SUPERSAMPLING = 3
PULL = 0.12
"""How far a slice stands out, in radii."""
LINE = LARGEST_LABEL[1] + 4
"""From one label of a pie to the next above it."""


@dataclass(frozen=True, slots=True)
class Label:
    """Where a label lies: left, top, right, bottom in pixels of the picture; and its ink, white on black."""

    box: tuple[int, int, int, int]
    ink: Image.Image


@dataclass(frozen=True, slots=True)
class Chart:
    """The picture, and its labels in the order of the plot's parts."""

    image: Image.Image
    labels: tuple[Label, ...]


def fits(label: str, face: Typeface) -> bool:
    """Whether a word is small enough for a label."""
    left, top, right, bottom = face.box(label, LABEL_PIXELS)
    return right - left <= LARGEST_LABEL[0] and bottom - top <= LARGEST_LABEL[1]


def draw_plot(plot: Plot, labels: Sequence[str], face: Typeface) -> Chart:
    """The plot with a label for each of its parts. A label that does not fit or has no glyphs is an `InputError`."""
    for label in labels:
        face.check(label)
        if not fits(label, face):
            raise InputError(
                f"The label '{label}' of language '{face.language}' is larger than {LARGEST_LABEL[0]} x "
                f"{LARGEST_LABEL[1]} pixels. Use a shorter word."
            )
    image = Image.new("RGB", plot.size, "white")
    page = _Page(image, face, [])
    if plot.kind == "pie":
        _pie(plot, labels, page)
    elif plot.horizontal:
        _horizontal_bars(plot, labels, page)
    else:
        _vertical_bars(plot, labels, page)
    return Chart(image, tuple(page.labels))


@dataclass(frozen=True, slots=True)
class _Page:
    image: Image.Image
    face: Typeface
    labels: list[Label]

    def write(self, ink: Image.Image, left: float, top: float) -> None:
        """Put a label down with its left upper corner here."""
        x, y = round(left), round(top)
        box = (x, y, x + ink.width, y + ink.height)
        self.image.paste(INK, box, ink)
        self.labels.append(Label(box, ink))


def _vertical_bars(plot: Plot, labels: Sequence[str], page: _Page) -> None:
    width, height = plot.size
    slanted = len(plot.values) >= 6
    bottom = height - (150 if slanted else 66)
    top, left, right = 26, 106, width - 34
    draw = ImageDraw.Draw(page.image)

    def y(value: float) -> int:
        return round(bottom - value * (bottom - top) / 105)

    for tick in TICKS:
        draw.line((left, y(tick), right, y(tick)), fill=GRID)
        draw.line((left - 7, y(tick), left, y(tick)), fill=INK, width=2)
        draw.text((left - 12, y(tick)), str(tick), fill=INK, font=_digits(), anchor="rm")
    slot = (right - left) / len(plot.values)
    for part, (value, colour, label) in enumerate(zip(plot.values, plot.colours, labels, strict=True)):
        middle = left + (part + 0.5) * slot
        half = min(0.33 * slot, 44)
        draw.rectangle(
            (round(middle - half), y(value), round(middle + half), bottom), fill=PLOT_COLOURS[colour], outline=EDGE
        )
        draw.line((round(middle), bottom, round(middle), bottom + 7), fill=INK, width=2)
        mask = page.face.ink(label, LABEL_PIXELS)
        if not slanted:
            ascent = page.face.box(label, LABEL_PIXELS)[1]
            page.write(mask, middle - mask.width / 2, bottom + 44 + ascent)
            continue
        large = page.face.ink(label, 2 * LABEL_PIXELS)
        tilted = large.rotate(SLANT, Image.Resampling.BICUBIC, expand=True).reduce(2)
        tilted = tilted.crop(tilted.getbbox())
        page.write(tilted, middle + 8 - tilted.width, bottom + 12)
    draw.line((left, top, left, bottom), fill=INK, width=2)
    draw.line((left, bottom, right, bottom), fill=INK, width=2)


def _horizontal_bars(plot: Plot, labels: Sequence[str], page: _Page) -> None:
    width, height = plot.size
    top, bottom, left, right = 24, height - 54, 190, width - 36
    draw = ImageDraw.Draw(page.image)

    def x(value: float) -> int:
        return round(left + value * (right - left) / 105)

    for tick in TICKS:
        draw.line((x(tick), top, x(tick), bottom), fill=GRID)
        draw.line((x(tick), bottom, x(tick), bottom + 7), fill=INK, width=2)
        draw.text((x(tick), bottom + 12), str(tick), fill=INK, font=_digits(), anchor="mt")
    slot = (bottom - top) / len(plot.values)
    for part, (value, colour, label) in enumerate(zip(plot.values, plot.colours, labels, strict=True)):
        middle = top + (part + 0.5) * slot
        draw.rectangle(
            (left, round(middle - 0.33 * slot), x(value), round(middle + 0.33 * slot)),
            fill=PLOT_COLOURS[colour],
            outline=EDGE,
        )
        draw.line((left - 7, round(middle), left, round(middle)), fill=INK, width=2)
        mask = page.face.ink(label, LABEL_PIXELS)
        page.write(mask, left - 14 - mask.width, middle - mask.height / 2)
    draw.line((left, top, left, bottom), fill=INK, width=2)
    draw.line((left, bottom, right, bottom), fill=INK, width=2)


def _pie(plot: Plot, labels: Sequence[str], page: _Page) -> None:
    width, height = plot.size
    radius = 0.5 * height / (1 + PULL) - 34
    centre = width / 2, height / 2
    middles = _slices(plot, page.image, centre, radius)
    draw = ImageDraw.Draw(page.image)
    masks = [page.face.ink(label, LABEL_PIXELS) for label in labels]
    boxes: dict[int, tuple[float, float]] = {}
    for side in (-1, 1):
        own = [part for part, angle in enumerate(middles) if (math.cos(angle) >= 0) == (side > 0)]
        own.sort(key=lambda part: math.sin(middles[part]))
        wanted = [centre[1] + 1.08 * radius * math.sin(middles[part]) for part in own]
        for part, y in zip(own, _apart(wanted, LINE / 2 + 2, height - LINE / 2 - 2), strict=True):
            boxes[part] = centre[0] + side * _beside(y - centre[1], radius), y
    for part, mask in enumerate(masks):
        x, y = boxes[part]
        angle = middles[part]
        out = radius * (1 + (PULL if part in plot.pulled else 0))
        rim = centre[0] + out * math.cos(angle), centre[1] + out * math.sin(angle)
        side = 1 if x > centre[0] else -1
        draw.line((*rim, x - side * 6, y), fill=EDGE, width=2)
        page.write(mask, x if side > 0 else x - mask.width, y - mask.height / 2)


def _beside(above: float, radius: float) -> float:
    """How far from the centre, sideways, a label stands clear of the pie and of what stands out of it."""
    clear = radius * (1 + PULL) + LINE / 2 + 8
    return max(0.5 * radius, math.sqrt(max(0.0, clear**2 - above**2)))


def _slices(plot: Plot, image: Image.Image, centre: tuple[float, float], radius: float) -> list[float]:
    """Draw the slices, and say in which direction each lies: radians, clockwise from the right."""
    scale = SUPERSAMPLING
    half = math.ceil(radius * (1 + PULL)) + 4
    large = Image.new("RGB", (2 * half * scale, 2 * half * scale), "white")
    draw = ImageDraw.Draw(large)
    start, middles = float(plot.start), []
    for part, (value, colour) in enumerate(zip(plot.values, plot.colours, strict=True)):
        end = start + 360 * value / sum(plot.values)
        angle = math.radians((start + end) / 2)
        pull = radius * PULL if part in plot.pulled else 0.0
        x, y = (half + pull * math.cos(angle)) * scale, (half + pull * math.sin(angle)) * scale
        box = (x - radius * scale, y - radius * scale, x + radius * scale, y + radius * scale)
        draw.pieslice(box, start, end, fill=PLOT_COLOURS[colour], outline="white", width=2 * scale)
        middles.append(angle)
        start = end
    image.paste(large.reduce(scale), (round(centre[0]) - half, round(centre[1]) - half))
    return middles


def _apart(wanted: Sequence[float], low: float, high: float) -> list[float]:
    """The nearest places to `wanted`, which ascends, that are at least a line apart and inside `low`..`high`."""
    places = list(wanted)
    for index, place in enumerate(places):
        places[index] = max(place, low if index == 0 else places[index - 1] + LINE)
    for index in reversed(range(len(places))):
        places[index] = min(places[index], high if index == len(places) - 1 else places[index + 1] - LINE)
    return places


@cache
def _digits() -> ImageFont.FreeTypeFont:
    return fonts.font(TICK_PIXELS)
