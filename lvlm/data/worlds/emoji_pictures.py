"""Pixels of the emoji world: where pictures of emoji come from, and how they lie on a background.
Called by `emoji_writer` and by `lvlm.backbones.emoji_vision`.
"""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from lvlm.data.images import picture_fault
from lvlm.errors import InputError

DEBIAN_FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
FONT_PIXELS = 109
"""The one size at which Pillow draws the colour bitmaps of such a font (CBDT); pictures are scaled afterwards."""
SIZE = 96
PICTURE = 128
"""Pixels of the longer side of a picture before it is placed."""

Grid = npt.NDArray[np.float64]
Augmentation = Literal["position", "scale", "background", "rotation"]
AUGMENTATIONS: tuple[Augmentation, ...] = ("position", "scale", "background", "rotation")
SCALE, FAR_SCALE = (0.50, 0.80), (0.28, 0.42)  # longer side of the picture, as a share of its cell
DEGREES, FAR_DEGREES = (0.0, 15.0), (30.0, 60.0)  # to either side
OFFSET, FAR_OFFSET = (0.0, 0.6), (0.85, 1.0)  # from the middle of the cell, as a share of the room there is
CORNERS = ((-1, -1), (1, -1), (-1, 1), (1, 1))


class Pictures:
    """Pictures of emoji by id: from a colour font, or from a folder of PNG files named by code points (`1f436.png`,
    `emoji_u1f436.png`)."""

    def __init__(self, source: Path) -> None:
        self._source = source
        self._files: dict[str, Path] = {}
        self._font: ImageFont.FreeTypeFont | None = None
        self._made: dict[str, Image.Image] = {}
        self._drawn: Container[object]
        if source.is_dir():
            self._drawn = self._files = _files(source)
        else:
            self._font, self._drawn = _font(source)
        self.title = f"pictures of {source.name}"

    def __contains__(self, concept: object) -> bool:
        return concept in self._drawn

    def picture(self, concept: str) -> Image.Image:
        """RGBA without empty borders; the longer side has `PICTURE` pixels. Kept in memory."""
        if concept not in self._made:
            self._made[concept] = self._make(concept)
        return self._made[concept]

    def _make(self, concept: str) -> Image.Image:
        if self._font is None:
            path = self._files[concept]
            if fault := picture_fault(path):
                raise InputError(f"The picture {path} cannot be read: {fault}. Replace or remove it.")
            image = Image.open(path).convert("RGBA")
        else:
            character = "".join(chr(int(part, 16)) for part in concept.split("-"))
            image = Image.new("RGBA", (2 * FONT_PIXELS, 2 * FONT_PIXELS))
            ImageDraw.Draw(image).text((16, 16), character, font=self._font, embedded_color=True)
        box = image.getbbox()
        if box is None:
            raise InputError(f"{self._source} draws nothing for '{concept}'. Give another font with --pictures.")
        image = image.crop(box)
        factor = PICTURE / max(image.size)
        return image.resize(
            (max(1, round(image.width * factor)), max(1, round(image.height * factor))), Image.Resampling.LANCZOS
        )


def open_pictures(source: str | Path | None = None) -> Pictures:
    """The pictures of a font file or a folder; None is the font where Debian puts it."""
    given = Path(source) if source is not None else DEBIAN_FONT
    if not given.exists():
        raise InputError(
            f"There are no pictures of emoji at {given}. Get them in one of two ways: `apt-get install "
            "fonts-noto-color-emoji` (Debian, Ubuntu), or with --pictures PATH: a colour font with bitmaps "
            "(NotoColorEmoji.ttf), or a folder of PNG files named by code points (1f436.png)."
        )
    return Pictures(given)


def _files(folder: Path) -> dict[str, Path]:
    found = {
        re.sub(r"^(emoji_)?u?", "", path.stem.lower()).replace("_", "-"): path for path in sorted(folder.glob("*.png"))
    }
    found = {name: path for name, path in found.items() if re.fullmatch(r"[0-9a-f]{2,6}(-[0-9a-f]{2,6})*", name)}
    if not found:
        raise InputError(
            f"The folder {folder} has no PNG files named by code points. Name them 1f436.png or emoji_u1f436.png."
        )
    return found


def _font(path: Path) -> tuple[ImageFont.FreeTypeFont, frozenset[str]]:
    """A colour font and the ids of the single characters that it draws."""
    from matplotlib.ft2font import FaceFlags, FT2Font  # half a second

    try:
        face = FT2Font(str(path))
        if FaceFlags.COLOR not in face.face_flags:
            raise OSError("it has no colours")
        return ImageFont.truetype(str(path), FONT_PIXELS), frozenset(f"{code:x}" for code in face.get_charmap())
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"{path} cannot be used for pictures of emoji: {error}. Give a font with bitmaps of {FONT_PIXELS} pixels, "
            "as NotoColorEmoji.ttf has them, or a folder of PNG files."
        ) from error


