"""What the world `paint` shows: one coloured shape at one place of a small picture, and its pixels.
Called by `paint_corpus` and by the script that trains the tiny denoiser.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

import numpy as np
import numpy.typing as npt
from PIL import Image

from lvlm.data.worlds.render import RGB
from lvlm.data.worlds.scenes import HELD_OUT, PLACES, Group, Scene

PIXELS = 12
"""Side of a picture: small enough for a denoiser without a VAE on one core."""
COLOURS = ("red", "blue", "green", "yellow", "purple", "white")
MASKS = {
    "square": ("######", "######", "######", "######", "######", "######"),
    "triangle": ("..##..", "..##..", ".####.", ".####.", "######", "######"),
    "cross": ("..##..", "..##..", "######", "######", "..##..", "..##.."),
}
"""Shape -> where it is, row by row."""
CORNERS = {"left": (3, 0), "right": (3, 6), "top": (0, 3), "bottom": (6, 3)}
"""Place -> top row and left column of the shape."""
GREY = 48
COLOUR_JITTER, GREY_JITTER = 12, 16
"""How far channels of the shape and the shade of the background lie from the clean rendering, at most."""
SCENES: tuple[Scene, ...] = tuple(
    Scene((Group(shape=shape, colour=colour, size="large", place=place, count=1),))
    for colour, shape, place in product(COLOURS, MASKS, PLACES)
)
"""Everything that can be shown, once."""
TRAINING_SCENES: tuple[Scene, ...] = tuple(scene for scene in SCENES if not scene.pairs & HELD_OUT)
"""Without the pairs of colour and shape that no training picture of the world `shapes` shows either."""


def attributes(scene: Scene) -> dict[str, str]:
    """What tells a scene from the others: colour, shape and place."""
    (group,) = scene.groups
    return {"colour": group.colour, "shape": group.shape, "place": group.place}


def draw(scene: Scene, rng: np.random.Generator | None = None) -> Image.Image:
    """The picture of a scene; without `rng` the clean rendering, in the middle of what the world draws."""
    (group,) = scene.groups
    grey, colour = GREY, np.array(RGB[group.colour])
    if rng is not None:
        grey += int(rng.integers(-GREY_JITTER, GREY_JITTER + 1))
        colour = colour + rng.integers(-COLOUR_JITTER, COLOUR_JITTER + 1, size=3)
    pixels = np.full((PIXELS, PIXELS, 3), grey)
    mask = np.array([[mark == "#" for mark in row] for row in MASKS[group.shape]])
    top, left = CORNERS[group.place]
    pixels[top : top + len(mask), left : left + len(mask)][mask] = colour
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def draw_all(scenes: Iterable[Scene], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """(scenes, side, side, 3): a picture of each."""
    return np.stack([np.asarray(draw(scene, rng)) for scene in scenes])
