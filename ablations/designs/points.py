"""Points that fill the space of the factors, for those with a range: scrambled Sobol points or a Latin hypercube."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, get_args

import numpy as np

from ablations.designs.aliasing import Columns, main_columns
from ablations.designs.design import Design, Levels
from ablations.factors import Factor
from lvlm.errors import InputError

Method = Literal["sobol", "latin_hypercube"]


@dataclass(frozen=True, kw_only=True)
class SpaceFilling(Design):
    """The baseline and `points` that lie evenly over all ranges and levels together (quasi Monte Carlo).

    `sobol` (scrambled) takes a power of two, and with more points keeps those it had, so that a study can grow;
    `latin_hypercube` takes any number, and other points with each. `draw` chooses among the sets of points; it is no
    seed of the study. Numbers are rounded to about a thousandth of their range.
    """

    points: int = 16
    method: Method = "sobol"
    draw: int = 0

    def _raw(self, factors: Sequence[Factor], baseline: Levels) -> Iterable[Levels]:
        from scipy.stats import qmc  # a second, which most studies do without

        self._check()
        if self.method == "sobol":
            shares = qmc.Sobol(len(factors), scramble=True, rng=self.draw).random_base2(self.points.bit_length() - 1)
        else:
            shares = qmc.LatinHypercube(len(factors), rng=self.draw).random(self.points)
        for row in shares.tolist():
            yield {factor.name: factor.at(share) for factor, share in zip(factors, row, strict=True)}

    def tells_apart(self, factors: Sequence[Factor], baseline: Levels) -> list[str]:
        """How many terms a fitted response may have, and how far the factors move together."""
        arms = self.combinations(factors, baseline)
        columns = {factor.name: main_columns(factor, arms) for factor in factors}
        curves = sum(factor.is_continuous for factor in factors)
        sizes = [found.shape[1] for found in columns.values()]
        pairs = sum(one * other for one, other in combinations(sizes, 2))
        terms = 1 + sum(sizes)
        names = ", ".join(factor.name for factor in factors)
        said = f"can tell apart: responses along {names}, by a fit over all {len(arms)} arms"
        for what, more in (("main effects", 0), ("curvature", curves), ("interactions of two factors", pairs)):
            if more or what == "main effects":
                terms += more
                said += f"; {'enough' if terms <= len(arms) else 'too few'} for {what} ({terms} terms in all)"
        found = [_together(columns[one], columns[other]) for one, other in combinations(columns, 2)]
        most = max(found, default=0.0)
        return [said, f"mixed in part: the main effects with each other, which correlate by at most {most:.2f}"]

    def _check(self) -> None:
        if self.method not in get_args(Method):
            raise InputError(f"SpaceFilling: method is sobol or latin_hypercube, not '{self.method}'.")
        if not isinstance(self.points, int) or self.points < 2:
            raise InputError(f"SpaceFilling: points is a whole number, at least 2, not {self.points!r}.")
        if self.method == "sobol" and self.points & (self.points - 1):
            below = 1 << (self.points.bit_length() - 1)
            raise InputError(
                f"SpaceFilling: Sobol points are even in powers of two: take {below} or {2 * below} instead of "
                f"{self.points}, or method='latin_hypercube'."
            )


def _together(one: Columns, other: Columns) -> float:
    """The largest correlation between a column of one factor and one of another."""
    if not one.size or not other.size:
        return 0.0
    found: Columns = np.asarray(np.corrcoef(np.hstack([one, other]).T))[: one.shape[1], one.shape[1] :]
    return float(np.abs(found).max())
