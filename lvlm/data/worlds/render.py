"""Pixels of the built-in worlds: backgrounds, groups of shapes at their places, and words.

Called by `reading` and `writer`, and by notebooks that want to look at a scene. Lengths are in pixels of a 96-pixel
image (`UNIT`) and scale with `size`; every random choice comes from the generator that the caller passes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from lvlm.data.worlds import fonts
from lvlm.data.worlds.scenes import Group, Scene
from lvlm.errors import InputError
from lvlm.languages import language as language_row

UNIT = 96.0  # the image size in which all lengths below are stated
SUPERSAMPLING = 4  # shape masks are drawn this much larger and averaged down
DIAMETER = {"small": 12.4, "large": 19.3}  # of the disc around a shape; four large ones still fit at one place
SCALE_JITTER = 0.04  # sizes vary by this share, far less than small differs from large
ROTATION_DEGREES = 9.0  # small enough that a square stays a square and a cross a cross
GAP = 1.2  # between the discs of two shapes
MARGIN = 1.0  # between a disc and the edge of the image
OUTLINE = 0.6  # outside the shape, so that thin shapes keep their colour
LETTER_PIXELS = (14, 18)  # size of the font, in pixels per em

RGB = {
    "red": (214, 30, 36),
    "blue": (38, 72, 220),
    "green": (28, 150, 52),
    "yellow": (248, 222, 36),
    "orange": (248, 132, 20),
    "purple": (134, 44, 168),
    "black": (18, 18, 20),
    "white": (250, 250, 250),
}
INKS = ((12, 12, 16), (250, 250, 250), (8, 14, 84), (84, 0, 8), (255, 244, 150))
DARK, PALE = (36, 34, 38), (206, 206, 206)  # outlines: dark around every colour but black

Paths = tuple[np.ndarray, tuple[np.ndarray, ...]]
Points = list[tuple[float, float]]
Offsets = tuple[tuple[float, float], ...]
Area = tuple[float, float, float, float]
"""left, top, right, bottom as shares of the image."""


# --- shapes: a filled outline and its holes, each (points, 2), inside about the unit disc, y downwards


def _arc(radius: float, start: float, stop: float, points: int, centre: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    angles = np.linspace(math.radians(start), math.radians(stop), points)
    return np.stack([centre[0] + radius * np.cos(angles), centre[1] + radius * np.sin(angles)], axis=1)


def _polygon(*points: tuple[float, float]) -> np.ndarray:
    return np.array(points, dtype=float)


def _star() -> np.ndarray:
    angles = np.radians(np.arange(10) * 36.0 - 90.0)
    radii = np.where(np.arange(10) % 2 == 0, 1.06, 0.47)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _heart() -> np.ndarray:
    t = np.linspace(0.0, 2.0 * math.pi, 40, endpoint=False)
    x = 16.0 * np.sin(t) ** 3
    y = -(13.0 * np.cos(t) - 5.0 * np.cos(2 * t) - 2.0 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x / 16.2, (y - 2.5) / 15.2], axis=1)


def _moon() -> np.ndarray:
    """A crescent: the outer circle from tip to tip, and back along a circle pushed to the right."""
    outer = _arc(1.0, 52.0, 308.0, 28, (0.12, 0.0))
    tip = outer[0]
    shift = 0.52
    radius = math.hypot(tip[0] - shift, tip[1])
    half = math.degrees(math.atan2(tip[1], tip[0] - shift))
    return np.concatenate([outer, _arc(radius, 360.0 - half, half, 20, (shift, 0.0))])


def _cross() -> np.ndarray:
    arm, half = 0.94, 0.32
    corners = [(half, -arm), (half, -half), (arm, -half), (arm, half), (half, half), (half, arm)]
    return _polygon(*corners, *((-x, -y) for x, y in corners))


SHAPE_PATHS: dict[str, Paths] = {
    "circle": (_arc(0.94, 0.0, 352.0, 36), ()),
    "square": (_polygon((-0.76, -0.76), (0.76, -0.76), (0.76, 0.76), (-0.76, 0.76)), ()),
    "triangle": (_polygon((0.0, -0.96), (0.96, 0.74), (-0.96, 0.74)), ()),
    "star": (_star(), ()),
    "heart": (_heart(), ()),
    "cross": (_cross(), ()),
    "ring": (_arc(0.96, 0.0, 352.0, 36), (_arc(0.52, 0.0, 345.0, 24),)),
    "arrow": (
        _polygon((1.0, 0.0), (0.12, -0.86), (0.12, -0.32), (-0.98, -0.32), (-0.98, 0.32), (0.12, 0.32), (0.12, 0.86)),
        (),
    ),
    "moon": (_moon(), ()),
    "diamond": (_polygon((0.0, -1.0), (0.7, 0.0), (0.0, 1.0), (-0.7, 0.0)), ()),
}


# --- layout: where the copies of each group lie, so that discs touch neither each other nor another place

# Offsets (depth from the image's edge, position along it) in steps of one disc and its gap. The first pattern of a
# count always fits, pushed against the edge and centred on it.
PATTERNS: dict[int, tuple[Offsets, ...]] = {
    1: (((0.0, 0.0),),),
    2: (((0.0, -0.5), (0.0, 0.5)), ((0.0, 0.0), (1.0, 0.0)), ((0.0, -0.4), (0.93, 0.4)), ((0.0, 0.4), (0.93, -0.4))),
    3: (
        ((0.0, -1.0), (0.0, 0.0), (0.0, 1.0)),
        ((0.0, -0.5), (0.0, 0.5), (0.88, 0.0)),
        ((0.0, -0.8), (0.62, 0.0), (0.0, 0.8)),
    ),
    4: (
        ((0.0, -1.0), (0.0, 0.0), (0.0, 1.0), (1.0, 0.0)),
        ((0.0, -0.5), (0.0, 0.5), (1.0, -0.5), (1.0, 0.5)),
        ((0.0, -1.5), (0.0, -0.5), (0.0, 0.5), (0.0, 1.5)),
    ),
}
LAYOUT_TRIES = 12
DEPTH_JITTER, ALONG_JITTER, SPREAD_JITTER, COPY_JITTER = 16.0, 14.0, 4.0, 1.4


def _fits(points: Points, radius: float, *, alone: bool) -> bool:
    """Whether discs at (depth, along) lie apart, inside the image and inside the triangle of their place.

    The diagonals divide the image between the four places. Beside other groups whole discs keep to their triangle;
    where the group is alone only the centres do, which leaves more room to vary.
    """
    clearance = 2.0 if alone else (radius + GAP / 2) * math.sqrt(2.0)
    for index, (depth, along) in enumerate(points):
        if depth < radius + MARGIN - 1e-6 or abs(along) > UNIT / 2 - radius - MARGIN:
            return False
        if depth + abs(along) > UNIT / 2 - clearance:
            return False
        for other in points[:index]:
            if math.dist((depth, along), other) < 2.0 * radius + GAP - 1e-6:
                return False
    return True


def _layout(group: Group, rng: np.random.Generator, radius: float, *, alone: bool) -> Points:
    """Centres (x, y) of the copies of `group`, with less and less jitter until they fit."""
    patterns = PATTERNS[group.count]
    points: Points = []
    for attempt in range(LAYOUT_TRIES + 1):
        amount = 1.0 - attempt / LAYOUT_TRIES
        pattern = patterns[int(rng.integers(len(patterns)))] if amount else patterns[0]
        noise = rng.random(2 * group.count + 3).tolist()
        depth = radius + MARGIN + amount * DEPTH_JITTER * noise[0]
        along = amount * ALONG_JITTER * (2.0 * noise[1] - 1.0)
        step = 2.0 * radius + GAP + amount * SPREAD_JITTER * noise[2]
        points = [
            (
                depth + step * a + amount * COPY_JITTER * (2.0 * noise[2 * index + 3] - 1.0),
                along + step * b + amount * COPY_JITTER * (2.0 * noise[2 * index + 4] - 1.0),
            )
            for index, (a, b) in enumerate(pattern)
        ]
        if _fits(points, radius, alone=alone):
            break
    return [_from_edge(group.place, depth, along) for depth, along in points]


def _from_edge(place: str, depth: float, along: float) -> tuple[float, float]:
    """(x, y) of the point `depth` away from the edge that `place` names and `along` away from that edge's middle."""
    near, side = (depth if place in ("left", "top") else UNIT - depth), UNIT / 2 + along
    return (near, side) if place in ("left", "right") else (side, near)


