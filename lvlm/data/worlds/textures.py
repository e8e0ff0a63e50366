"""Backgrounds for text: textures made from random numbers, or photographs of the user. Called by `pages`."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from lvlm.data.images import picture_fault
from lvlm.errors import InputError

PHOTOGRAPHS = {".jpg", ".jpeg", ".png", ".webp"}
Field = npt.NDArray[np.float32]
"""(height, width), roughly -1 to 1."""


def texture(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """An RGB texture of `size` (width, height): clouds, grain, weave, wood or stripes between two colours."""
    make = _KINDS[int(rng.integers(len(_KINDS)))]
    base = rng.uniform(40, 225, 3)
    other = np.clip(base + rng.uniform(-45, 45) + rng.uniform(-20, 20, 3), 0, 255)
    share = np.clip(0.5 + 0.5 * make(rng, size), 0, 1)[:, :, None]
    grain = rng.uniform(0, 5) * rng.standard_normal((size[1], size[0], 1), dtype=np.float32)
    values = share * (other - base).astype(np.float32) + (base.astype(np.float32) + grain)
    return Image.fromarray(np.clip(values, 0, 255, out=values).astype(np.uint8))


def photograph(rng: np.random.Generator, size: tuple[int, int], folder: Path) -> Image.Image:
    """A random cut of a random photograph in `folder`, in RGB."""
    paths = photographs(folder)
    path = paths[int(rng.integers(len(paths)))]
    if fault := picture_fault(path):
        raise InputError(f"The photograph {path} cannot be read: {fault}. Remove it from the folder.")
    with Image.open(path) as image:
        image.draft("RGB", (2 * size[0], 2 * size[1]))
        rgb = ImageOps.exif_transpose(image).convert("RGB")
    where = float(rng.random()), float(rng.random())
    return ImageOps.fit(rgb, size, Image.Resampling.BILINEAR, centering=where)


@cache
def photographs(folder: Path) -> tuple[Path, ...]:
    """The pictures in a folder, by name; none is an `InputError`."""
    if not folder.is_dir():
        raise InputError(f"The folder of photographs {folder} does not exist.")
    paths = tuple(sorted(path for path in folder.iterdir() if path.suffix.lower() in PHOTOGRAPHS))
    if not paths:
        raise InputError(f"The folder {folder} holds no photograph ({', '.join(sorted(PHOTOGRAPHS))}).")
    return paths


def _noise(rng: np.random.Generator, size: tuple[int, int], cells: tuple[int, int]) -> Field:
    """Random numbers on a grid of `cells`, smooth between them."""
    grid = Image.fromarray(rng.uniform(-1, 1, (cells[1], cells[0])).astype(np.float32))
    return np.asarray(grid.resize(size, Image.Resampling.BICUBIC), dtype=np.float32)


def _clouds(rng: np.random.Generator, size: tuple[int, int]) -> Field:
    cells = int(rng.integers(2, 6))
    clouds: Field = sum(
        (_noise(rng, size, (cells << n, cells << n)) / 2**n for n in range(1, 4)), _noise(rng, size, (cells, cells))
    )
    return clouds


def _grain(rng: np.random.Generator, size: tuple[int, int]) -> Field:
    grain: Field = 0.4 * _noise(rng, size, (size[0] // 2, size[1] // 2)) + 0.3 * _noise(rng, size, (3, 3))
    return grain


def _weave(rng: np.random.Generator, size: tuple[int, int]) -> Field:
    period = np.float32(rng.uniform(4, 10))
    x, y = np.arange(size[0], dtype=np.float32)[None, :], np.arange(size[1], dtype=np.float32)[:, None]
    threads = np.sin(2 * math.pi * x / period) * np.sin(2 * math.pi * y / period)
    woven: Field = 0.5 * threads + 0.4 * _noise(rng, size, (6, 6))
    return woven


def _wood(rng: np.random.Generator, size: tuple[int, int]) -> Field:
    bent = 3 * _noise(rng, size, (2, 4))
    y = np.arange(size[1], dtype=np.float32)[:, None] / size[1]
    board: Field = 0.6 * np.sin(rng.uniform(20, 60) * y + bent) + 0.3 * _noise(rng, size, (2, size[1] // 2))
    return board


def _stripes(rng: np.random.Generator, size: tuple[int, int]) -> Field:
    angle, turns = rng.uniform(0, math.pi), 2 * math.pi / rng.uniform(18, 70)
    x, y = np.arange(size[0], dtype=np.float32)[None, :], np.arange(size[1], dtype=np.float32)[:, None]
    waves = np.sin(turns * math.cos(angle) * x + turns * math.sin(angle) * y)
    striped: Field = 0.7 * np.tanh(3 * waves) + 0.2 * _noise(rng, size, (4, 4))
    return striped


_KINDS: tuple[Callable[[np.random.Generator, tuple[int, int]], Field], ...] = (_clouds, _grain, _weave, _wood, _stripes)
