"""From an image to pixels: one function for training, evaluation and the feature cache alike.
Called by `lvlm.model.processor` and `lvlm.train.features`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from lvlm.errors import InputError

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


ORIENTATION = 0x0112
"""The EXIF tag."""


@dataclass(frozen=True, slots=True)
class ImageTransform:
    """Everything that decides an image's pixels; part of the key of cached features."""

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    tiles: int
    fit: str = "squash"


def open_image(path: str | Path) -> Image.Image:
    """Read an image file whole and turn it upright; a missing, truncated or unknown file is an `InputError` that names
    it."""
    try:
        with Image.open(path) as image:
            image.load()
            return upright(image)
    except FileNotFoundError as error:
        raise InputError(f"The image {path} does not exist. Check the image folder and the field image_id.") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(
            f"The image {path} cannot be read ({error}). Replace the file or remove its sample."
        ) from error


def upright(image: Image.Image) -> Image.Image:
    """The image as its EXIF data say that it is to be seen; itself where they say nothing."""
    return image if image.getexif().get(ORIENTATION, 1) == 1 else ImageOps.exif_transpose(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """The image upright (EXIF) and as 8-bit RGB; 16-bit grey keeps its upper 8 bits instead of being clipped to
    white."""
    seen = upright(image)
    if seen.mode.startswith("I"):  # `I` is how Pillow opens some 16-bit files
        values = np.clip(np.asarray(seen).astype(np.int64), 0, 65535) >> 8
        seen = Image.fromarray(values.astype(np.uint8))
    elif seen.mode == "F":
        raise InputError(
            "An image holds floating-point pixels, whose range is unknown. Save it as 8-bit or 16-bit PNG."
        )
    return seen if seen.mode == "RGB" else seen.convert("RGB")


def square(image: Image.Image, side: int, transform: ImageTransform) -> Tensor:
    """An RGB image as (3, side, side), 8 bits: squashed, padded with the mean colour, or cut to its middle."""
    if transform.fit == "squash":
        return _resized(image, side, side, transform)
    if transform.fit == "crop":
        return _values(ImageOps.fit(image, (side, side), method=INTERPOLATIONS[transform.interpolation]))
    scale = side / max(image.size)
    width, height = (max(1, round(edge * scale)) for edge in image.size)
    left, top = (side - width) // 2, (side - height) // 2
    colour = torch.tensor([round(255 * value) for value in transform.mean], dtype=torch.uint8)
    canvas = colour.view(3, 1, 1).repeat(1, side, side)
    canvas[:, top : top + height, left : left + width] = _resized(image, height, width, transform)
    return canvas


def _values(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _resized(image: Image.Image, height: int, width: int, transform: ImageTransform) -> Tensor:
    """torchvision's resize of 8-bit values, which transformers takes by default too: a quarter of the time of Pillow's.
    On photographs one value of 650 differs from Pillow's by 1 of 255, and one of 20 million by 2 (bicubic)."""
    from torchvision.transforms.v2 import functional

    nearest = transform.interpolation == "nearest"  # Pillow's is what torch calls exact
    mode = functional.InterpolationMode("nearest-exact" if nearest else transform.interpolation)
    result: Tensor = functional.resize(_values(image), [height, width], interpolation=mode, antialias=True)
    return result


def view_count(tiles: int) -> int:
    """How many views an image has: the global one and, with tiles, n x n crops."""
    return 1 if tiles == 1 else 1 + tiles**2


def views(image: Image.Image, transform: ImageTransform) -> Tensor:
    """The global view, then n x n crops row by row of the image at n times the resolution (source: Centurio's
    `multi_scale`): (views, 3, size, size), 8 bits."""
    rgb = to_rgb(image)
    size, tiles = transform.image_size, transform.tiles
    parts = [square(rgb, size, transform)]
    if tiles > 1:
        large = square(rgb, tiles * size, transform)
        parts += [tile for row in torch.split(large, size, dim=1) for tile in torch.split(row, size, dim=2)]
    return torch.stack(parts)


def pixels(image: Image.Image, transform: ImageTransform) -> Tensor:
    """The normalised pixels of all views: (views, 3, size, size), float32, global view first."""
    values = views(image, transform).contiguous().float().div_(255)
    mean = torch.tensor(transform.mean).view(1, 3, 1, 1)
    std = torch.tensor(transform.std).view(1, 3, 1, 1)
    return values.sub_(mean).div_(std)
