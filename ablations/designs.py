"""Designs: which combinations of levels are run.

A study names one for the default budget and one for the full budget.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

from ablations.factors import Factor, Level
from lvlm.errors import InputError

Levels = dict[str, Level]
"""One combination: factor name -> level, in the order of the factors; None where a factor does not apply."""


class Design(ABC):
    """Turns factors and a baseline into combinations of levels, the baseline first."""

    @abstractmethod
    def _raw(self, factors: Sequence[Factor], baseline: Levels) -> Iterable[Levels]:
        """Combinations before conditions are applied; repetitions are allowed."""

    def combinations(self, factors: Sequence[Factor], baseline: Levels) -> list[Levels]:
        """The combinations to run: conditions applied, each once, the baseline first."""
        unique: dict[tuple[str, ...], Levels] = {}
        for levels in (baseline, *self._raw(factors, baseline)):
            resolved = resolve(factors, levels)
            unique.setdefault(tuple(map(repr, resolved.values())), resolved)
        return list(unique.values())


@dataclass(frozen=True)
class FullGrid(Design):
    """Every combination: all interactions are clear."""

    def _raw(self, factors: Sequence[Factor], baseline: Levels) -> Iterable[Levels]:
        names = [factor.name for factor in factors]
        return (dict(zip(names, levels, strict=True)) for levels in product(*(factor.levels for factor in factors)))


@dataclass(frozen=True, kw_only=True)
class OneAtATime(Design):
    """The baseline, and arms that differ from it in one factor. Cheap, and blind to interactions.

    `levels` narrows what is tried: factor name -> levels. A factor that is not named takes all of its levels.
    """

    levels: Mapping[str, Sequence[Level]] = field(default_factory=dict)

    def _raw(self, factors: Sequence[Factor], baseline: Levels) -> Iterable[Levels]:
        _known(self.levels, factors, "OneAtATime")
        for factor in factors:
            for level in self.levels.get(factor.name, factor.levels):
                if level not in factor.levels:
                    raise InputError(
                        f"OneAtATime: {level!r} is not a level of factor '{factor.name}': {factor.levels!r}."
                    )
                yield {**baseline, factor.name: level}


@dataclass(frozen=True, kw_only=True)
class KeepInteraction(Design):
    """A fraction of the grid: main effects and the interaction of the two factors in `keep` are clear of each other.

    Every combination of the two kept factors is run at the baseline of the others. Each other level of each other
    factor is run beside one `of`-th of these combinations, spread so that every level of the kept factors takes part:
    its effect is a mean of pairs of arms that differ in nothing else (`contrasts.main_effect`; the interaction that is
    kept: `contrasts.interaction`). Confounded are the interactions with the factors outside `keep`.
    """

    keep: tuple[str, str]
    of: int = 2

    def _raw(self, factors: Sequence[Factor], baseline: Levels) -> Iterable[Levels]:
        _known(self.keep, factors, "KeepInteraction")
        if self.of < 1:
            raise InputError(f"KeepInteraction: of is a positive number, not {self.of}.")
        first, second = (factor for factor in factors if factor.name in self.keep)
        kept = [
            (i + j, {first.name: a, second.name: b})
            for (i, a), (j, b) in product(enumerate(first.levels), enumerate(second.levels))
        ]
        yield from ({**baseline, **levels} for _, levels in kept)
        for factor in (factor for factor in factors if factor.name not in self.keep):
            others = [level for level in factor.levels if level != baseline[factor.name]]
            for shift, level in enumerate(others):
                for position, levels in kept:
                    # The baseline itself is always among the pairs, so that the factor's own margin is complete.
                    at_baseline = all(baseline[name] == value for name, value in levels.items())
                    if at_baseline or (position + shift) % self.of == 0:
                        yield {**baseline, **levels, factor.name: level}


def resolve(factors: Sequence[Factor], levels: Mapping[str, Level]) -> Levels:
    """The levels in the factors' order, None where a factor does not apply."""
    resolved = {factor.name: levels.get(factor.name) for factor in factors}
    for factor in factors:
        if not factor.applies(resolved):
            resolved[factor.name] = None
    return resolved


def _known(names: Iterable[str], factors: Sequence[Factor], design: str) -> None:
    known = [factor.name for factor in factors]
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"{design} names the factor(s) {', '.join(unknown)}; the study has: {', '.join(known)}.")