# --- pixels


def background(rng: np.random.Generator, *, size: int = 96) -> Image.Image:
    """A muted background of middle brightness, so that all eight colours stand out: flat, gradient, noise, stripes."""
    colour = rng.uniform(112.0, 156.0) + rng.uniform(-12.0, 12.0, 3)
    kind = ("flat", "gradient", "noise", "stripes")[int(rng.integers(4))]
    if kind == "flat":
        return Image.new("RGB", (size, size), tuple(round(channel) for channel in colour.tolist()))
    shade: np.ndarray
    if kind == "noise":
        shade = rng.uniform(4.0, 8.0) * rng.standard_normal((size, size), dtype=np.float32)
    else:
        angle = rng.uniform(0.0, math.pi)
        axis = np.linspace(-1.0, 1.0, size, dtype=np.float32)
        across = math.cos(angle) * axis[None, :] + math.sin(angle) * axis[:, None]
        if kind == "gradient":
            shade = rng.uniform(10.0, 22.0) * across
        else:
            shade = rng.uniform(5.0, 10.0) * np.sign(np.sin(rng.uniform(6.0, 22.0) * across + rng.uniform(0.0, 6.3)))
    pixels = colour[None, None, :] + shade[:, :, None]
    return Image.fromarray(np.clip(pixels, 0.0, 255.0).astype(np.uint8))


