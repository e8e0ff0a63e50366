"""Measures whether keeping image features pays. Called at the start of a stage with a frozen tower when
`feature_cache` is `auto`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from lvlm.train.features import VIEWS_PER_BATCH, FeatureStore, TowerFeatures

T = TypeVar("T")


@dataclass(frozen=True)
class Costs:
    """Seconds per image: from file to features, writing features to disk, reading them back."""

    compute: float
    write: float
    read: float
    bytes: int


@dataclass(frozen=True)
class CacheDecision:
    """Whether the features are kept, and why, as a line for the reader."""

    on: bool
    reason: str


def decide_cache(store: FeatureStore, tower: TowerFeatures, images: Sequence[Path], *, uses: int) -> CacheDecision:
    """Weigh computing features at every one of `uses` against computing the missing once and reading them."""
    missing = store.missing(images)
    costs = measure_costs(
        tower, images[: max(2, VIEWS_PER_BATCH // tower.model.config.views)], folder=_existing_parent(store.folder)
    )
    lack = store.space.lack(store.key, len(missing) * costs.bytes)
    return weigh(costs, images=len(images), missing=len(missing), uses=uses, lack=lack)


def weigh(costs: Costs, *, images: int, missing: int, uses: int, lack: str = "") -> CacheDecision:
    """The decision from its numbers alone; `lack` says why the features find no place, if so."""
    without = uses * costs.compute
    with_store = missing * (costs.compute + costs.write) + uses * costs.read
    on = not lack and with_store < without
    reason = (
        f"feature cache {'on' if on else 'off'}: {images} images ({images - missing} already kept) read {uses} times; "
        f"{costs.compute * 1e3:.2f} ms to compute, {costs.write * 1e3:.2f} ms to write, "
        f"{costs.read * 1e3:.2f} ms to read one: {with_store:.1f} s with it, {without:.1f} s without"
    )
    if lack:
        reason += f"; {lack}"
    return CacheDecision(on=on, reason=reason)


def measure_costs(tower: TowerFeatures, images: Sequence[Path], *, folder: Path, rounds: int = 3) -> Costs:
    """Time a few images; the best of some rounds, because the first ones load code and warm caches."""
    best = [float("inf")] * 3
    for _ in range(rounds):
        features, compute = _timed(lambda: _finished(tower(images)))
        block = features.cpu().numpy()
        with tempfile.TemporaryDirectory(dir=folder, prefix=".measure-") as scratch:
            file = Path(scratch) / "features.npy"
            _, write = _timed(lambda: np.save(file, block))  # noqa: B023  called at once
            _, read = _timed(lambda: torch.from_numpy(np.array(np.load(file, mmap_mode="r"))).to(features.device))  # noqa: B023
        best = [min(old, new) for old, new in zip(best, (compute, write, read), strict=True)]
    compute, write, read = (seconds / len(images) for seconds in best)
    return Costs(compute=compute, write=write, read=read, bytes=block.nbytes // len(images))


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def _finished(features: Tensor) -> Tensor:
    if features.device.type == "cuda":
        torch.cuda.synchronize(features.device)
    return features


def _existing_parent(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder
