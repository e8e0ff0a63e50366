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
    """Read an image file whole; a missing, truncated or unknown file is an `InputError` that names it."""
    try:
        with Image.open(path) as image:
            image.load()
            return image.copy() if image.getexif().get(0x0112, 1) == 1 else ImageOps.exif_transpose(image)
    except FileNotFoundError as error:
        raise InputError(f"The image {path} does not exist. Check the image folder and the field image_id.") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(
            f"The image {path} cannot be read ({error}). Replace the file or remove its sample."
        ) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """The image upright (EXIF) and as 8-bit RGB; 16-bit grey keeps its upper 8 bits instead of being clipped to
    white."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):  # `I` is how Pillow opens some 16-bit files
        values = np.clip(np.asarray(upright).astype(np.int64), 0, 65535) >> 8
        upright = Image.fromarray(values.astype(np.uint8))
    elif upright.mode == "F":
        raise InputError(
            "An image holds floating-point pixels, whose range is unknown. Save it as 8-bit or 16-bit PNG."
        )
    return upright.convert("RGB")


def square(image: Image.Image, side: int, transform: ImageTransform) -> Image.Image:
    """An RGB image as `side` x `side` pixels: squashed, padded with the mean colour, or cut to its middle."""
    resample = INTERPOLATIONS[transform.interpolation]
    if transform.fit == "squash":
        return image.resize((side, side), resample)
    if transform.fit == "crop":
        return ImageOps.fit(image, (side, side), method=resample)
    scale = side / max(image.size)
    width, height = (max(1, round(edge * scale)) for edge in image.size)
    colour = tuple(round(255 * value) for value in transform.mean)
    canvas = Image.new("RGB", (side, side), colour)  # type: ignore[arg-type]
    canvas.paste(image.resize((width, height), resample), ((side - width) // 2, (side - height) // 2))
    return canvas


def views(image: Image.Image, transform: ImageTransform) -> list[Image.Image]:
    """The global view, then n x n crops row by row of the image at n times the resolution (source: Centurio's
    `multi_scale`)."""
    rgb = to_rgb(image)
    size, tiles = transform.image_size, transform.tiles
    result = [square(rgb, size, transform)]
    if tiles > 1:
        large = square(rgb, tiles * size, transform)
        result += [
            large.crop((column * size, row * size, (column + 1) * size, (row + 1) * size))
            for row in range(tiles)
            for column in range(tiles)
        ]
    return result


def pixels(image: Image.Image, transform: ImageTransform) -> Tensor:
    """The normalised pixels of all views: (views, 3, size, size), float32, global view first."""
    parts = views(image, transform)
    values = torch.from_numpy(np.stack([np.asarray(part) for part in parts])).permute(0, 3, 1, 2).float().div(255)
    mean = torch.tensor(transform.mean).view(1, 3, 1, 1)
    std = torch.tensor(transform.std).view(1, 3, 1, 1)
    return (values - mean).div(std).contiguous()