@dataclass(frozen=True, slots=True)
class Look:
    """How one picture lies in its cell: shares of the cell, degrees; `place` is (x, y) from -1 to 1 of the room."""

    scale: float
    degrees: float
    place: tuple[float, float]


def draw_look(rng: np.random.Generator, *, far: Augmentation | None = None) -> Look:
    """Draw a look. `far` takes one of its sides from a range that training never shows."""

    def between(limits: tuple[float, float]) -> float:
        return float(rng.uniform(*limits))

    scale = between(FAR_SCALE if far == "scale" else SCALE)
    degrees = between(FAR_DEGREES if far == "rotation" else DEGREES) * (1 if rng.random() < 0.5 else -1)
    corner = CORNERS[int(rng.integers(len(CORNERS)))]
    offset = FAR_OFFSET if far == "position" else OFFSET
    return Look(scale, degrees, (corner[0] * between(offset), corner[1] * between(offset)))


def single(picture: Image.Image, rng: np.random.Generator, *, far: Augmentation | None = None) -> Image.Image:
    """One picture on a background, `SIZE` pixels square; `far` as in `draw_look`, or a background never trained on."""
    canvas = far_background(rng) if far == "background" else background(rng)
    place(canvas, picture, draw_look(rng, far=far), cell=(0, 0, SIZE, SIZE))
    return canvas


def scene(pictures: Sequence[Image.Image], rng: np.random.Generator) -> Image.Image:
    """Two to four pictures, row by row in the four quarters of the image; two side by side."""
    canvas = background(rng)
    half = SIZE // 2
    down = half // 2 if len(pictures) == 2 else 0
    for number, picture in enumerate(pictures):
        left, top = (number % 2) * half, (number // 2) * half + down
        look = draw_look(rng)
        larger = Look(min(1.0, look.scale * 1.2), look.degrees, look.place)  # a quarter has no room to spare
        place(canvas, picture, larger, cell=(left, top, half, half))
    return canvas


def place(canvas: Image.Image, picture: Image.Image, look: Look, *, cell: tuple[int, int, int, int]) -> None:
    """Lay a picture over `canvas` inside `cell` (left, top, width, height): turned first, then as large as `look` has
    it."""
    left, top, width, height = cell
    turned = picture.rotate(look.degrees, Image.Resampling.BICUBIC, expand=True)
    turned = turned.crop(turned.getbbox())
    factor = look.scale * min(width, height) / max(turned.size)
    laid = turned.resize(
        (max(1, round(turned.width * factor)), max(1, round(turned.height * factor))), Image.Resampling.LANCZOS
    )
    x = left + (width - laid.width) * (1 + look.place[0]) / 2
    y = top + (height - laid.height) * (1 + look.place[1]) / 2
    canvas.paste(laid, (round(x), round(y)), laid)


def background(rng: np.random.Generator) -> Image.Image:
    """A pale or dark colour that runs into another of its kind: the backgrounds of training."""
    low, high = (150, 256) if rng.random() < 0.7 else (20, 90)
    first, second = rng.integers(low, high, size=(2, 3))
    return Image.fromarray(_blend(first, second, _ramp(rng)))


def far_background(rng: np.random.Generator) -> Image.Image:
    """Stripes, a chessboard or noise in two strong colours: what training never shows behind a picture."""
    first, second = rng.integers(0, 256, size=(2, 3))
    kind = int(rng.integers(3))
    weight: Grid
    if kind == 0:
        weight = (np.sin(_ramp(rng) * float(rng.uniform(15, 40))) > 0).astype(np.float64)
    elif kind == 1:
        rows, columns = np.indices((SIZE, SIZE)) // int(rng.integers(6, 17))
        weight = ((rows + columns) % 2).astype(np.float64)
    else:
        coarse = Image.fromarray(rng.random((16, 16), dtype=np.float32))
        fine = coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        weight = np.asarray(fine).clip(0, 1).astype(np.float64)
    return Image.fromarray(_blend(first, second, weight))


def _ramp(rng: np.random.Generator) -> Grid:
    """(SIZE, SIZE) from 0 to 1 along a random direction."""
    angle = float(rng.uniform(0, 2 * np.pi))
    rows, columns = np.indices((SIZE, SIZE)) / (SIZE - 1) - 0.5
    along = columns * np.cos(angle) + rows * np.sin(angle)
    ramp: Grid = (along - along.min()) / np.ptp(along)
    return ramp


def _blend(first: npt.NDArray[np.int64], second: npt.NDArray[np.int64], weight: Grid) -> npt.NDArray[np.uint8]:
    mixed: Grid = first * (1 - weight[..., None]) + second * weight[..., None]
    return mixed.round().astype(np.uint8)