def _stamp(
    image: Image.Image,
    group: Group,
    centre: tuple[float, float],
    radius: float,
    degrees: float,
    fill: tuple[int, int, int],
) -> None:
    """Draw one copy; `centre` and `radius` in pixels of `image`."""
    half = math.ceil(1.2 * radius) + 2
    left, top = math.floor(centre[0]) - half, math.floor(centre[1]) - half
    side = 2 * half + 1
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = np.array([[cos, sin], [-sin, cos]]) * (radius * SUPERSAMPLING)
    origin = np.array([centre[0] - left, centre[1] - top]) * SUPERSAMPLING
    outline, holes = SHAPE_PATHS[group.shape]
    solid, *hollow = ((path @ turn + origin).ravel().tolist() for path in (outline, *holes))
    width = max(1, round(2.0 * OUTLINE * image.width / UNIT * SUPERSAMPLING))
    edge = PALE if group.colour == "black" else DARK
    for colour, border in ((edge, width), (fill, 0)):
        mask = Image.new("L", (side * SUPERSAMPLING, side * SUPERSAMPLING))
        draw = ImageDraw.Draw(mask)
        draw.polygon(solid, fill=255)
        for hole in hollow:
            draw.polygon(hole, fill=0)
        if border:
            for path in (solid, *hollow):
                draw.line(path + path[:4], fill=255, width=border)
        image.paste(colour, (left, top, left + side, top + side), mask.reduce(SUPERSAMPLING))


@dataclass(frozen=True, slots=True)
class Copy:
    """One drawn shape: its group, centre and radius in pixels of the image."""

    group: Group
    x: float
    y: float
    radius: float


def render(scene: Scene, rng: np.random.Generator, *, size: int = 96) -> Image.Image:
    """The scene as an RGB image of `size` x `size` pixels.

    The scene fixes what is there; `rng` varies background, exact places, sizes within `SCALE_JITTER`, rotations and
    shades. A group lies in the triangle that the image's diagonals cut out for its place; copies never overlap.
    """
    return render_copies(scene, rng, size=size)[0]


