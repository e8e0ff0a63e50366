"""The Frechet distance on local features: how far painted pictures are from real ones as a whole. Used by
`lvlm.paint.scores`; no torch."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

GRID = 3
LOCAL_FEATURES = GRID * GRID * 3
"""Numbers that describe a picture: the mean colour of each block of a 3 x 3 grid."""
Numbers = npt.NDArray[np.float64]


def local_features(pictures: npt.NDArray[np.uint8]) -> Numbers:
    """(pictures, features) of (pictures, side, side, 3): the mean colour of each block, from 0 to 1. They say where
    which colour is, need no trained network, and see no finer detail than a block."""
    bounds = np.linspace(0, pictures.shape[1], GRID + 1).round().astype(int)
    blocks = [
        pictures[:, top:bottom, left:right].mean(axis=(1, 2))
        for top, bottom in pairwise(bounds)
        for left, right in pairwise(bounds)
    ]
    found: Numbers = np.concatenate(blocks, axis=1) / 255.0
    return found


def frechet_distance(first: Numbers, second: Numbers) -> float:
    """||m1 - m2||^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of two sets (pictures, features), each taken as normal. The same
    formula as that of the FID, on other features: never call it so. It is biased upwards where pictures are few."""
    means = [some.mean(axis=0) for some in (first, second)]
    one, two = (np.cov(some, rowvar=False) for some in (first, second))
    values, vectors = np.linalg.eigh(one)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    # The eigenvalues of (C1 C2)^(1/2) are those of the symmetric (R C2 R)^(1/2), where R R = C1.
    shared = np.sqrt(np.linalg.eigvalsh(root @ two @ root).clip(min=0)).sum()
    return float(((means[0] - means[1]) ** 2).sum() + np.trace(one) + np.trace(two) - 2 * shared)
