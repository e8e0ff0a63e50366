"""Resampling: of test items, whose interval speaks of the test set alone, and of seeds. `power` reads the noise of
items here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray
from scipy import special

from ablations.intervals import LEVEL
from ablations.outcomes import group_names, members
from ablations.pairing import By
from lvlm.errors import InputError, nearest

COLUMNS = ("arm", "seed", "task", "language", "item", "score")
NOISE = "test-set noise only"
"""What the interval of `item_bootstrap` speaks of: other items from the same source, but these very runs."""
FEWEST_ITEMS = 20
FEWEST_SEEDS = 10
CHUNK = 4_000_000  # numbers drawn at once: 32 MB
AT_ONCE = 20_000_000  # moves, and resampled means, that are held at once: 80 MB of each, 2,000 means of 10,000 draws
TASK = 1 << 32  # more than there are items

Array = NDArray[np.float64]


@dataclass(frozen=True)
class PairedItems:
    """Differences between two arms, item by item: a row per (task, language) pair and item that both arms answered in
    every seed that both have."""

    pairs: pd.MultiIndex
    """The (task, language) pairs."""
    pair: NDArray[np.int64]
    """(rows,): which pair a row is of, in order."""
    item: NDArray[np.int64]
    """(rows,): which item of which task it is: the number of the task times `TASK`, plus its own. It is the same one in
    all languages of its task."""
    difference: Array
    """(rows, seeds): arm - baseline, in points."""
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Mean:
    """A mean difference over (task, language) pairs, and what each item drawn again does to it."""

    points: float
    item: NDArray[np.int64]
    """(items,): which they are, in order, as in `PairedItems`."""
    moves: Array
    """(items,): by how much drawing it once moves the mean, in points; those of a task sum to 0."""

    @property
    def no_interval(self) -> str:
        """Why resampling gives none; empty where it does."""
        if len(self.item) < FEWEST_ITEMS:
            return "too few items"
        return "no variation" if np.abs(self.moves).max() * len(self.item) < 1e-9 else ""


def item_bootstrap(
    predictions: str | Path | pd.DataFrame,
    arm: str | Sequence[str],
    baseline: str,
    *,
    by: By = "language",
    task: str | None = None,
    draws: int = 10_000,
    seed: int = 0,
    level: float = LEVEL,
) -> pd.DataFrame:
    """Paired differences of the score with percentile intervals from resampling test items: **test-set noise only**.

    `predictions` is a study's `predictions.parquet`, or its rows. One row per arm and group: `points`, the mean over
    (task, language) pairs and seeds as in `contrasts.effects`; `low` and `high`; `n_items`; `noise`, what the interval
    speaks of; `reason`, why there is none. It says how far another test set of the same size could move the difference
    between *these runs*; it knows nothing of other seeds, and is no interval of an effect.

    An item is drawn as a whole, in all arms, seeds and languages, among the items of its task; ends are percentiles of
    `draws` resamples, at the level at which a percentile interval of n normal values is as wide as t's (Hesterberg
    2015, "expanded"). Under 20 items there is none: it would be too short. Where languages of a task have different
    items, the resampled mean is linearised. Deterministic given `seed`, whatever the order of the rows; ends are
    summed in single precision, to about 0.00001 points. An `InputError` names what the predictions lack.
    """
    arms = [arm] if isinstance(arm, str) else list(arm)
    rows = read_scores(predictions, [*arms, baseline])
    names, means = [], []
    for one in arms:
        items = paired_items(rows, one, baseline)
        for name, inside in _groups(items, by, task):
            names.append((one, name))
            means.append(_mean(items, inside))
    if not means:
        of_task = f"the task '{task}'" if task else "these predictions"
        raise InputError(f"No item of {of_task} has a score of {baseline} and of another of these arms in every seed.")
    ends = np.full((len(means), 2), np.nan)
    drawn = [place for place, mean in enumerate(means) if not mean.no_interval]
    if drawn:
        pool = np.unique(np.concatenate([means[place].item for place in drawn]))
        step = max(1, AT_ONCE // max(draws, len(pool)))
        for start in range(0, len(drawn), step):
            part = drawn[start : start + step]
            moved = resampled([means[place] for place in part], pool, draws, np.random.default_rng(seed))
            for place, own in zip(part, moved, strict=True):
                ends[place] = _percentiles(own, expanded_tail(len(means[place].item), level))
                ends[place] += means[place].points
    found = pd.DataFrame(names, columns=["arm", "group"])
    return found.assign(
        points=[mean.points for mean in means], low=ends[:, 0], high=ends[:, 1],
        n_items=[len(mean.item) for mean in means], noise=NOISE, reason=[mean.no_interval for mean in means],
    )  # fmt: skip


def read_scores(predictions: str | Path | pd.DataFrame, arms: Sequence[str]) -> pd.DataFrame:
    """The scored rows of some arms in a study's predictions, with the columns that are needed, texts as categories."""
    if isinstance(predictions, pd.DataFrame):
        _check_columns(list(predictions.columns), "the predictions")
        present = set(predictions["arm"].unique())
        rows = predictions.loc[predictions["arm"].isin(arms), list(COLUMNS)]
    else:
        path = Path(predictions)
        if not path.exists():
            raise InputError(f"There are no predictions at {path}. Write them: python -m sweeps export STUDY.")
        _check_columns(pq.read_schema(path).names, str(path))
        texts = ["arm", "task", "language", "item"]
        table = pq.read_table(path, columns=list(COLUMNS), read_dictionary=texts)
        rows = table.to_pandas(split_blocks=True, self_destruct=True)
        present = set(rows["arm"].cat.categories)
        rows = rows[rows["arm"].isin(arms)]
    if absent := [arm for arm in arms if arm not in present]:
        raise InputError(
            f"No predictions of the arm '{absent[0]}'. The nearest are: {nearest(absent[0], sorted(present))}."
        )
    rows = rows.astype({name: "category" for name in ("arm", "task", "language", "item")})
    # A file names its categories in order of appearance; which items are drawn must not depend on it.
    in_order = {name: rows[name].cat.set_categories(sorted(rows[name].cat.categories)) for name in ("task", "item")}
    return rows.assign(**in_order)