def render_copies(scene: Scene, rng: np.random.Generator, *, size: int = 96) -> tuple[Image.Image, list[Copy]]:
    """`render`, and where every copy of every group lies."""
    image = background(rng, size=size)
    scale = size / UNIT
    copies: list[Copy] = []
    for group in scene.groups:
        radius = 0.5 * DIAMETER[group.size] * rng.uniform(1.0 - SCALE_JITTER, 1.0 + SCALE_JITTER)
        shade = np.clip(np.array(RGB[group.colour]) + rng.integers(-8, 9, 3), 0, 255)
        fill = (int(shade[0]), int(shade[1]), int(shade[2]))
        for x, y in _layout(group, rng, radius, alone=len(scene.groups) == 1):
            degrees = rng.uniform(-ROTATION_DEGREES, ROTATION_DEGREES)
            _stamp(image, group, (x * scale, y * scale), radius * scale, degrees, fill)
            copies.append(Copy(group, x * scale, y * scale, radius * scale))
    return image, copies


def draw_word(
    image: Image.Image, word: str, rng: np.random.Generator, *, language: str, area: Area = (0.0, 0.0, 1.0, 1.0)
) -> Image.Image:
    """A copy of `image` with `word` written somewhere inside `area`, in the direction and with the joins of its script.

    Letters are 14 to 18 pixels per em on a 96-pixel image. A word without glyphs, too long for `area`, or a Pillow
    without raqm is an `InputError`.
    """
    return place_word(image, word, rng, language=language, area=area)[0]


def place_word(
    image: Image.Image, word: str, rng: np.random.Generator, *, language: str, area: Area = (0.0, 0.0, 1.0, 1.0)
) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """`draw_word`, and the box of the word: left, top, right, bottom in pixels."""
    fonts.check_layout()
    fonts.check_coverage(word, language=language)
    direction = "rtl" if language_row(language).right_to_left else "ltr"
    scale = image.width / UNIT
    ink = INKS[int(rng.integers(len(INKS)))]
    degrees = rng.uniform(-4.0, 4.0)
    room = (area[2] - area[0]) * image.width - 4 * scale, (area[3] - area[1]) * image.height - 4 * scale
    for pixels in range(int(rng.integers(LETTER_PIXELS[0], LETTER_PIXELS[1] + 1)), LETTER_PIXELS[0] - 1, -1):
        tile = _word_mask(word, round(2 * pixels * scale), direction, language)
        mask = tile.rotate(degrees, Image.Resampling.BICUBIC, expand=True).reduce(2)
        mask = mask.crop(mask.getbbox())
        if mask.width <= room[0] and mask.height <= room[1]:
            break
    else:
        raise InputError(
            f"The word '{word}' of language '{language}' does not fit into its {room[0]:.0f} x {room[1]:.0f} pixels at "
            f"{LETTER_PIXELS[0]} pixels per em. Use words of three to five letters in the lexicon."
        )
    x = area[0] * image.width + 2 * scale + rng.random() * (room[0] - mask.width)
    y = area[1] * image.height + 2 * scale + rng.random() * (room[1] - mask.height)
    written = image.copy()
    written.paste(ink, (round(x), round(y)), mask)
    return written, (round(x), round(y), round(x) + mask.width, round(y) + mask.height)


def _word_mask(word: str, pixels: int, direction: str, language: str) -> Image.Image:
    """The word's coverage, white on black, with a border of four pixels so that `reduce` and `rotate` lose nothing."""
    font = fonts.font(pixels)
    left, top, right, bottom = font.getbbox(word, direction=direction, language=language)
    mask = Image.new("L", (math.ceil(right - left) + 8, math.ceil(bottom - top) + 8))
    ImageDraw.Draw(mask).text((4 - left, 4 - top), word, fill=255, font=font, direction=direction, language=language)
    return mask
