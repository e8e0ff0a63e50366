"""What a design is: factors and a baseline in, a fixed list of combinations of levels out. The modules beside it hold
the designs; `studies` asks them for their arms, `sweeps` what these can tell apart."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence

from ablations.designs.aliasing import Aliasing, find_aliasing
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

    def aliasing(self, factors: Sequence[Factor], baseline: Levels) -> Aliasing:
        """Which main effects and interactions of two factors its arms can tell apart, conditions applied."""
        return find_aliasing(factors, self.combinations(factors, baseline))

    def tells_apart(self, factors: Sequence[Factor], baseline: Levels) -> list[str]:
        """What the arms can tell apart and what is confounded with what, in lines and in the factors' names."""
        return self.aliasing(factors, baseline).lines()


def resolve(factors: Sequence[Factor], levels: Mapping[str, Level]) -> Levels:
    """The levels in the factors' order, None where a factor does not apply."""
    resolved = {factor.name: levels.get(factor.name) for factor in factors}
    for _ in factors:  # one that does not apply may take others with it, in whatever order they are declared
        for factor in factors:
            if not factor.applies(resolved):
                resolved[factor.name] = None
    return resolved


def check_known(names: Iterable[str], factors: Sequence[Factor], design: str) -> None:
    """Raise for names that are no factors of the study."""
    known = [factor.name for factor in factors]
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"{design} names the factor(s) {', '.join(unknown)}; the study has: {', '.join(known)}.")


def chosen_levels(factor: Factor, narrowed: Mapping[str, Sequence[Level]], design: str) -> Sequence[Level]:
    """The levels of a factor that a design uses: those that it names, else all. A factor with a range has none but
    those that are named."""
    levels = narrowed.get(factor.name, factor.levels)
    if not levels:
        raise InputError(
            f"{design} takes levels, and factor '{factor.name}' has the range {factor.range!r}: give it levels, or use "
            "SpaceFilling, which places points in a range."
        )
    if wrong := [level for level in levels if not factor.has(level)]:
        raise InputError(f"{design}: {wrong[0]!r} is not a level of factor '{factor.name}': {factor.said()}.")
    return levels
