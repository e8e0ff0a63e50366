"""Power: from the noise of a pilot, the seeds, languages and items that show a difference of a given size.

`python -m ablations power` prints it.
"""

from __future__ import annotations

from bisect import bisect_left as bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from ablations.factors import Level
from ablations.intervals import FEWEST, POWER, combined, visible
from ablations.pairing import PAIR, by_language, in_group, sides
from ablations.resampling import PairedItems, paired_items, read_scores
from lvlm.errors import InputError
from lvlm.records import PREDICTIONS_FILE

if TYPE_CHECKING:
    from ablations.table import Results

MOST = 200
"""Seeds and languages that are looked at; more items than 100 times the pilot's are not."""
SHOWN_SEEDS = (2, 3, 4, 5, 6, 8, 10, 15, 20, 30)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Components:
    """Variances of one paired difference of a run in one language, in squared points, from a pilot.

    `language` is how unequally an arm moves languages; `residual` what is left of a seed in a language. Of these two,
    test items make up `item_language` and `item_residual` where `items` of them were asked per language: they shrink as
    1 / items. NaN where no predictions tell them.
    """

    seed: float
    language: float
    residual: float
    items: float = float("nan")
    item_language: float = 0.0
    item_residual: float = 0.0

    def with_items(self, items: float) -> Components:
        """The components with another number of items per language."""
        share = self.items / items
        return Components(
            seed=self.seed,
            language=self.language + (share - 1) * self.item_language,
            residual=self.residual + (share - 1) * self.item_residual,
            items=items,
            item_language=share * self.item_language,
            item_residual=share * self.item_residual,
        )


@dataclass(frozen=True)
class Power:
    """What it takes to see `difference` points with this `power`; None where nothing in reach is enough.

    `seeds` speak of languages like these, as the headline interval does, which takes three of both; `seeds_here` of
    these very languages. `languages` (like these) and `items` (per language) are those with as many seeds as the pilot
    has, all else alike. `curve` has the smallest visible difference by number of seeds, NaN where so few speak of
    themselves alone. `paired` is the standard deviation of a paired difference of runs over that of an unpaired one:
    common random numbers are worth 1 / `paired` ** 2 times the seeds.
    """

    difference: float
    metric: str
    group: str
    power: float
    components: Components
    n_arms: int
    n_seeds: int
    n_languages: int
    seeds: int | None
    seeds_here: int | None
    languages: int | None
    items: int | None
    paired: float
    correlation: float
    curve: pd.DataFrame

    def text(self) -> str:
        """The answer for reading."""
        return "\n".join([*self._noise(), "", *self._needed(), "", *self._curve()])

    def _noise(self) -> list[str]:
        of, items = self.components, np.isfinite(self.components.items)
        lines = [
            f"{self.metric}, {self.group}: {_many(self.n_arms, 'comparison')} with the baseline, "
            f"{_many(self.n_seeds, 'seed')}, {_many(self.n_languages, 'language')}",
            "",
            "Noise of a paired difference, standard deviations in points:",
            f"  between seeds                {_sd(of.seed)}",
        ]
        if self.n_languages > 1:
            lines.append(f"  between languages            {_sd(of.language)}" + _share(of.item_language, items))
            lines.append(f"  seed by language, the rest   {_sd(of.residual)}" + _share(of.item_residual, items))
        elif items:
            lines.append(f"  of which test items          {_sd(of.item_residual)}")
        return [
            *lines,
            f"Paired by seed it is {self.paired:.2f} times that of unpaired runs (correlation {self.correlation:.2f}): "
            f"common random numbers are worth {1 / self.paired**2:.1f} times the seeds.",
        ]

    def _needed(self) -> list[str]:
        lines = [f"To see {_many(self.difference, 'point')} with {self.power:.0%} power:"]
        if self.n_languages >= FEWEST:
            like_these = _many(self.seeds, "seed") if self.seeds else f"more than {MOST} seeds, if any number does"
            lines.append(f"  for languages like these     {like_these}")
        lines.append(
            "  for these languages          "
            + (_many(self.seeds_here, "seed") if self.seeds_here else f"more than {MOST} seeds")
        )
        kept = f"with {_many(self.n_seeds, 'seed')} as here"
        if self.n_languages > 1 and self.n_seeds >= FEWEST:
            enough = _many(self.languages, "language") if self.languages else f"more than {MOST} languages"
            lines.append(f"  {kept:<28} {enough} of this kind")
        if np.isfinite(self.components.items):
            now = f"there are {self.components.items:,.0f}"
            per = (
                f"{self.items:,} items per language ({now})" if self.items else f"no number of items is enough ({now})"
            )
            lines.append(f"  {kept:<28} {per}")
        return lines

    def _curve(self) -> list[str]:
        wide = self.n_languages >= FEWEST
        lines = [
            f"Smallest visible difference in points, {self.power:.0%} power:",
            "  seeds   these languages" + ("   languages like these" if wide else ""),
        ]
        for row in self.curve[self.curve["seeds"].isin((*SHOWN_SEEDS, self.n_seeds))].to_dict("records"):
            line = f"  {row['seeds']:>5.0f}   {row['these_languages']:>15.2f}"
            like_these = row["languages_like_these"]
            lines.append(line + (f"   {'–' if np.isnan(like_these) else f'{like_these:.2f}':>20}" if wide else ""))
        return lines


