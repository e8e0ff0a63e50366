"""Features of a vision tower for image files, computed anew or kept on disk. Used by `lvlm.train.loop` and handed to
the evaluation by `lvlm.run`."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lvlm.config import fingerprint
from lvlm.records import write_json
from lvlm.train.images import load_pixels
from lvlm.train.locks import file_lock
from lvlm.train.space import FeatureSpace, NoRoom

if TYPE_CHECKING:
    from lvlm.model.lvlm import Lvlm

VIEWS_PER_BATCH = 32
"""Views in one pass through the tower: larger batches leave the CPU's cache and were slower for the tiny tower."""
IMAGES_PER_PART = 512
"""Images in one file of the store: what a killed process loses at most."""
FIRST_AHEAD = 32
"""Images that are missing when training begins and that `add_ahead` adds first."""


class ImageFeatures(Protocol):
    """Image files -> features (images, views, tokens, width), fp32, in the order asked for."""

    def __call__(self, images: Sequence[Path]) -> Tensor: ...


class TowerFeatures:
    """Features computed on the spot. The store below fills itself through this class, so both give the same numbers, up
    to the last bits where few views pass through the tower at once.

    `precision` `bf16` runs the tower under autocast and rounds its output to bf16, `fp32` changes nothing; either way
    fp32 comes out.
    """

    def __init__(self, model: Lvlm, *, device: torch.device, precision: str, workers: int = 0) -> None:
        self.model = model
        self.device = device
        self.precision = precision
        self.workers = workers

    def __call__(self, images: Sequence[Path]) -> Tensor:
        return torch.cat([features for part in self.parts([images]) for features in part]).float()

    def parts(self, parts: Sequence[Sequence[Path]], *, full: bool = False) -> Iterator[Iterator[Tensor]]:
        """For each part, features of consecutive groups of its images, in the dtype they are stored in. All parts are
        read by the same loader processes, ahead of time; a part must be used up before the next. `full`: see
        `from_pixels`."""
        size = max(1, VIEWS_PER_BATCH // self.model.config.views)
        groups = [[list(part[start : start + size]) for start in range(0, len(part), size)] for part in parts]
        flat = list(chain.from_iterable(groups))
        pixels = load_pixels(flat, self.model.config.image_transform, workers=self.workers)
        for part in groups:
            yield (self.from_pixels(next(pixels), full=full) for _ in part)

    def from_pixels(self, pixels: Tensor, *, full: bool = False) -> Tensor:
        """`pixels` (images, views, 3, height, width) -> features (images, views, tokens, width).

        The last bits depend on how many views pass through the tower at once. `full` fills up the last pass with copies
        of an image: then they depend on the image alone.
        """
        parts = []
        images, views = pixels.shape[:2]
        bf16 = self.precision == "bf16"
        size = max(1, VIEWS_PER_BATCH // views)
        if full and images % size:
            pixels = torch.cat([pixels, pixels[-1:].expand(size - images % size, *pixels.shape[1:])])
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            for group in pixels.split(size):  # type: ignore[no-untyped-call]
                features = self.model.image_features(group.flatten(0, 1).to(self.device, non_blocking=True))
                parts.append(features.to(torch.bfloat16 if bf16 else torch.float32))
        return torch.cat(parts)[:images]

    def key(self) -> str:
        """Identifies everything that the numbers depend on: weights of the tower, how an image becomes pixels, layer,
        precision and the type of device, whose last bits differ."""
        config = self.model.config
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.vision_tower.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        settings = {"tower": config.tower, "pixels": asdict(config.image_transform), "layer": config.feature_layer}
        compute = {"precision": self.precision, "device": self.device.type}
        return fingerprint({"weights": digest.hexdigest(), "format": 2, **compute, **settings})


class FeatureStore:
    """Features on disk under `home/features/<key>`, shared by every arm, seed and process with the same tower.

    Images lie in parts: `NNNNN.npy` (images, views, tokens, width), memory-mapped, and `NNNNN.json` with (digest of the
    folder, file name, size, modification time) of each row. The json is renamed into place last, so that a part is
    whole or absent. One process at a time computes, under a file lock that ends with the process; an image that changed
    on disk is computed again. `on_wait` is told once who computes, if one has to wait.

    All keys together take at most `limit_gib` (see `lvlm.train.space`): features of other towers and settings give way,
    those used longest ago first, and what then finds no place is computed whenever it is asked for; `on_full` is told
    why. So is what somebody removed.
    """

    def __init__(
        self,
        home: Path,
        tower: TowerFeatures,
        *,
        limit_gib: float | None = None,
        on_wait: Callable[[str], None] | None = None,
        on_full: Callable[[str], None] | None = None,
    ) -> None:
        self.tower = tower
        self.on_wait = on_wait
        self.on_full = on_full
        self.full = ""
        """Why nothing more is kept; empty while there is room."""
        self.space = FeatureSpace(home / "features", limit_gib)
        self.key = tower.key()
        self.folder = self.space.root / self.key
        self._ahead = FIRST_AHEAD
        self._forget()
        self._folders: dict[Path, str] = {}

    def __call__(self, images: Sequence[Path]) -> Tensor:
        try:
            if any(image not in self._places for image in images):
                if self.full:
                    return self.tower(images)
                self.add(images)
            rows = [self._places[image] for image in images]
            parts = {part: self._map(part) for part, _ in rows}
        except NoRoom as full:
            self._give_up(full)
            return self.tower(images)
        except FileNotFoundError:  # removed by hand, or from a machine that does not see our locks
            self._forget()
            return self.tower(images)
        first = parts[rows[0][0]]
        out = np.empty((len(rows), *first.shape[1:]), dtype=first.dtype)
        for index, (part, row) in enumerate(rows):
            out[index] = parts[part][row]
        features = torch.from_numpy(out)
        if self.tower.precision == "bf16":
            features = features.view(torch.bfloat16)
        return features.to(self.tower.device, non_blocking=True).float()

    def missing(self, images: Iterable[Path]) -> list[Path]:
        """Those of `images` that the store does not hold yet, each once."""
        self._refresh()
        return list(self._absent(images))

    def _absent(self, images: Iterable[Path]) -> Iterator[Path]:
        """`missing`, as far as what was read of the store knows."""
        met: set[Path] = set()
        for image in images:
            if image in self._places or image in met:
                continue
            place = self._rows.get(self._identity(image))
            if place is None:
                met.add(image)
                yield image
            else:
                self._places[image] = place

    def lack(self, images: Iterable[Path]) -> str:
        """Why what is missing of `images` finds no place; empty if it does. Computes one image to see its size."""
        absent = self.missing(images)
        if not absent:
            return ""
        (features,) = next(self.tower.parts([absent[:1]]))
        return self.space.lack(self.key, len(absent) * features.nbytes)

    def lacks(self, images: Iterable[Path]) -> bool:
        """Whether `add_ahead` may have something to do for `images`; looks at no file."""
        return not self.full and any(image not in self._places for image in images)

    def add_ahead(self, images: Iterable[Path], on_progress: Callable[[int, int], None] | None = None) -> int:
        """`add` for the first of `images` that are missing: a few, and twice as many at every call, so that training
        begins at once and loader processes start seldom. Where room ends, what is there stays and nothing more is
        added."""
        if self.full:
            return 0
        self._refresh()
        absent = list(islice(self._absent(images), self._ahead))
        self._ahead *= 2
        try:
            return self.add(absent, on_progress)
        except NoRoom as full:
            self._give_up(full)
            return 0

    def _give_up(self, full: NoRoom) -> None:
        self.full = str(full)
        if self.on_full:
            self.on_full(self.full)

    def add(self, images: Iterable[Path], on_progress: Callable[[int, int], None] | None = None) -> int:
        """Compute and keep what is missing; returns how many images this process computed. `on_progress(done,
        total)`. Raises `NoRoom` where the bound is reached; the parts until then are kept."""
        images = list(images)
        if not self.missing(images):
            return 0
        self.space.hold(self.key)
        with file_lock(self.folder / "lock", purpose="computes image features", on_wait=self._tell_once):
            absent = self.missing(images)
            parts = [absent[start : start + IMAGES_PER_PART] for start in range(0, len(absent), IMAGES_PER_PART)]
            for left in self.folder.glob(".*.tmp"):  # of one that was killed: nobody else computes now
                left.unlink()
            done = 0
            for part, features in zip(parts, self.tower.parts(parts, full=True), strict=True):
                self._write_part(part, features)
                done += len(part)
                if on_progress:
                    on_progress(done, len(absent))
        self.missing(images)
        return len(absent)

    def _tell_once(self, owner: str) -> None:
        tell, self.on_wait = self.on_wait, None
        if tell:
            tell(owner)

    def _write_part(self, images: Sequence[Path], features: Iterator[Tensor]) -> None:
        folder = self.folder
        number = 1 + max((int(path.stem) for path in folder.glob("[0-9]*.json")), default=-1)
        identities = [self._identity(image) for image in images]
        data, temporary = folder / f"{number:05d}.npy", folder / f".{number:05d}.{os.getpid()}.tmp"
        out: np.ndarray[Any, Any] | None = None
        row = 0
        for group in features:
            block = _as_numpy(group)
            if out is None:
                out = self._reserve(temporary, (len(images), *block.shape[1:]), block.dtype)
            out[row : row + len(block)] = block
            row += len(block)
        assert isinstance(out, np.memmap)
        out.flush()
        os.replace(temporary, data)
        write_json(folder / f"{number:05d}.json", identities)

    def _reserve(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """An empty array on disk, whose blocks are taken at once: a full disk shows here and not in a write to memory
        that nobody could catch."""
        with file_lock(self.space.lock, purpose="looks for room for image features"):
            self.space.make_room(self.key, math.prod(shape) * dtype.itemsize)
            out = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
            try:
                if hasattr(os, "posix_fallocate"):  # not on macOS
                    with open(path, "r+b") as file:
                        os.posix_fallocate(file.fileno(), 0, os.stat(path).st_size)
            except OSError as error:
                path.unlink()
                raise NoRoom(f"the disk is full ({error.strerror})") from error
        return out

    def _forget(self) -> None:
        self._rows: dict[tuple[str, str, int, int], tuple[Path, int]] = {}
        self._read_parts: set[Path] = set()
        self._maps: dict[Path, np.ndarray[Any, Any]] = {}
        self._places: dict[Path, tuple[Path, int]] = {}

    def _refresh(self) -> None:
        if self.folder.exists():
            self.space.hold(self.key)
        for index in self.folder.glob("[0-9]*.json"):
            if index not in self._read_parts:
                self._read_parts.add(index)
                for row, identity in enumerate(json.loads(index.read_text(encoding="utf-8"))):
                    self._rows[tuple(identity)] = (index.with_suffix(".npy"), row)

    def _identity(self, image: Path) -> tuple[str, str, int, int]:
        parent = image.parent
        if parent not in self._folders:
            self._folders[parent] = fingerprint(str(parent.resolve()))
        stat = os.stat(image)
        return self._folders[parent], image.name, stat.st_size, stat.st_mtime_ns

    def _map(self, part: Path) -> np.ndarray[Any, Any]:
        if part not in self._maps:
            self._maps[part] = np.load(part, mmap_mode="r")
        return self._maps[part]


def _as_numpy(features: Tensor) -> np.ndarray[Any, Any]:
    features = features.cpu()
    if features.dtype == torch.bfloat16:  # numpy has no bfloat16: the bits are kept as uint16
        features = features.view(torch.uint16)
    array: np.ndarray[Any, Any] = features.numpy()
    return array
