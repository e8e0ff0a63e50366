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
        return _crossed({factor.name: factor.levels for factor in factors})


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
    factor is run beside the combinations of the levels in `beside` (kept factor -> some of its levels, the baseline
    among them; all where not named), so that every level compared is seen beside the same combinations: an effect is a
    mean of pairs of arms that differ in nothing else (`contrasts.main_effect`; the interaction that is kept:
    `contrasts.interaction`). Confounded are the interactions with the factors outside `keep`.
    """

    keep: tuple[str, str]
    beside: Mapping[str, Sequence[Level]] = field(default_factory=dict)

    def _raw(self, factors: Sequence[Factor], baseline: Levels) -> Iterable[Levels]:
        _known(self.keep, factors, "KeepInteraction")
        if unknown := [name for name in self.beside if name not in self.keep]:
            raise InputError(
                f"KeepInteraction: beside names {', '.join(unknown)}, which is not among the kept factors."
            )
        kept = [factor for factor in factors if factor.name in self.keep]
        for factor in kept:
            levels = self.beside.get(factor.name, factor.levels)
            if wrong := [level for level in levels if level not in factor.levels]:
                raise InputError(
                    f"KeepInteraction: {wrong[0]!r} is not a level of factor '{factor.name}': {factor.levels!r}."
                )
            if baseline[factor.name] not in levels:
                raise InputError(
                    f"KeepInteraction: beside[{factor.name!r}] needs the baseline {baseline[factor.name]!r}."
                )
        yield from ({**baseline, **levels} for levels in _crossed({f.name: f.levels for f in kept}))
        fewer = list(_crossed({f.name: self.beside.get(f.name, f.levels) for f in kept}))
        for factor in (factor for factor in factors if factor.name not in self.keep):
            for level, combination in product(factor.levels, fewer):
                yield {**baseline, **combination, factor.name: level}


def _crossed(levels: Mapping[str, Sequence[Level]]) -> Iterable[Levels]:
    return (dict(zip(levels, combination, strict=True)) for combination in product(*levels.values()))


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
