"""Measures whether keeping image features pays. Called at the start of a stage with a frozen tower when
`feature_cache` is `auto`."""

from __future__ import annotations

import math
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
from lvlm.train.space import existing_parent

T = TypeVar("T")
ROUNDS, ENOUGH_SECONDS, SLOW_SECONDS = 2, 5.0, 1.0
WORTH = 0.8
"""Features are kept where that takes at most this share of the time without: less is within the noise of a measurement
of moments, and not worth the disk."""


@dataclass(frozen=True)
class Costs:
    """Seconds per image: from file to features in calls as small as those of training, the same while the store is
    filled, writing features to disk, reading them back."""

    compute: float
    fill: float
    write: float
    read: float
    bytes: int


@dataclass(frozen=True)
class CacheDecision:
    """Whether the features are kept, and why, as a line for the reader."""

    on: bool
    reason: str
    seconds_with: float = math.nan
    seconds_without: float = math.nan
    """What it would take for all uses, where that was measured."""
    lack: str = ""
    """Why they find no place, if so; room may come back, so that nobody holds on to such a decision."""


def decide_cache(
    store: FeatureStore, tower: TowerFeatures, images: Sequence[Path], *, uses: int, per_call: int
) -> CacheDecision:
    """Weigh computing features at every one of `uses`, `per_call` images at a time, against computing the missing once
    and reading them."""
    missing = store.missing(images)
    sample = images[: max(2, VIEWS_PER_BATCH // tower.model.config.views)]
    costs = measure_costs(tower, sample, per_call=per_call, folder=existing_parent(store.folder))
    lack = store.space.lack(store.key, len(missing) * costs.bytes)
    return weigh(costs, images=len(images), missing=len(missing), uses=uses, lack=lack)


def weigh(costs: Costs, *, images: int, missing: int, uses: int, lack: str = "") -> CacheDecision:
    """The decision from its numbers alone; `lack` says why the features find no place, if so."""
    without = uses * costs.compute
    with_store = missing * (costs.fill + costs.write) + uses * costs.read
    on = not lack and with_store <= WORTH * without
    reason = (
        f"feature cache {'on' if on else 'off'}: {images} images ({images - missing} already kept) read {uses} times; "
        f"{costs.compute * 1e3:.2f} ms to compute, {costs.write * 1e3:.2f} ms to write, "
        f"{costs.read * 1e3:.2f} ms to read one: {with_store:.1f} s with it, {without:.1f} s without"
    )
    if lack:
        reason += f"; {lack}"
    return CacheDecision(on, reason, seconds_with=with_store, seconds_without=without, lack=lack)


def measure_costs(tower: TowerFeatures, images: Sequence[Path], *, per_call: int, folder: Path) -> Costs:
    """Time a few images; the best of some rounds, because the first ones load code and warm caches. A tower that takes
    long is timed on two images."""
    _, warming = _timed(lambda: _finished(tower(images[:2])))
    if warming > SLOW_SECONDS:
        images = images[:2]
    calls = [images[start : start + per_call] for start in range(0, len(images), per_call)]
    best, began = [float("inf")] * 4, time.perf_counter()
    for _ in range(ROUNDS):
        features, fill = _timed(lambda: _finished(tower(images)))
        _, compute = _timed(lambda: _each(tower, calls)) if len(calls) > 1 else (None, fill)
        block = features.cpu().numpy()
        with tempfile.TemporaryDirectory(dir=folder, prefix=".measure-") as scratch:
            file = Path(scratch) / "features.npy"
            _, write = _timed(lambda: np.save(file, block))  # noqa: B023  called at once
            _, read = _timed(lambda: torch.from_numpy(np.array(np.load(file, mmap_mode="r"))).to(features.device))  # noqa: B023
        best = [min(old, new) for old, new in zip(best, (compute, fill, write, read), strict=True)]
        if time.perf_counter() - began > ENOUGH_SECONDS:
            break
    compute, fill, write, read = (seconds / len(images) for seconds in best)
    return Costs(compute=compute, fill=fill, write=write, read=read, bytes=block.nbytes // len(images))


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def _each(tower: TowerFeatures, calls: Sequence[Sequence[Path]]) -> None:
    """Features call by call, read by the same loader processes as in training."""
    for call in tower.parts(calls):
        for features in call:
            _finished(features)


def _finished(features: Tensor) -> Tensor:
    if features.device.type == "cuda":
        torch.cuda.synchronize(features.device)
    return features
