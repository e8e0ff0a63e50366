"""Two outcomes at once: which arms no other arm beats in both, which may be among them, and the cheapest arm that is
within noise of the best. Notebooks, `report` and `plots` call it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ablations.blocks import blocks, outcome
from ablations.contrasts import Effect, effect
from ablations.intervals import over_seeds
from ablations.table import BUDGET_COLUMNS
from lvlm.errors import InputError

if TYPE_CHECKING:
    from ablations.table import Results

Floats = NDArray[np.float64]
SECONDS = "train_seconds"
"""Of the budget's two times that which counts every stage of an arm's model, whichever run trained it."""


@dataclass(frozen=True)
class Cheapest:
    """The cheapest arm that is not shown to be worse than the best one.

    `effect` is that arm minus the best arm: its lower bound is how much may be lost. `arms` has a row per arm, the
    cheapest first: cost, difference from the best with its interval, and whether that is within noise.
    """

    arm: str
    best: str
    effect: Effect
    cost: str
    amount: float
    best_amount: float
    margin: float | None
    arms: pd.DataFrame

    def text(self) -> str:
        """One sentence with the effect."""
        if self.arm == self.best:
            return f"'{self.arm}' is the best arm and the cheapest of those within noise of it"
        saved = 1 - self.amount / self.best_amount if self.best_amount else 0.0
        return f"'{self.arm}' costs {saved:.0%} less {_words(self.cost)} than '{self.best}': {self.effect.text()}"

    def table(self) -> pd.DataFrame:
        """All arms for reading."""
        own = self.arms
        bounds = [
            f"[{low:+.1f}, {high:+.1f}]" if np.isfinite(low) else "–"
            for low, high in zip(own["low"], own["high"], strict=True)
        ]
        return pd.DataFrame(
            {
                "arm": own["arm"],
                _words(self.cost): [f"{one:,.0f}" for one in own["cost"]],
                "below the best": [f"{one:+.1f}" for one in own["points"]],
                "95 % interval": bounds,
                "within noise": ["yes" if one else "no" for one in own["within_noise"]],
            }
        )

    def _repr_html_(self) -> str:
        return f"<p>{self.text()}</p>{self.table().to_html(index=False, border=0)}"


def pareto(results: Results, *, x: str = "score/en", y: str = "score/multilingual") -> pd.DataFrame:
    """All arms by two outcomes, and which of them no other arm beats in both.

    Columns: `arm`; `x`, `y`, means over the seeds that all arms have, each with its t interval over seeds; `on_front`:
    no other mean is at least as high in both and higher in one; `reaches_front`: no other arm is shown to be better in
    both, by differences paired by seed; `beaten_by`: the arm that is, else empty; `seconds` of training.

    The intervals of the means hold what the arms of a seed share, and are wide; differences do without it, so that
    `reaches_front` is no matter of overlapping bars. An arm is put aside only where two intervals both exclude 0, the
    intersection-union test (Berger, 1982), with each of those arms whose means are higher.

    Of six arms that truly lie on one front, 3 seeds each, 2 of 360 were put aside: two intervals that both have to
    exclude 0 are rarely wrong at once.
    """
    outcomes = [outcome(x), outcome(y)]
    arms = [str(label) for label in results.arms().index]
    found = [blocks(results, arms, metric=metric, group=group).array for metric, group in outcomes]
    means = np.stack([one.mean(axis=0) for one in found], axis=1)
    beaten = [_beaten_by(results, number, means, arms, outcomes) for number in range(len(arms))]
    bounds = [[over_seeds(one[:, number]) for number in range(len(arms))] for one in found]
    frame = pd.DataFrame({"arm": arms})
    for name, column, own in zip("xy", means.T, bounds, strict=True):
        frame[name] = column
        frame[f"{name}_low"], frame[f"{name}_high"] = [one.low for one in own], [one.high for one in own]
    frame["on_front"] = on_front(means)
    frame["reaches_front"] = [not one for one in beaten]
    frame["beaten_by"] = beaten
    budget = results.budget()
    seconds = budget[SECONDS] if SECONDS in budget else pd.Series(dtype=float)
    return frame.assign(seconds=seconds.reindex(arms).to_numpy(dtype=float))


def on_front(means: Floats) -> NDArray[np.bool_]:
    """Which points, shape (points, outcomes), no other one is at least as high as in all and higher than in one."""
    no_less = (means[:, None, :] >= means[None, :, :]).all(axis=-1)
    higher = (means[:, None, :] > means[None, :, :]).any(axis=-1)
    return np.asarray(~(no_less & higher).any(axis=0))


def cheapest_within_noise(
    results: Results,
    *,
    metric: str = "score",
    group: str = "multilingual",
    cost: str = "flops",
    margin: float | None = None,
) -> Cheapest:
    """The cheapest of the arms whose difference from the best one is within noise.

    `cost` is a column of `Results.budget()`; FLOPs and tokens are counted, seconds hang on the machine as well. Within
    noise is not the same as equal: with few seeds much is. With a `margin` an arm must be shown to lose less than so
    many points (its lower bound is above -margin).

    The best arm is the one that came out best, and what it owes to luck makes the others look worse than they are: too
    few arms are found within noise, not too many.
    """
    budget = results.budget()
    if cost not in BUDGET_COLUMNS:
        raise InputError(f"cost is one of {', '.join(BUDGET_COLUMNS)}, not '{cost}'.")
    if margin is not None and not margin > 0:
        raise InputError(f"margin is how many points may be lost, above 0, not {margin!r}.")
    known = budget[cost].dropna() if cost in budget else pd.Series(dtype=float)
    arms = [str(label) for label in results.arms().index if label in known.index]
    if not arms:
        raise InputError(
            f"What the arms cost in {_words(cost)} is not recorded beside {results.folder}; recorded: "
            f"{', '.join(budget.columns[budget.notna().any()]) or 'nothing'}. "
            f"Write it: python -m sweeps export {results.name}."
        )
    means = blocks(results, arms, metric=metric, group=group).means.mean()
    best = str(means.idxmax())
    effects = {arm: effect(results, arm, best, metric=metric, group=group) for arm in arms if arm != best}
    near = {arm: _is_near(one, margin) for arm, one in effects.items()} | {best: True}
    frame = pd.DataFrame(
        {
            "arm": arms,
            "cost": [float(known[arm]) for arm in arms],
            "points": [effects[arm].points if arm in effects else 0.0 for arm in arms],
            "low": [effects[arm].low if arm in effects else np.nan for arm in arms],
            "high": [effects[arm].high if arm in effects else np.nan for arm in arms],
            "within_noise": [near[arm] for arm in arms],
        }
    ).sort_values(["cost", "points"], ascending=[True, False], ignore_index=True)
    arm = str(frame.loc[frame["within_noise"], "arm"].iloc[0])
    own = effects.get(arm) or effect(results, best, best, metric=metric, group=group)
    return Cheapest(arm, best, own, cost, float(known[arm]), float(known[best]), margin, frame)


def _is_near(one: Effect, margin: float | None) -> bool:
    """Whether an arm is not shown to be worse than the best; with a margin, whether it is shown to lose less."""
    if not np.isfinite(one.low):
        return False
    return one.low > -margin if margin is not None else one.high >= 0


def _beaten_by(results: Results, number: int, means: Floats, arms: list[str], outcomes: list[tuple[str, str]]) -> str:
    """An arm that is shown to be better in both outcomes, the furthest ahead first; empty where none is."""
    ahead = means - means[number]
    better = np.flatnonzero((ahead > 0).all(axis=1))
    for other in better[np.argsort(-ahead[better].min(axis=1))]:
        pair = (arms[int(other)], arms[number])
        if all(effect(results, *pair, metric=metric, group=group).low > 0 for metric, group in outcomes):
            return pair[0]
    return ""


def _words(cost: str) -> str:
    return {"llm_tokens": "LLM tokens", "flops": "FLOPs", "train_seconds": "seconds of training"}.get(cost, cost)