def plan(
    results: Results,
    *,
    difference: float,
    metric: str = "score",
    group: str = "multilingual",
    arms: Sequence[str | Mapping[str, Level]] | None = None,
    baseline: str | Mapping[str, Level] | None = None,
    power: float = POWER,
) -> Power:
    """What it takes to see a difference, from the noise of all comparisons with the baseline (or of some `arms`).

    Components are from the mean squares of each comparison's two-way layout, averaged over comparisons by their degrees
    of freedom and not below 0. A large effect is often uneven over languages and raises that component: name `arms`
    like the one that is planned. The pilot's own number of seeds makes them uncertain: with 3 seeds and one comparison
    the true standard deviation between seeds may be from half to six times the one that is found.
    """
    if not (np.isfinite(difference) and difference > 0):
        raise InputError(f"A difference to be seen is a positive number of points, not {difference:g}.")
    if not 0.05 < power < 1:
        raise InputError(f"Power is a share between 0.05 and 1, such as 0.8, not {power:g}.")
    against = results.label(baseline)
    chosen = [results.label(arm) for arm in arms] if arms is not None else [str(one) for one in results.arms().index]
    pilots = _pilots(results, [arm for arm in chosen if arm != against], against, metric=metric, group=group)
    if not pilots:
        raise InputError(
            f"Nothing tells the noise of '{metric}' in '{group}': no arm of {results.folder} has two seeds in common "
            f"with the baseline ({against}) there. Run two seeds of two arms first."
        )
    found = _pooled([one - other for _, one, other in pilots])
    if metric == "score":
        found = _with_items(results, found, [arm for arm, _, _ in pilots], against, group)
    n_seeds, n_languages = (max(block.shape[axis] for _, block, _ in pilots) for axis in (0, 1))
    own = float(np.mean([_between_seeds(one - other) for _, one, other in pilots]))
    apart = float(np.mean([_between_seeds(one) + _between_seeds(other) for _, one, other in pilots]))
    if own <= 0:
        raise InputError(
            f"All comparisons of '{metric}' in '{group}' are the same in every seed, so that nothing tells their noise."
        )
    seeds, languages = np.arange(2, MOST + 1), np.arange(FEWEST, MOST + 1)
    here = smallest_difference(found, seeds, n_languages, power=power, here=True)
    like_these = smallest_difference(found, seeds, n_languages, power=power)
    like_these = np.where(np.minimum(seeds, n_languages) < FEWEST, np.nan, like_these)
    with_languages = smallest_difference(found, n_seeds, languages, power=power)
    return Power(
        difference=difference, metric=metric, group=group, power=power, components=found, n_arms=len(pilots),
        n_seeds=n_seeds, n_languages=n_languages, seeds=_first(seeds, like_these, difference),
        seeds_here=_first(seeds, here, difference),
        languages=_first(languages, with_languages, difference) if n_languages > 1 and n_seeds >= FEWEST else None,
        items=_fewest_items(found, n_seeds, n_languages, difference, power),
        paired=float((own / apart) ** 0.5) if apart > 0 else float("nan"),
        correlation=float(1 - own / apart) if apart > 0 else float("nan"),
        curve=pd.DataFrame({"seeds": seeds, "these_languages": here, "languages_like_these": like_these}),
    )  # fmt: skip


def smallest_difference(
    components: Components, seeds: ArrayLike, languages: ArrayLike, *, power: float = POWER, here: bool = False
) -> Array:
    """The smallest difference, in points, that a design of so many seeds and languages sees with this power.

    The expected mean squares take the place of those that an interval of `intervals.crossed` would find: noncentral t
    with Satterthwaite's degrees of freedom. With fewer than three seeds or languages, and with `here` (these very
    languages), it is the t interval over seeds (`statsmodels.stats.power.TTestPower` gives the same).
    """
    s, n = (np.asarray(one, dtype=float) for one in np.broadcast_arrays(seeds, languages))
    rest = components.residual / (s * n)
    of_seeds = (components.seed / s + rest, s - 1)
    over_seeds = visible(of_seeds[0] ** 0.5, of_seeds[1], power=power)
    if here:
        return over_seeds
    variance, df = combined(of_seeds, [(components.language / n + rest, n - 1)], [rest])
    return np.where(np.minimum(s, n) < FEWEST, over_seeds, visible(variance**0.5, df, power=power))


