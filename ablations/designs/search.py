"""An adaptive search: arms that are chosen one after the other by the scores of those before. `sweeps` proposes them;
what is fixed beforehand is the baseline alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Literal, get_args

from ablations.designs.design import Design, Levels
from ablations.designs.grids import FullGrid
from ablations.factors import Factor
from lvlm.errors import InputError

Sampler = Literal["tpe", "gp", "nsga2"]
Prune = Literal["successive_halving", "hyperband"]
MOST_COUNTED = 10_000
"""A space of more combinations is not counted out: no search is as long."""


@dataclass(frozen=True, kw_only=True)
class Search(Design):
    """`arms` arms, the baseline first, each proposed from the scores of those that have finished.

    `tpe` is a tree-structured Parzen estimator, `gp` a Gaussian process with expected improvement, `nsga2` a genetic
    algorithm for two objectives. The `first` arms are drawn at random (of `nsga2`: so many are a generation). `draw`
    chooses among the courses that a search can take; it is no seed of the study. What is maximised is the mean over the
    seeds of the study's `primary`, or of the two `objectives`, of which the primary is one.

    `prune` ends runs early whose scores on the `tune` split are worse than those of other arms with the same seed: for
    searches over nuisance factors alone (`Factor(nuisance=True)`), and with `tpe`, which learns from such runs too.

    A search finds good arms, and tells nothing of effects: levels that score well are seen more often.
    """

    arms: int
    sampler: Sampler = "tpe"
    objectives: tuple[str, ...] = ()
    first: int = 10
    draw: int = 0
    prune: Prune | None = None

    def _raw(self, factors: Sequence[Factor], baseline: Levels) -> Iterable[Levels]:
        self._check()
        in_order(factors)
        room = self._combinations(factors, baseline)
        if room is not None and room < self.arms:
            raise InputError(
                f"Search: these factors have {room} combinations, fewer than arms={self.arms}. Run all of them, with "
                "FullGrid, or search among fewer."
            )
        if self.prune and (scientific := [factor.name for factor in factors if not factor.nuisance]):
            raise InputError(
                f"Search: prune={self.prune!r} ends the runs of arms that do badly, so that what is left says nothing "
                f"true of {', '.join(scientific)}. Prune in a search over nuisance factors alone, such as a learning "
                "rate, which are declared with Factor(nuisance=True); or leave prune out."
            )
        return ()

    def tells_apart(self, factors: Sequence[Factor], baseline: Levels) -> list[str]:
        """One line: arms that were chosen by their scores have no unbiased contrast."""
        return [
            f"can tell apart: no effects of {', '.join(factor.name for factor in factors)}, since the arms are chosen "
            "by their scores; run a design over what the search found for those"
        ]

    def _combinations(self, factors: Sequence[Factor], baseline: Levels) -> int | None:
        """How many arms there can be; None where these are too many to count."""
        if any(factor.is_continuous for factor in factors):
            return None
        if math.prod(len(factor.levels) for factor in factors) > MOST_COUNTED:
            return None
        return len(FullGrid().combinations(factors, baseline))

    def _check(self) -> None:
        if self.sampler not in get_args(Sampler):
            raise InputError(f"Search: sampler is one of {', '.join(get_args(Sampler))}, not '{self.sampler}'.")
        for name, least in (("arms", 2), ("first", 1), ("draw", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InputError(f"Search: {name} is a whole number, at least {least}, not {value!r}.")
        number = len(self.objectives)
        if isinstance(self.objectives, str) or number not in (0, 2) or len(set(self.objectives)) != number:
            raise InputError(
                f"Search: objectives are two different scores, or left out for the study's primary one; given: "
                f"{self.objectives!r}."
            )
        if self.sampler == "nsga2" and not number:
            raise InputError(
                "Search: nsga2 is for two objectives, such as objectives=('score/en', 'score/multilingual'). With one, "
                "take tpe or gp."
            )
        if self.sampler == "gp" and number:
            raise InputError("Search: gp is for one objective. With two, take nsga2 or tpe.")
        if self.prune is not None and self.prune not in get_args(Prune):
            raise InputError(f"Search: prune is one of {', '.join(get_args(Prune))}, not '{self.prune}'.")
        if self.prune and (self.sampler != "tpe" or number):
            raise InputError(
                "Search: prune is for sampler='tpe' with one objective, which alone learns from runs that were ended."
            )


def in_order(factors: Sequence[Factor]) -> list[Factor]:
    """The factors, each after those whose levels it requires. Raises `InputError` where they require each other."""
    by_name = {factor.name: factor for factor in factors}
    try:
        names = TopologicalSorter({name: list(factor.requires) for name, factor in by_name.items()}).static_order()
        return [by_name[name] for name in names]
    except CycleError as error:
        raise InputError(f"Search: factors require each other: {', '.join(error.args[1])}.") from error
