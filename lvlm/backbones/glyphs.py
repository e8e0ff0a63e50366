"""Single letters and shapes on small squares: what the tiny towers' stem learns first. Called by
`lvlm.backbones.vision`.

A whole view shows few letters and costs much; a square of 24 pixels around one costs little, and the stem needs no
more.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, max_pool2d

from lvlm.data.worlds.fonts import font
from lvlm.data.worlds.render import DIAMETER, INKS, LETTER_PIXELS, RGB, SHAPE_PATHS
from lvlm.data.worlds.scenes import HELD_OUT

SIDE = 24  # pixels of a square: three tokens, of which the middle one is asked
SHIFT = 4.0  # pixels by which a glyph leaves the centre: half a token
OVERSAMPLING = 4
COLOUR_ORDER, SHAPE_ORDER = list(RGB), list(SHAPE_PATHS)
TRAINING_INKS = np.array(
    [[i for i, colour in enumerate(COLOUR_ORDER) if (colour, shape) not in HELD_OUT] for shape in SHAPE_ORDER]
)  # (shapes, colours - 1): each shape is held out in exactly one colour
HELD_OUT_CODES = [SHAPE_ORDER.index(shape) * len(RGB) + COLOUR_ORDER.index(colour) for colour, shape in HELD_OUT]


def letter_bank(letters: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Masks (n, 1, 24, 24) of every letter at the sizes of the reading world, and the index of the letter."""
    sizes = np.linspace(*LETTER_PIXELS, 3).round().astype(int).tolist()
    masks = [_letter(letter, size) for letter in letters for size in sizes]
    return torch.stack(masks).unsqueeze(1), torch.arange(len(letters)).repeat_interleave(len(sizes))


def _letter(letter: str, pixels: int) -> Tensor:
    canvas = Image.new("L", (SIDE * OVERSAMPLING, SIDE * OVERSAMPLING))
    drawn = font(pixels * OVERSAMPLING)
    left, top, right, bottom = drawn.getbbox(letter)
    middle = SIDE * OVERSAMPLING / 2
    ImageDraw.Draw(canvas).text(
        (middle - (left + right) / 2, middle - (top + bottom) / 2), letter, fill=255, font=drawn
    )
    return _mask(canvas)


@cache
def shape_bank() -> tuple[Tensor, Tensor]:
    """Masks (n, 1, 24, 24) of every shape at both sizes, at full and at half resolution, and the index of the shape."""
    masks, classes = [], []
    for index, name in enumerate(SHAPE_PATHS):
        for diameter in DIAMETER.values():
            for scale in (1.0, 0.5):
                masks.append(_shape(name, diameter / 2 * scale))
                classes.append(index)
    return torch.stack(masks).unsqueeze(1), torch.tensor(classes)


def _shape(name: str, radius: float) -> Tensor:
    canvas = Image.new("L", (SIDE * OVERSAMPLING, SIDE * OVERSAMPLING))
    draw = ImageDraw.Draw(canvas)
    outline, holes = SHAPE_PATHS[name]
    for path, fill in ((outline, 255), *((hole, 0) for hole in holes)):
        draw.polygon(((path * radius + SIDE / 2) * OVERSAMPLING).ravel().tolist(), fill=fill)
    return _mask(canvas)


def _mask(canvas: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(canvas.reduce(OVERSAMPLING), dtype=np.float32) / 255.0)


def draw_squares(
    bank: tuple[Tensor, Tensor], rng: np.random.Generator, *, count: int, coloured: bool
) -> tuple[Tensor, Tensor]:
    """(pixels (count, 3, 24, 24) in 0..1, class) of glyphs at random places near the centre, some with neighbours.

    `coloured` glyphs are shapes: one of the eight colours with a dark outline; the others are letters in an ink.
    """
    masks, classes = bank
    chosen = torch.from_numpy(rng.integers(len(masks), size=count))
    shift = torch.from_numpy(rng.uniform(-SHIFT, SHIFT, (count, 2)).astype(np.float32))
    glyph = _moved(masks[chosen], shift, torch.from_numpy(rng.normal(0.0, 0.08, count).astype(np.float32)))
    other = torch.from_numpy(rng.integers(len(masks), size=count))
    side = torch.from_numpy((rng.choice([-1.0, 1.0], count) * rng.uniform(10.0, 14.0, count)).astype(np.float32))
    away = shift + torch.stack([side, torch.zeros(count)], dim=1)
    present = rng.random(count) < 0.6
    palette = np.array(list(RGB.values()) if coloured else INKS, dtype=np.float32) / 255.0
    inks = rng.integers(len(palette), size=count)
    if coloured:  # a held-out pair is not shown here either
        inks = TRAINING_INKS[classes[chosen].numpy(), rng.integers(TRAINING_INKS.shape[1], size=count)]
        present &= np.isin(classes[other].numpy() * len(palette) + inks, HELD_OUT_CODES, invert=True)
    shown = torch.from_numpy(present.astype(np.float32)).view(-1, 1, 1, 1)
    glyph = torch.maximum(glyph, _moved(masks[other], away, torch.zeros(count)) * shown)
    ink = torch.from_numpy(palette[inks]).view(-1, 3, 1, 1)
    ground = torch.from_numpy(rng.uniform(0.4, 0.65, (count, 3, 1, 1)).astype(np.float32))
    image = ground + 0.025 * torch.from_numpy(rng.standard_normal((count, 1, SIDE, SIDE), dtype=np.float32))
    if coloured:
        outline = max_pool2d(glyph, 3, stride=1, padding=1) * 0.6
        image = image * (1 - outline) + 0.14 * outline
    return (image * (1 - glyph) + ink * glyph).clamp(0, 1), classes[chosen]


def _moved(masks: Tensor, shift: Tensor, radians: Tensor) -> Tensor:
    """Masks moved by `shift` (x, y) pixels and turned."""
    cos, sin = torch.cos(radians), torch.sin(radians)
    offset = -shift * 2 / SIDE
    theta = torch.stack([torch.stack([cos, -sin, offset[:, 0]], 1), torch.stack([sin, cos, offset[:, 1]], 1)], 1)
    return grid_sample(masks, affine_grid(theta, list(masks.shape), align_corners=False), align_corners=False)
