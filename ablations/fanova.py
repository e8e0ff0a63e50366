"""Functional analysis of variance on regression forests, exact: how much of what a forest predicts belongs to each
factor and pair (Hutter, Hoos and Leyton-Brown, 2014). `importance` calls it for studies whose arms a search chose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestRegressor

Floats = NDArray[np.float64]
Shares = dict[tuple[int, ...], float]

TREES = 64


@dataclass(frozen=True)
class Axis:
    """A factor as a tree sees it: codes 0, 1, ... of `levels` that weigh the same, or numbers of a `span`."""

    levels: int = 0
    span: tuple[float, float] = (0.0, 1.0)

    def cells(self, thresholds: Floats) -> tuple[Floats, Floats]:
        """Points between which the tree's answer does not change, one in each part of the axis, and their weights."""
        if self.levels:
            return np.arange(self.levels, dtype=float), np.full(self.levels, 1 / self.levels)
        low, high = self.span
        inside = np.unique(thresholds[(thresholds > low) & (thresholds < high)])
        edges = np.concatenate([[low], inside, [high]])
        return (edges[:-1] + edges[1:]) / 2, np.diff(edges) / (high - low)


def forest_shares(
    x: Floats, y: Floats, axes: Sequence[Axis], pairs: Sequence[tuple[int, int]], *, seed: int, trees: int = TREES
) -> Shares:
    """Shares of the variance over the whole space of the factors, mean over the trees of one forest.

    `x` has shape (runs, factors). Trees that see no variance say nothing and are left out; without any, shares are 0.
    """
    forest = RandomForestRegressor(n_estimators=trees, random_state=seed).fit(x, y)
    found = [tree_shares(one.tree_, axes, pairs) for one in forest.estimators_]
    kept = [one for one in found if one]
    names: list[tuple[int, ...]] = [*((number,) for number in range(len(axes))), *pairs]
    return {name: float(np.mean([one[name] for one in kept])) if kept else 0.0 for name in names}


def tree_shares(tree: Any, axes: Sequence[Axis], pairs: Sequence[tuple[int, int]]) -> Shares:
    """Shares of one tree's variance; empty where it answers the same everywhere.

    A tree is a sum over its leaves of value x indicator of a box. So the mean over all other factors, as a function of
    some, is a sum over leaves of value x indicator of the box's sides x its volume in the others: nothing is sampled.
    """
    low, high, value = _boxes(tree, len(axes))
    inside, weights = [], []
    for number, axis in enumerate(axes):
        thresholds = np.asarray(tree.threshold)[np.asarray(tree.feature) == number]
        points, weight = axis.cells(thresholds)
        inside.append(((points > low[:, number, None]) & (points <= high[:, number, None])).astype(float))
        weights.append(weight)
    volume = np.stack([side @ weight for side, weight in zip(inside, weights, strict=True)])  # (factors, leaves)
    whole = volume.prod(axis=0)
    mean = float(value @ whole)
    total = float(value**2 @ whole) - mean**2  # the leaves do not overlap
    if total <= 1e-12 * max(1.0, mean**2):
        return {}
    single: dict[int, float] = {}
    for number, side in enumerate(inside):
        others = np.delete(volume, number, axis=0).prod(axis=0)
        marginal = (value * others) @ side
        single[number] = float(weights[number] @ marginal**2) - mean**2
    shares: Shares = {(number,): one / total for number, one in single.items()}
    for first, second in pairs:
        others = np.delete(volume, [first, second], axis=0).prod(axis=0)
        marginal = (inside[first] * (value * others)[:, None]).T @ inside[second]
        both = float(weights[first] @ marginal**2 @ weights[second]) - mean**2
        shares[first, second] = (both - single[first] - single[second]) / total
    return shares


def _boxes(tree: Any, n_factors: int) -> tuple[Floats, Floats, Floats]:
    """Lower (excluded) and upper (included) sides of every leaf, shape (leaves, factors), and the leaves' values."""
    left, right = np.asarray(tree.children_left), np.asarray(tree.children_right)
    feature, threshold, value = np.asarray(tree.feature), np.asarray(tree.threshold), np.asarray(tree.value).ravel()
    lows, highs, values = [], [], []
    waiting = [(0, np.full(n_factors, -np.inf), np.full(n_factors, np.inf))]
    while waiting:
        node, low, high = waiting.pop()
        if left[node] < 0:
            lows.append(low)
            highs.append(high)
            values.append(value[node])
            continue
        below, above = high.copy(), low.copy()
        below[feature[node]] = min(high[feature[node]], threshold[node])
        above[feature[node]] = max(low[feature[node]], threshold[node])
        waiting += [(left[node], low, below), (right[node], above, high)]
    return np.array(lows), np.array(highs), np.array(values)