def paired_items(rows: pd.DataFrame, arm: str, baseline: str) -> PairedItems:
    """The differences between two arms in the rows of `read_scores`; several rows of an item are averaged."""
    arms = rows["arm"].cat
    sides = [rows[(arms.codes == arms.categories.get_loc(label)).to_numpy()] for label in (arm, baseline)]
    seeds = np.intersect1d(sides[0]["seed"].unique(), sides[1]["seed"].unique())
    tasks, languages, names = (rows[name].cat.categories for name in ("task", "language", "item"))
    if not len(seeds):
        raise InputError(f"'{arm}' and '{baseline}' have no seed in common in these predictions.")
    tables = []
    for side in sides:
        side = side[side["seed"].isin(seeds).to_numpy() & side["score"].notna().to_numpy()]
        key = side["task"].cat.codes.to_numpy(np.int64)
        for column, size in (("language", len(languages)), ("item", len(names))):
            key = key * size + side[column].cat.codes.to_numpy(np.int64)
        tables.append((key, np.searchsorted(seeds, side["seed"].to_numpy()), side["score"].to_numpy(float)))
    keys = np.unique(np.concatenate([key for key, _, _ in tables]))
    means = []
    for key, place, score in tables:
        cell = np.searchsorted(keys, key) * len(seeds) + place
        size = len(keys) * len(seeds)
        with np.errstate(invalid="ignore"):
            means.append(np.bincount(cell, score, size) / np.bincount(cell, minlength=size))
    difference = (means[0] - means[1]).reshape(len(keys), len(seeds))
    complete = np.isfinite(difference).all(axis=1)
    keys, difference = keys[complete], difference[complete]
    both, item = np.divmod(keys, len(names))
    item += both // len(languages) * TASK
    codes, pair = np.unique(both, return_inverse=True)
    pairs = pd.MultiIndex.from_arrays(
        [tasks[codes // len(languages)], languages[codes % len(languages)]], names=["task", "language"]
    )
    return PairedItems(pairs, pair, item, difference, tuple(int(one) for one in seeds))


def _check_columns(names: Sequence[str], where: str) -> None:
    if missing := [name for name in COLUMNS if name not in names]:
        raise InputError(f"{where} lack the column(s) {', '.join(missing)}; there are: {', '.join(names)}.")


def _groups(items: PairedItems, by: By, task: str | None) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Names of groups and which pairs are theirs."""
    tasks = items.pairs.get_level_values("task").astype(str)
    codes = items.pairs.get_level_values("language").astype(str)
    if by == "task":
        for one in sorted(set(tasks) if task is None else {task}):
            for name in ("en", "multilingual"):
                if (inside := (tasks == one) & codes.isin(list(members(name)))).any():
                    yield f"{one}/{name}", inside
        return
    own = np.ones(len(codes), dtype=bool) if task is None else tasks == task
    for name in group_names(set(codes[own]), by):
        yield f"{task}/{name}" if task else name, own & codes.isin(list(members(name)))


def _mean(items: PairedItems, inside: NDArray[np.bool_]) -> Mean:
    """The mean over the pairs `inside`.

    That over P pairs moves by (d - D) / (n P) for each row d of a pair of n rows and mean D; an item's rows move it
    together.
    """
    ends = np.searchsorted(items.pair, np.arange(len(inside) + 1))  # rows are in the order of the pairs
    taken = np.concatenate([np.arange(ends[one], ends[one + 1]) for one in np.flatnonzero(inside)])
    pair, value = items.pair[taken], items.difference[taken].mean(axis=1)
    rows = np.bincount(pair, minlength=len(inside))
    means = np.bincount(pair, value, len(inside)) / np.maximum(rows, 1)
    moves = (value - means[pair]) / (rows[pair] * int(inside.sum()))
    item, place = np.unique(items.item[taken], return_inverse=True)
    moved = np.bincount(place, moves, len(item)).astype(float)
    return Mean(float(means[inside].mean()), item, moved)


def resampled(
    means: Sequence[Mean], pool: NDArray[np.int64], draws: int, generator: np.random.Generator
) -> NDArray[np.float32]:
    """(means, draws): by how many points items drawn with replacement move each mean; the same items move them all.

    They are drawn from `pool`, (items,), in order, which holds those of every mean: of each task as many as it has
    there. One that a mean lacks does not move it, and leaves its spread as it is: moves that sum to 0 have a resampled
    sum whose variance is the sum of their squares, however many zeros stand beside them.
    """
    moves = np.zeros((len(means), len(pool)), np.float32)
    for own, mean in zip(moves, means, strict=True):
        own[np.searchsorted(pool, mean.item)] = mean.moves
    moved = np.zeros((len(means), draws), np.float32)
    for of_task in np.split(moves, np.flatnonzero(np.diff(pool // TASK)) + 1, axis=1):
        n = of_task.shape[1]
        step = max(1, CHUNK // n)
        for start in range(0, draws, step):
            part = moved[:, start : start + step]
            part += of_task @ _times_drawn(n, part.shape[1], generator).T
    return moved


def _times_drawn(n: int, draws: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """(draws, n): how often each of n is among n drawn with replacement."""
    drawn = generator.integers(0, n, (draws, n))
    drawn += n * np.arange(draws)[:, None]
    return np.bincount(drawn.ravel(), minlength=draws * n).reshape(draws, n).astype(np.float32)


def expanded_tail(n: int, level: float = LEVEL) -> float:
    """The share to cut at each end of n resampled values for an interval as wide as t's (Hesterberg 2015, section 5.3):
    Phi(-t sqrt(n / (n - 1)))."""
    return float(special.ndtr(-special.stdtrit(n - 1, (1 + level) / 2) * (n / (n - 1)) ** 0.5))


def seed_bootstrap(
    by_seed: ArrayLike, *, draws: int = 10_000, seed: int = 0, level: float = LEVEL
) -> tuple[Array, Array]:
    """Expanded percentile intervals of means over seeds, from (..., seeds) -> two of (...).

    NaN with fewer than 10 seeds: a resample of so few cannot be far enough from the mean, and the interval would cover
    73 % with 3 seeds and 83 % with 5. The t intervals of `intervals` hold there.
    """
    values = np.asarray(by_seed, dtype=float)
    flat, seeds = values.reshape(-1, values.shape[-1]), values.shape[-1]
    ends = np.full((2, len(flat)), np.nan)
    if seeds >= FEWEST_SEEDS:
        weights, tail = _weights(seeds, draws, seed), expanded_tail(seeds, level)
        mean = flat.mean(axis=1, keepdims=True)
        step = max(1, CHUNK // draws)
        for start in range(0, len(flat), step):
            part = slice(start, start + step)
            moves = (flat[part] - mean[part]).astype(np.float32) @ weights.T  # of the mean, so that 7 digits are plenty
            ends[:, part] = mean[part, 0] + _percentiles(moves, tail)
    low, high = ends.reshape(2, *values.shape[:-1])
    return low, high


@lru_cache(maxsize=4)
def _weights(seeds: int, draws: int, seed: int) -> NDArray[np.float32]:
    """(draws, seeds): the share of each seed in a resample; every group of a table needs the same ones."""
    return _times_drawn(seeds, draws, np.random.default_rng(seed)) / np.float32(seeds)


def _percentiles(drawn: NDArray[np.floating[Any]], tail: float) -> NDArray[np.floating[Any]]:
    """The values with a share `tail` below and above them, along the last axis, as (2, ...); sorts `drawn` in part."""
    below = round(tail * (drawn.shape[-1] - 1))
    above = drawn.shape[-1] - 1 - below
    drawn.partition((below, above), axis=-1)
    return np.stack([drawn[..., below], drawn[..., above]])