def _pilots(
    results: Results, arms: Sequence[str], baseline: str, *, metric: str, group: str
) -> list[tuple[str, Array, Array]]:
    """(arm, its values, the baseline's), each (seeds, languages), of the arms with two seeds in common with it."""
    found = []
    for arm in arms:
        first, second = (
            by_language(side.to_numpy(dtype=float), side.columns, group)  # type: ignore[arg-type]
            for side in sides(results, arm, baseline, metric=metric)
        )
        if first.size and len(first) > 1:
            found.append((arm, first, second))
    return found


def _between_seeds(block: Array) -> float:
    return float(block.mean(axis=1).var(ddof=1))


def _pooled(differences: Sequence[Array]) -> Components:
    """Variance components of two-way layouts (seeds, languages), averaged by their degrees of freedom between seeds."""
    found, weights = [], []
    for block in differences:
        seeds, languages = block.shape
        weights.append(seeds - 1)
        of_seeds = _between_seeds(block)
        if languages == 1:
            found.append((of_seeds, 0.0, 0.0))
            continue
        rest = block - block.mean(axis=1, keepdims=True) - block.mean(axis=0) + block.mean()
        residual = (rest**2).sum() / ((seeds - 1) * (languages - 1))
        found.append((of_seeds - residual / languages, block.mean(axis=0).var(ddof=1) - residual / seeds, residual))
    return Components(*np.maximum(0.0, np.average(found, axis=0, weights=weights)).tolist())


def _with_items(results: Results, found: Components, arms: Sequence[str], baseline: str, group: str) -> Components:
    """The components with the part of test items in them, where predictions lie beside the results.

    These tell how much one item varies, also where they are a part of all, as in example records; how many were asked
    stands in the table of results.
    """
    path = results.folder / PREDICTIONS_FILE
    if not path.exists():
        return found
    rows = read_scores(path, [*arms, baseline])
    asked = results.table[results.table["metric"] == "score"].groupby(PAIR)["n"].mean().dropna()
    every = (_item_parts(paired_items(rows, arm, baseline), asked, group) for arm in arms)
    parts = [part for part in every if part is not None]
    if not parts:
        return found
    items, stable, varying = np.mean(parts, axis=0).tolist()
    if found.residual == 0 and found.language == 0:  # one language: what seeds show has its items in it
        varying = min(varying, found.seed)
        return replace(found, seed=found.seed - varying, residual=varying, items=items, item_residual=varying)
    return replace(
        found, items=items, item_language=min(stable, found.language), item_residual=min(varying, found.residual)
    )


def _item_parts(paired: PairedItems, asked: pd.Series[float], group: str) -> tuple[float, float, float] | None:
    """(items per language, variance that their choice gives a language's mean, the same for a seed in a language).

    `asked` is how many items each (task, language) pair has.
    """
    inside = np.flatnonzero(in_group(paired.pairs, group))
    if not len(inside) or len(paired.seeds) < 2:
        return None
    codes = paired.pairs.get_level_values("language")[inside]
    stable, varying, items = [], [], []
    for pair in inside:
        block = paired.difference[paired.pair == pair]
        if len(block) < 2:
            return None
        rest = block - block.mean(axis=1, keepdims=True) - block.mean(axis=0) + block.mean()
        residual = (rest**2).sum() / ((len(block) - 1) * (block.shape[1] - 1))
        items.append(float(asked.get(paired.pairs[int(pair)], len(block))))
        varying.append(residual / items[-1])
        stable.append(max(0.0, float(block.mean(axis=1).var(ddof=1)) - residual / block.shape[1]) / items[-1])
    of_language = pd.DataFrame({"stable": stable, "varying": varying, "items": items}).groupby(np.asarray(codes))
    parts, tasks = of_language.sum(), of_language.size()
    means = parts[["stable", "varying"]].div(tasks**2, axis=0).mean()
    return float(parts["items"].mean()), float(means["stable"]), float(means["varying"])


def _first(numbers: NDArray[np.int64], smallest: Array, difference: float) -> int | None:
    """The first number with which the difference is seen."""
    enough = np.flatnonzero(smallest <= difference)
    return int(numbers[enough[0]]) if len(enough) else None


def _fewest_items(found: Components, seeds: int, languages: int, difference: float, power: float) -> int | None:
    """The fewest items per language with which the difference is seen, of up to 100 times the pilot's."""
    if np.isnan(found.items):
        return None

    def seen(items: int) -> bool:
        smallest = smallest_difference(found.with_items(items), seeds, languages, power=power)
        return bool(smallest <= difference)

    most = int(100 * found.items)
    number = bisect(range(1, most + 1), True, key=seen)
    return number + 1 if number < most else None


def _many(number: float, noun: str) -> str:
    return f"{number:g} {noun}{'s' if number != 1 else ''}"


def _sd(variance: float) -> str:
    return f"{variance**0.5:6.2f}"


def _share(variance: float, known: bool) -> str:
    return f"   (of which test items {variance**0.5:.2f})" if known else ""
